// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// stretch is the endpoints that one port of one slice has, sorted by address.
type stretch struct {
	from *slice
	rest []endpoint
	port uint16
}

// head is the first endpoint of a stretch's rest, as a number that is quick to compare.
// All heads of a merge are of one family.
type head struct {
	hi, lo uint64 // the address
	port   uint16
	run    int32
}

func headOf(addr netip.Addr, port uint16, run int) head {
	b := addr.As16()
	return head{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:]), port, int32(run)}
}

func (h *head) before(o *head) bool {
	switch {
	case h.hi != o.hi:
		return h.hi < o.hi
	case h.lo != o.lo:
		return h.lo < o.lo
	case h.port != o.port:
		return h.port < o.port
	}
	return h.run < o.run
}

// gather returns the endpoints of the port and family that name says, sorted by
// address, each address once. A pod's address may be used again before the pod is
// gone, so of two with one address the one that is not terminating wins, then the
// ready one, then the serving one, then the first. It may use the memory of into.
func gather(name lb.ServiceName, from []*slice, ws weights, into []candidate) []candidate {
	var few [4]stretch // of most Services, without an allocation
	runs, n := runsOf(name, from, few[:0])
	if cap(into) < n {
		into = make([]candidate, 0, n)
	}
	out := into[:0]
	var fewHeads [4]head
	heads := fewHeads[:0]
	for i := range runs {
		heads = append(heads, headOf(runs[i].rest[0].addr, runs[i].port, i))
	}
	for i := len(heads)/2 - 1; i >= 0; i-- {
		sift(heads, i)
	}
	for len(heads) > 0 {
		i := heads[0].run
		r := &runs[i]
		e := &r.rest[0]
		c := candidate{netip.AddrPortFrom(e.addr, r.port), e.zones, ws.of(r.from, e), e.flags}
		switch last := len(out) - 1; {
		case last < 0 || out[last].addr != c.addr:
			out = append(out, c)
		case rank(c.flags) > rank(out[last].flags):
			out[last] = c
		}
		if r.rest = r.rest[1:]; len(r.rest) > 0 {
			heads[0] = headOf(r.rest[0].addr, r.port, int(i))
		} else {
			heads[0] = heads[len(heads)-1]
			heads = heads[:len(heads)-1]
		}
		sift(heads, 0)
	}
	return out
}

// runsOf appends to runs the stretches of the port and family that name says, none
// empty. It also returns how many endpoints they have.
func runsOf(name lb.ServiceName, from []*slice, runs []stretch) (_ []stretch, n int) {
	for _, s := range from {
		if s.family != name.Family || len(s.endpoints) == 0 {
			continue
		}
		for _, p := range s.ports {
			if p.name == name.Port && p.proto == name.Proto {
				runs = append(runs, stretch{s, s.endpoints, p.port})
				n += len(s.endpoints)
			}
		}
	}
	return runs, n
}

// sift moves heads[i] down to where it belongs in the heap below it.
func sift(heads []head, i int) {
	if i >= len(heads) {
		return
	}
	moved := heads[i]
	for {
		child := 2*i + 1
		if child >= len(heads) {
			break
		}
		if child+1 < len(heads) && heads[child+1].before(&heads[child]) {
			child++
		}
		if !heads[child].before(&moved) {
			break
		}
		heads[i] = heads[child]
		i = child
	}
	heads[i] = moved
}

// rank orders endpoints of one address; the highest is kept.
func rank(f flags) int {
	r := 0
	if !f.has(terminating) {
		r += 4
	}
	if f.has(ready) {
		r += 2
	}
	if f.has(serving) {
		r++
	}
	return r
}

// sortEndpoints sorts es, of one family, by address; those of one address keep their
// order.
func sortEndpoints(es []endpoint) {
	if slices.IsSortedFunc(es, func(a, b endpoint) int { return a.addr.Compare(b.addr) }) {
		return
	}
	if !es[0].addr.Is4() {
		slices.SortStableFunc(es, func(a, b endpoint) int { return a.addr.Compare(b.addr) })
		return
	}
	keys := make([]uint64, len(es)) // address, then index: quick to sort
	for i := range es {
		b := es[i].addr.As4()
		keys[i] = uint64(binary.BigEndian.Uint32(b[:]))<<32 | uint64(i)
	}
	slices.Sort(keys)
	before := slices.Clone(es)
	for i, k := range keys {
		es[i] = before[uint32(k)]
	}
}

// countLocalReady returns how many addresses of each family are ready on this node, and
// take connections, over all ports: one that is in two slices counts as what wins there,
// and one of weight 0 takes none.
func countLocalReady(from []*slice, ws weights) (count [len(families)]int) {
	var addrs []netip.Addr // in question
	for _, s := range from {
		for i := range s.endpoints {
			if e := &s.endpoints[i]; e.flags.has(ready | local) {
				addrs = append(addrs, e.addr)
			}
		}
	}
	if len(addrs) == 0 {
		return count
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	var few []*slice // from, with these addresses only
	for _, s := range from {
		if es := among(s.endpoints, addrs); len(es) > 0 {
			part := *s
			part.endpoints = es
			few = append(few, &part)
		}
	}
	takes := make([]bool, len(addrs))
	for _, name := range portsOf(few) {
		for _, c := range gather(name, few, ws, nil) {
			if i, _ := slices.BinarySearchFunc(addrs, c.addr.Addr(), netip.Addr.Compare); c.flags.has(ready|local) && c.weight > 0 && !takes[i] {
				takes[i] = true
				count[index(name.Family)]++
			}
		}
	}
	return count
}

// among returns those of es whose address is one of addrs. Both are sorted.
func among(es []endpoint, addrs []netip.Addr) (some []endpoint) {
	for i := range es {
		for len(addrs) > 0 && addrs[0].Less(es[i].addr) {
			addrs = addrs[1:]
		}
		if len(addrs) == 0 {
			break
		}
		if addrs[0] == es[i].addr {
			some = append(some, es[i])
		}
	}
	return some
}

// portsOf returns the ports that the slices have, in each family, without the Service.
func portsOf(from []*slice) (names []lb.ServiceName) {
	for _, s := range from {
		for _, p := range s.ports {
			name := lb.ServiceName{Port: p.name, Proto: p.proto, Family: s.family}
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}
