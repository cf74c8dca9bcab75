// SPDX-License-Identifier: Apache-2.0

package algo

// How far Avoid looks for another member.
const (
	OtherPicks  = 8  // by number, sequence or hash
	WalkMembers = 32 // in turn
)

// Avoid returns the member that a new connection gets instead of first, which Pick chose
// for in and which new connections should avoid. takes tells whether a member has a weight
// above 0 and is not to be avoided. If nobody is found it is first.
//
// Rand, Seq and Hash pick again, OtherPicks times at most: by other random numbers, by the
// turns that follow, of which turns were used up, and by hashes of the hash, so that a
// client's connections stay together. Two, Least and Few take the cheapest of WalkMembers
// members. Who finds nobody so looks at the members behind first, in their order.
func Avoid(t Table, in Input, first int, takes func(member int) bool) (member int, turns uint32) {
	switch t.Kind {
	case Rand, Seq, Hash:
		for k := uint32(1); k <= OtherPicks; k++ {
			i := Pick(t, in.other(k, t.N))
			if !takes(i) {
				continue
			}
			if t.Kind == Seq {
				turns = k
			}
			return i, turns
		}
	case Two, Least, Few:
		if best := t.cheapest(in, takes); best != none {
			return int(best.member), 0
		}
	}
	return t.walk(first, takes), 0
}

// other returns the k-th input that stands for in when what that picks will not do.
// Of n members one random number chooses, and what scaling leaves of it decides about the
// alias.
func (in Input) other(k, n uint32) Input {
	in.Rand[0] = otherNumber(in.Rand[0], k)
	in.Rand[1] = in.Rand[0] * n
	in.Seq += k
	in.Hash = otherNumber(in.Hash, k)
	return in
}

// otherNumber is a bijection of 32-bit numbers that looks random, another one for each k.
// Source: Appleby, MurmurHash3, fmix32.
func otherNumber(x, k uint32) uint32 {
	x += k * 0x9e3779b9
	x = (x ^ x>>16) * 0x85ebca6b
	x = (x ^ x>>13) * 0xc2b2ae35
	return x ^ x>>16
}

// cheapest compares some members from another one than Pick does.
func (t Table) cheapest(in Input, takes func(member int) bool) choice {
	start := scale(otherNumber(in.Rand[0], 1), t.N)
	best := none
	for j := range min(t.N, WalkMembers) {
		if i := (start + j) % t.N; takes(int(i)) {
			best = t.cheaper(in, best, i)
		}
	}
	return best
}

// walk returns the first member behind first that takes connections.
func (t Table) walk(first int, takes func(member int) bool) int {
	for k := 1; k < min(WalkMembers, int(t.N)); k++ {
		if i := (first + k) % int(t.N); takes(i) {
			return i
		}
	}
	return first
}
