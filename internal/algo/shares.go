// SPDX-License-Identifier: Apache-2.0

package algo

// Shares returns the part of new connections that each member of t should get, 0..1:
// exactly, where chance, turns or places decide, and by weight where load does. A
// member in slow start has the most that it can get. The shares add up to 1, unless t
// is empty.
func Shares(t Table) []float64 {
	shares := make([]float64, t.N)
	switch {
	case t.Factors != nil:
		t.weightShares(shares)
	case t.Alias != nil:
		for i, w := range t.Alias {
			own := float64(w>>16) / (1 << 16)
			shares[i] += own / float64(t.N)
			shares[w&0xffff] += (1 - own) / float64(t.N)
		}
	case t.Order != nil:
		for _, i := range t.Order {
			shares[i] += 1 / float64(len(t.Order))
		}
	default:
		for i := range shares {
			shares[i] = 1 / float64(t.N)
		}
	}
	return shares
}

// weightShares fills in shares by what a connection costs: it is the inverse of the
// weight.
func (t Table) weightShares(shares []float64) {
	var sum float64
	for i, f := range t.Factors {
		if t.established(uint32(i)) {
			sum += 1 / float64(f)
		}
	}
	rest := 1.0
	for _, w := range t.Starters {
		shares[w&0xffff] = float64(w>>16) / (1 << 16) / float64(len(t.Starters))
		rest -= shares[w&0xffff]
	}
	for i, f := range t.Factors {
		if t.established(uint32(i)) {
			shares[i] = rest / float64(f) / sum
		}
	}
}
