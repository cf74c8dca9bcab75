// SPDX-License-Identifier: Apache-2.0

package algo

// Resume returns the place of the new order from which round-robin goes on when
// a table is replaced. place is the one of the old order whose turn it is. moved
// has the index in the new table of each member of the old one, or -1.
//
// The member whose turn it was goes next, or, if it has left, the next one of the
// old order that has not. Nobody goes twice in a row that would not in the new
// order itself: the member that went last is passed over then. Of the turns that
// a member has in the new order, the one at about the same part of the period is
// taken. Both tables are of kind Seq and not empty, and place < old.Places().
//
// A dataplane that counts with seq keeps Offset(seq, place) beside it.
func Resume(old, new Table, moved []int, place uint32) uint32 {
	turns := turnPlaces(new)
	last := moved[old.at((place+old.Places()-1)%old.Places())]
	aim := uint32(uint64(place) * uint64(new.Places()) / uint64(old.Places()))
	for k := range old.Places() {
		next := moved[old.at((place+k)%old.Places())]
		if next < 0 {
			continue
		}
		at := turns[next]
		if next == last {
			at = repeated(new, at)
		}
		if len(at) > 0 {
			return nearest(at, aim, new.Places())
		}
	}
	if last >= 0 && len(turns[last]) > 0 { // nobody else is left
		return (nearest(turns[last], aim, new.Places()) + 1) % new.Places()
	}
	return aim
}

// Offset returns the number that makes a counter which is at seq read place: a
// pick with sequence number s uses place (s + offset) % places, where the sum
// wraps around at 2^32.
func Offset(seq, place uint32) uint32 {
	return place - seq
}

// at returns the member that has the turn at a place of the order.
func (t Table) at(place uint32) uint32 {
	if t.Order == nil {
		return place
	}
	return uint32(t.Order[place])
}

// turnPlaces returns the places of each member in the order.
func turnPlaces(t Table) [][]uint32 {
	turns := make([][]uint32, t.N)
	for place := range t.Places() {
		m := t.at(place)
		turns[m] = append(turns[m], place)
	}
	return turns
}

// repeated returns those of the places at which the place before is the same
// member's.
func repeated(t Table, places []uint32) []uint32 {
	var out []uint32
	for _, p := range places {
		if t.at((p+t.Places()-1)%t.Places()) == t.at(p) {
			out = append(out, p)
		}
	}
	return out
}

// nearest returns the place closest to aim on the circle of all places, the
// first of equals. places is not empty.
func nearest(places []uint32, aim, all uint32) uint32 {
	best, least := places[0], all
	for _, p := range places {
		d := (p + all - aim) % all
		if d = min(d, all-d); d < least {
			best, least = p, d
		}
	}
	return best
}
