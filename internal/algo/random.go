// SPDX-License-Identifier: Apache-2.0

package algo

import "math/bits"

// random gives every new connection to a random member, in proportion to the
// weights and independent of everything that was picked before. It is what
// kube-proxy does, needs no state, and never herds; its imbalance after k
// connections to n equal members is about sqrt(k/n).
// Source: Walker's alias method as built by Vose, "A linear algorithm for
// generating random numbers with a given distribution", IEEE TSE 17(9), 1991.
var random = Algorithm{Name: "random", Build: buildRandom}

// buildRandom makes the alias table. Equal weights need no table.
func buildRandom(ms []Member) Table {
	t := Table{Kind: Rand, N: uint32(len(ms))}
	if uniform(ms) {
		return t
	}
	if ws := rampedWeights(ms); !equal(ws) {
		t.Alias = aliasTable(ws)
	}
	return t
}

// aliased returns i or the alias of i, as the word w and the random number say.
// The word's upper half is the threshold: of 65536 draws, so many keep i.
func aliased(i, w, rand uint32) uint32 {
	if rand>>16 < w>>16 {
		return i
	}
	return w & 0xffff
}

// aliasTable returns one word for each weight: threshold<<16 | alias. A weight is
// at most 2^28. The columns are filled exactly and each threshold is then rounded
// to 1/65536 of its column, so that a share is off by at most 1/(131072 n) for
// each column that the member stands in.
func aliasTable(ws []uint64) []uint32 {
	var total uint64
	for _, w := range ws {
		total += w
	}
	n := uint64(len(ws))
	// mass[i] is member i's probability in units of 1/(n*total): total is the
	// fill of one column, so all arithmetic is in integers and exact.
	mass := make([]uint64, n)
	var small, large []uint32
	for i, w := range ws {
		mass[i] = w * n
		if mass[i] < total {
			small = append(small, uint32(i))
		} else {
			large = append(large, uint32(i))
		}
	}
	words := make([]uint32, n)
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		words[s] = threshold(mass[s], total)<<16 | l
		mass[l] -= total - mass[s]
		if mass[l] < total {
			large = large[:len(large)-1]
			small = append(small, l)
		}
	}
	for _, i := range append(small, large...) { // full columns point at themselves
		words[i] = i
	}
	return words
}

// threshold returns mass/total in units of 1/65536, rounded to nearest; it is
// at most 65535. mass is less than total.
func threshold(mass, total uint64) uint32 {
	hi, lo := bits.Mul64(mass, 1<<16)
	lo, carry := bits.Add64(lo, total/2, 0)
	q, _ := bits.Div64(hi+carry, lo, total)
	return uint32(min(q, 1<<16-1))
}
