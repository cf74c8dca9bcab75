// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"fmt"
	"slices"

	"github.com/lbproxy/lbproxy/internal/dataplane"
)

// ids hands out the indexes 1..max-1 of an array. Index 0 is never used.
type ids struct {
	what string // the map, for errors
	next uint32 // every index from here on is free
	max  uint32
	free []uint32
	grow func(next uint32) error // is told before next does; nil: nobody is
}

func newIDs(what string, size int) *ids { return &ids{what: what, next: 1, max: uint32(size)} }

// reserve takes n indexes, or none and an error that wraps ErrFull.
func (a *ids) reserve(n int) ([]uint32, error) {
	if n > len(a.free)+int(a.max-a.next) {
		return nil, fmt.Errorf("map %s has %d of %d entries in use, %d more are needed: %w",
			a.what, a.used(), a.max-1, n, dataplane.ErrFull)
	}
	if more := n - len(a.free); more > 0 && a.grow != nil {
		if err := a.grow(a.next + uint32(more)); err != nil {
			return nil, fmt.Errorf("map %s: %w", a.what, err)
		}
	}
	got := make([]uint32, 0, n)
	for len(got) < n && len(a.free) > 0 {
		got = append(got, a.free[len(a.free)-1])
		a.free = a.free[:len(a.free)-1]
	}
	for len(got) < n {
		got = append(got, a.next)
		a.next++
	}
	return got, nil
}

// release gives indexes back. Nothing may refer to them any more.
func (a *ids) release(got ...uint32) { a.free = append(a.free, got...) }

// adopt marks exactly the given indexes as used, for a start with pinned maps.
func (a *ids) adopt(used []uint32) {
	slices.Sort(used)
	a.next, a.free = 1, nil
	for _, id := range used {
		for ; a.next < id; a.next++ {
			a.free = append(a.free, a.next)
		}
		a.next = id + 1
	}
	slices.Reverse(a.free) // hand out low indexes first
}

func (a *ids) used() uint32 { return a.next - 1 - uint32(len(a.free)) }

// marks is a set of indexes that is emptied in no time.
type marks struct {
	round  uint32
	marked []uint32 // by index: the round in which it was
}

// set makes the members of lists the set, and returns a test for it.
func (m *marks) set(lists [scopes][]uint32) (has func(uint32) bool) {
	if m.round++; m.round == 0 { // all that is older would seem new
		clear(m.marked)
		m.round = 1
	}
	for _, ids := range lists {
		for _, id := range ids {
			m.mark(id)
		}
	}
	return m.has
}

func (m *marks) mark(id uint32) {
	if int(id) >= len(m.marked) {
		m.marked = append(m.marked, make([]uint32, int(id)-len(m.marked)+1)...)
	}
	m.marked[id] = m.round
}

func (m *marks) has(id uint32) bool { return int(id) < len(m.marked) && m.marked[id] == m.round }

// without returns the members of lists that are not in the set, each once, and adds
// them to it.
func (m *marks) without(lists [scopes][]uint32) (out []uint32) {
	for _, ids := range lists {
		for _, id := range ids {
			if m.has(id) {
				continue
			}
			m.mark(id)
			out = append(out, id)
		}
	}
	return out
}

// region is a run of slots. Its size is a power of two.
type region struct {
	base, size uint32
}

// regions hands out runs of slots from an array. Freed runs are kept by size and
// split or reused; slot 0 is never handed out, so base 0 means none.
type regions struct {
	next  uint32
	max   uint32
	free  [33][]uint32 // bases, by the exponent of the size
	inUse uint32
	grow  func(next uint32) error // as that of ids
}

func newRegions(size int) *regions { return &regions{next: 1, max: uint32(size)} }

// reserve takes a run of at least n slots, or returns an error that wraps
// ErrFull.
func (r *regions) reserve(n uint32) (region, error) {
	size, exp := ceilPow2(n)
	for e := exp; e < len(r.free); e++ {
		if len(r.free[e]) == 0 {
			continue
		}
		base := r.pop(e)
		for ; e > exp; e-- { // keep the lower half, free the upper
			r.free[e-1] = append(r.free[e-1], base+1<<(e-1))
		}
		r.inUse += size
		return region{base, size}, nil
	}
	if uint64(r.next)+uint64(size) > uint64(r.max) {
		return region{}, fmt.Errorf("map slots has %d of %d entries in use, a table of %d does not fit: %w",
			r.inUse, r.max, n, dataplane.ErrFull)
	}
	if r.grow != nil {
		if err := r.grow(r.next + size); err != nil {
			return region{}, fmt.Errorf("map slots: %w", err)
		}
	}
	base := r.next
	r.next += size
	r.inUse += size
	return region{base, size}, nil
}

func (r *regions) pop(exp int) uint32 {
	l := r.free[exp]
	base := l[len(l)-1]
	r.free[exp] = l[:len(l)-1]
	return base
}

// release gives a run back. Nothing may refer to it any more.
func (r *regions) release(g region) {
	if g.size == 0 {
		return
	}
	_, exp := ceilPow2(g.size)
	r.free[exp] = append(r.free[exp], g.base)
	r.inUse -= g.size
}

// adopt marks exactly the given runs as used, for a start with pinned maps.
func (r *regions) adopt(used []region) {
	slices.SortFunc(used, func(a, b region) int { return int(a.base) - int(b.base) })
	*r = regions{next: 1, max: r.max, grow: r.grow}
	for _, g := range used {
		r.freeGap(r.next, g.base)
		r.next = g.base + g.size
		r.inUse += g.size
	}
}

// freeGap frees the slots [from, to) as runs of powers of two.
func (r *regions) freeGap(from, to uint32) {
	for exp := len(r.free) - 2; exp >= 0; exp-- {
		for to-from >= 1<<exp {
			r.free[exp] = append(r.free[exp], from)
			from += 1 << exp
		}
	}
}
