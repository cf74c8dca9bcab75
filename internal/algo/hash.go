// SPDX-License-Identifier: Apache-2.0

package algo

import (
	"cmp"
	"math/bits"
	"slices"
)

// hash sends connections whose key has the same hash to the same member, as long
// as that member exists. What is in the key is up to the dataplane; see
// HashSource, HashSourcePort and HashTuple. The table depends on nothing but the
// IDs, the weights and the number of members: every node has the same one, and a
// member that leaves and returns finds its places again.
//
// When a member comes or goes, mostly about 1 % of all places or fewer change their
// owner without need, fewer than half as many as with Maglev, as long as the number
// of places stays the same; see tableSizes. They are up to 3 % where shares are below
// 100 places and their whole part changes, because then all limits do.
//
// Source: this is the greedy form of bounded rendezvous hashing (Thaler and
// Ravishankar, 1998, with the limit of Mirrokni et al., "Consistent hashing with
// bounded loads", SODA 2018), with the permutations of Maglev (Eisenbud et al.,
// NSDI 2016) as its ranks. Unlike Maglev, a member whose place is taken waits for
// the next round and does not go on to its next free place at once. So most places
// belong to the member that ranks them first, whoever else there is.
var hash = Algorithm{Name: "hash", Build: buildHash}

// tableSizes are the numbers of places that a table may have, for up to 163, 2620 and
// more members. They are few, because a Service that grows from one to the next, or
// shrinks, moves nearly all its keys; and primes, so that every stride visits all
// places.
var tableSizes = []uint32{4093, 65521, 131071}

// placesPerMember is how many places there are for each member at least, as far
// as the largest size allows.
const placesPerMember = 25

func buildHash(ms []Member) Table {
	return Table{Kind: Hash, N: uint32(len(ms)), Order: Owners(ms, tableSize(len(ms)))}
}

// tableSize returns the number of places for n members.
func tableSize(n int) uint32 {
	for _, size := range tableSizes {
		if int(size) >= n*placesPerMember {
			return size
		}
	}
	return tableSizes[len(tableSizes)-1]
}

// free marks a place without an owner. It is no index, as N <= MaxMembers.
const free = MaxMembers

// claimant is a member while places are given away. It asks for all places in
// turn, from a start and with a stride that only its ID decides.
type claimant struct {
	index  uint16
	id     uint64 // mixed
	weight uint64
	place  uint32 // the one to ask for next
	stride uint32
	has    uint32
	low    uint32 // so many are reserved for it
	high   uint32 // it gets no more
	pace   uint64 // requests in a round, in 1/paceUnit
	credit uint64 // what it may still ask in this round
}

const paceUnit = 1 << 16

// auction gives places away in rounds. In each round every claimant that may
// have more asks for as many places as its weight says; a free place goes to who
// asks first.
type auction struct {
	table    []uint16 // owner of each place, or free
	open     []claimant
	left     uint32 // free places
	reserved uint32 // of them, for claimants that have less than low
}

// Owners returns the index of the member that owns each of size places: what
// Table.Order of algorithm hash has, for dataplanes that want fewer places. size is a
// prime and at least the number of members, some of which have a weight.
func Owners(ms []Member, size uint32) []uint16 {
	a := auction{table: make([]uint16, size), open: claimants(ms), left: size}
	for i := range a.table {
		a.table[i] = free
	}
	a.setLimits()
	a.run()
	a.drop(func(c claimant) bool { return c.has >= c.low })
	for i := range a.open {
		c := &a.open[i]
		c.high, c.pace, c.credit = c.low, uint64(c.low-c.has)*paceUnit, 0
	}
	a.reserved = 0
	a.run()
	return a.table
}

// run holds rounds until only reserved places are left.
func (a *auction) run() {
	for closed := 0; a.left > a.reserved; {
		closed += a.round()
		if closed > len(a.open)/4 {
			a.drop(func(c claimant) bool { return c.has == c.high })
			closed = 0
		}
	}
}

// claimants returns the members that have a weight, in an order that does not
// depend on that of ms.
func claimants(ms []Member) []claimant {
	var cs []claimant
	for i, m := range ms {
		if m.Weight > 0 {
			cs = append(cs, claimant{index: uint16(i), id: mix(m.ID), weight: uint64(m.Weight)})
		}
	}
	slices.SortStableFunc(cs, func(a, b claimant) int { return cmp.Compare(a.id, b.id) })
	return cs
}

// setLimits sets everything about the claimants that depends on the size and on
// the sum of weights. A share of 100 places or more is exceeded by at most 1 %
// and missed by at most 5 %; a smaller one is exceeded by at most one place and
// missed by at most a tenth, rounded up. So there are more places to be had than
// there are, and every claimant gets one.
func (a *auction) setLimits() {
	size, total, div := uint64(len(a.table)), uint64(0), uint64(0)
	for _, c := range a.open {
		total += c.weight
		div = gcd(div, c.weight)
	}
	mean := total / div / uint64(len(a.open))
	for i := range a.open {
		c := &a.open[i]
		c.place, c.stride = uint32(c.id%size), uint32(mix(c.id)%(size-1))+1
		share := c.weight * size // in units of 1/total
		c.high = uint32(share * 101 / (total * 100))
		c.low = uint32(max(1, share*95/(total*100)))
		if share < 100*total {
			c.high = uint32(share/total) + 1
			c.low = uint32(max(1, share*9/(total*10)))
		}
		c.pace = c.weight / div * paceUnit >> (bits.Len64(mean) - 1)
		c.credit = paceUnit / 2
		a.reserved += c.low
	}
	if uint64(a.reserved) > size { // many that are rounded up beside a few large ones
		for i := range a.open {
			a.open[i].low = 1
		}
		a.reserved = uint32(len(a.open))
	}
}

// round lets each claimant ask once in turn, and returns how many have got all
// that they may have.
func (a *auction) round() (closed int) {
	for i := range a.open {
		c := &a.open[i]
		if c.has == c.high {
			continue
		}
		for c.credit += c.pace; c.credit >= paceUnit && c.has < c.high; c.credit -= paceUnit {
			a.ask(c)
		}
		if c.has == c.high {
			closed++
		}
	}
	return closed
}

// ask gives c its next place if that is free and not reserved for others.
func (a *auction) ask(c *claimant) {
	p := c.place
	c.place += c.stride
	if size := uint32(len(a.table)); c.place >= size {
		c.place -= size
	}
	if a.table[p] != free || c.has >= c.low && a.left == a.reserved {
		return
	}
	a.table[p] = c.index
	a.left--
	c.has++
	if c.has <= c.low && a.reserved > 0 {
		a.reserved--
	}
}

// drop drops claimants, and speeds the others up if all of them are slow.
func (a *auction) drop(done func(claimant) bool) {
	a.open = slices.DeleteFunc(a.open, done)
	var fastest uint64
	for _, c := range a.open {
		fastest = max(fastest, c.pace)
	}
	for ; fastest > 0 && fastest < paceUnit; fastest *= 2 {
		for i := range a.open {
			a.open[i].pace *= 2
		}
	}
}

// mix is a bijection of 64-bit numbers that leaves no pattern.
// Source: the finalizer of SplitMix64, Steele et al., OOPSLA 2014.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
