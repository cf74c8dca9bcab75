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
// bounds the time of a build: at most about 0.15 s.
const (
	orderPerMember = 32
	maxOrder       = 1 << 17
)

// buildRoundRobin unrolls one period of the order. Equal weights need no table.
func buildRoundRobin(ms []Member) Table {
	t := Table{Kind: Seq, N: uint32(len(ms))}
	if equalWeights(ms) {
		return t
	}
	turns := turnsOf(ms)
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

// smooth returns the total = sum(turns) entries of the smooth order.
func smooth(turns []int64, total int64) []uint16 {
	classes, pace := classesOf(turns)
	// rank[i] is the credit of class i's next member above 16 bits that rank a
	// lower index higher among equals: one comparison decides a step.
	rank := make([]int64, len(classes))
	for i, c := range classes {
		rank[i] = MaxMembers - int64(c.members[0])
	}
	order := make([]uint16, total)
	for k := range order {
		best, most := 0, int64(math.MinInt64)
		for i, p := range pace {
			r := rank[i] + p
			rank[i] = r
			if r > most {
				best, most = i, r
			}
		}
		c := &classes[best]
		order[k] = c.members[c.next]
		rank[best] += int64(c.members[c.next])
		c.next++
		if c.next == len(c.members) { // all were taken equally often again
			c.next = 0
			rank[best] -= total << 16
		}
		rank[best] -= int64(c.members[c.next])
	}
	return order
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
			pace = append(pace, n<<16)
		}
		classes[at].members = append(classes[at].members, uint16(i))
	}
	return classes, pace
}

// turnsOf returns how often each member stands in one period: its weight over
// the greatest common divisor if that period is within the limits, otherwise the
// nearest shares of the longest period that is. A member with a weight above 0
// has at least one turn.
func turnsOf(ms []Member) []int64 {
	var div, total int64
	for _, m := range ms {
		div = gcd(div, int64(m.Weight))
		total += int64(m.Weight)
	}
	turns := make([]int64, len(ms))
	limit := min(int64(len(ms))*orderPerMember, maxOrder)
	for i, m := range ms {
		w := int64(m.Weight)
		switch {
		case total/div <= limit:
			turns[i] = w / div
		case w > 0:
			turns[i] = max(1, (w*limit+total/2)/total)
		}
	}
	return turns
}

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
