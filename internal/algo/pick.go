// SPDX-License-Identifier: Apache-2.0

package algo

// GroupMembers is how many members Least visits at a time. A dataplane that
// knows a lower bound of a group's costs may skip the group.
const GroupMembers = 32

// Pick returns the index of the member that in chooses from t, in [0, t.N), or
// -1 if t is empty. It is a function of its arguments and of what in.Load
// returns, and it calls in.Load at most once for each member that it compares.
func Pick(t Table, in Input) int {
	if t.N == 0 {
		return -1
	}
	switch t.Kind {
	case Rand:
		return int(t.draw(scale(in.Rand[0], t.N), in.Rand[1]))
	case Seq:
		place := in.Seq % t.Places()
		if t.Order == nil {
			return int(place)
		}
		return int(t.Order[place])
	case Hash:
		return int(t.Order[scale(in.Hash, t.Places())])
	case Two:
		return t.start(in, t.two(in))
	case Least:
		return t.start(in, t.least(in))
	case Few:
		return t.start(in, t.few(in))
	}
	return -1
}

// Places returns how many entries one period of the order has (Seq) or how many
// places the hash chooses from (Hash).
func (t Table) Places() uint32 {
	if t.Order == nil {
		return t.N
	}
	return uint32(len(t.Order))
}

// choice is a member and what it costs.
type choice struct {
	member uint32
	cost   uint64
}

// none is the choice that every other one beats.
var none = choice{cost: 1<<64 - 1}

// two compares two samples. A tie goes to the first one.
func (t Table) two(in Input) choice {
	i := scale(in.Rand[0], t.N)
	j := (i + 1 + scale(in.Rand[2], t.N-1)) % t.N // not i
	if t.Alias != nil {
		j = scale(in.Rand[2], t.N)
	}
	first, second := t.draw(i, in.Rand[1]), t.draw(j, in.Rand[3])
	best := choice{first, t.cost(in, first)}
	if c := t.cost(in, second); c < best.cost {
		best = choice{second, c}
	}
	return best
}

// least compares all members, group by group from a random one, and the members
// of each group from a random one. The first of the cheapest wins.
func (t Table) least(in Input) choice {
	start := scale(in.Rand[0], t.N)
	groups := (t.N + GroupMembers - 1) / GroupMembers
	best := none
	for k := range groups {
		first := (start/GroupMembers + k) % groups * GroupMembers
		size := min(GroupMembers, t.N-first)
		for i := range size {
			best = t.cheaper(in, best, first+(start%GroupMembers+i)%size)
		}
	}
	return best
}

// few compares FewMembers members from a random one, or all if none of those can
// be picked.
func (t Table) few(in Input) choice {
	start := scale(in.Rand[0], t.N)
	best := none
	for i := range min(t.N, FewMembers) {
		best = t.cheaper(in, best, (start+i)%t.N)
	}
	if best == none {
		return t.least(in)
	}
	return best
}

// cheaper returns best, or member i if it costs less and may be picked.
func (t Table) cheaper(in Input, best choice, i uint32) choice {
	if !t.established(i) {
		return best
	}
	if c := t.cost(in, i); c < best.cost {
		return choice{i, c}
	}
	return best
}

// start returns the regular choice, or a member in slow start if there is one
// whose chance this is and which costs no more.
func (t Table) start(in Input, regular choice) int {
	if s, ok := t.starter(in.Rand[4]); ok && t.cost(in, s) <= regular.cost {
		return int(s)
	}
	return int(regular.member)
}

// starter returns the member in slow start that the random number r gives a
// chance to, if any.
func (t Table) starter(r uint32) (member uint32, ok bool) {
	if len(t.Starters) == 0 {
		return 0, false
	}
	product := uint64(r) * uint64(len(t.Starters))
	word := t.Starters[product>>32]
	return word & 0xffff, uint32(product)>>16 < word>>16
}

// draw returns member i, or its alias if the random number says so.
func (t Table) draw(i, rand uint32) uint32 {
	if t.Alias == nil {
		return i
	}
	return aliased(i, t.Alias[i], rand)
}

// established says whether member i takes part other than as a starter.
func (t Table) established(i uint32) bool {
	return t.Factors == nil || t.Factors[i]-1 < starting-1
}

// cost returns what one more connection costs at member i.
func (t Table) cost(in Input, i uint32) uint64 {
	factor := uint32(1)
	if t.Factors != nil {
		factor = t.Factors[i] &^ starting
	}
	if t.Cost == Time {
		return CostTime(in.Load(int(i)), factor)
	}
	return CostConns(in.Load(int(i)), factor)
}

// scale maps a uniform 32-bit number onto [0, n).
func scale(rand, n uint32) uint32 {
	return uint32(uint64(rand) * uint64(n) >> 32)
}
