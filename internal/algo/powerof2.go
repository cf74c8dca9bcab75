// SPDX-License-Identifier: Apache-2.0

package algo

// powerOfTwo draws two members in proportion to their weights and picks the one
// with fewer connections for its weight. Two looks are nearly as good as looking
// at everybody, and members are found by chance, so that nodes which know only
// their own connections do not all run to the same one.
// Source: Mitzenmacher, "The power of two choices in randomized load balancing",
// IEEE TPDS 12(10), 2001.
var powerOfTwo = Algorithm{Name: "power-of-two", Build: buildPowerOfTwo}

func buildPowerOfTwo(ms []Member) Table {
	t := Table{Kind: Two, Cost: Conns, N: uint32(len(ms)), Factors: factors(ms), Starters: starters(ms)}
	if !uniform(ms) {
		t.Alias = aliasTable(establishedWeights(ms))
	}
	return t
}

// establishedWeights returns the weights, 0 for starters.
func establishedWeights(ms []Member) []uint64 {
	ws := make([]uint64, len(ms))
	for i, m := range ms {
		if !isStarter(m) {
			ws[i] = uint64(m.Weight)
		}
	}
	return ws
}
