// SPDX-License-Identifier: Apache-2.0

package algo

import "math"

// roundRobin gives new connections to the members in turn, each as often as its
// weight says and as evenly spread as possible. Between two membership changes
// no member is ever more than one turn ahead of its share.
// Source: the smooth weighted round-robin of nginx (upstream round robin
// balancer, 2012): each step adds every weight to its member's credit, takes the
// member with most credit, the first of equals, and charges it the total.
var roundRobin = Algorithm{Name: "round-robin", Build: buildRoundRobin}

// An order has at most orderPerMember entries per member and at most maxOrder
// entries, plus one for each member whose share rounds to none. The second limit
// bounds the time of a build: 31 ms of processor time for 10,000 members and
// 64 ms for 65,535, with the worst weights known (BenchmarkRoundRobin, AMD EPYC).
const (
	orderPerMember = 32
	maxOrder       = 1 << 17
)

// buildRoundRobin unrolls one period of the order. Equal weights need no table.
func buildRoundRobin(ms []Member) Table {
	t := Table{Kind: Seq, N: uint32(len(ms))}
	ws := rampedWeights(ms)
	if equal(ws) {
		return t
	}
	turns := turnsOf(ws)
	var total int64
	for _, n := range turns {
		total += n
	}
	t.Order = smooth(turns, total)
	return t
}

// class is all members with the same number of turns. They earn credit at the
// same pace, so among them the most credit is always at the one that was taken
// least often, the first of equals: the class is a ring in order of index. A
// step therefore costs one addition for each class and not for each member, and
// the turns of d classes sum up to at least d*d/2, so there cannot be many.
type class struct {
	members []uint16 // in order of index
	next    int      // the member whose turn it is
}

// A rank is the credit of a class's next member above 16 bits that are higher
// for a lower index, above the number of the class: the largest rank says it all,
// and finding it needs no branch. Classes have distinct turns, so fewer than 700
// fit into the longest order.
const (
	classBits  = 10
	creditUnit = 1 << (16 + classBits)
)

// smooth returns the total = sum(turns) entries of the smooth order.
func smooth(turns []int64, total int64) []uint16 {
	classes, pace := classesOf(turns)
	rank := make([]int64, len(classes))
	for i, c := range classes {
		rank[i] = (MaxMembers-int64(c.members[0]))<<classBits | int64(i)
	}
	order := make([]uint16, total)
	for k := range order {
		best := earn(rank, pace) & (1<<classBits - 1)
		c := &classes[best]
		m := c.members[c.next]
		order[k] = m
		c.next++
		if c.next == len(c.members) { // all were taken equally often again
			c.next = 0
			rank[best] -= total * creditUnit
		}
		rank[best] += (int64(m) - int64(c.members[c.next])) << classBits
	}
	return order
}

// earn adds the paces to the ranks and returns the largest rank. It takes all the
// time of a build, hence two maxima that do not wait for each other.
func earn(rank, pace []int64) int64 {
	even, odd := int64(math.MinInt64), int64(math.MinInt64)
	rank = rank[:len(pace)]
	i := 1
	for ; i < len(pace); i += 2 {
		a, b := rank[i-1]+pace[i-1], rank[i]+pace[i]
		rank[i-1], rank[i] = a, b
		even, odd = max(even, a), max(odd, b)
	}
	if i == len(pace) {
		rank[i-1] += pace[i-1]
		even = max(even, rank[i-1])
	}
	return max(even, odd)
}

// classesOf groups the members that have turns by how many they have. The pace
// of a class is the number of turns in units of rank.
func classesOf(turns []int64) (classes []class, pace []int64) {
	index := map[int64]int{}
	for i, n := range turns {
		if n == 0 {
			continue
		}
		at, ok := index[n]
		if !ok {
			at = len(classes)
			index[n] = at
			classes = append(classes, class{})
			pace = append(pace, n*creditUnit)
		}
		classes[at].members = append(classes[at].members, uint16(i))
	}
	return classes, pace
}

// turnsOf returns how often each member stands in one period: its weight over
// the greatest common divisor if that period is within the limits, otherwise the
// nearest shares of the longest period that is. A member with a weight above 0
// has at least one turn.
func turnsOf(ws []uint64) []int64 {
	var div, total uint64
	for _, w := range ws {
		div = gcd(div, w)
		total += w
	}
	turns := make([]int64, len(ws))
	limit := min(uint64(len(ws))*orderPerMember, maxOrder)
	for i, w := range ws {
		switch {
		case total/div <= limit:
			turns[i] = int64(w / div)
		case w > 0:
			turns[i] = int64(max(1, (w*limit+total/2)/total))
		}
	}
	return turns
}
