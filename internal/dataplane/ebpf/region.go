// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"slices"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// A region holds one table: a head, the backends, and what the kind needs. See
// struct slot in bpf/lib/types.h; the constants here are those of that file.
const (
	headSlots  = 5
	headHow    = 0 // order_len, how
	headMore   = 1 // seq_start, starters
	headPrefix = 2 // prefix4, prefix6
	headName   = 3 // two slots

	howKind         = 0xff
	howVerdictShift = 8
	howAlias        = 1 << 16
	howFactors      = 1 << 17
	howBounds       = 1 << 18
	howCostShift    = 20
	howSignalShift  = 22
	howKeyShift     = 24
	howField        = 3

	noPlace = 1<<16 - 1
)

// head is what a region begins with.
type head struct {
	how, order, seqStart, starters uint32
	prefix4, prefix6               uint32
	name                           string // the algorithm's, at most 16 bytes
}

// headOf returns the head of the region that begins with slots.
func headOf(slots []lbSlot) head {
	h := head{
		how: slots[headHow].Alias, order: slots[headHow].Backend,
		seqStart: slots[headMore].Backend, starters: slots[headMore].Alias,
		prefix4: slots[headPrefix].Backend, prefix6: slots[headPrefix].Alias,
	}
	for _, s := range slots[headName:headSlots] {
		for _, w := range [2]uint32{s.Backend, s.Alias} {
			for ; w > 0; w >>= 8 {
				h.name += string(rune(w & 0xff))
			}
		}
	}
	return h
}

// slots returns h as the kernel reads it.
func (h head) slots() [headSlots]lbSlot {
	var name [16]byte
	copy(name[:], h.name)
	word := func(i int) (w uint32) {
		for k := range 4 {
			w |= uint32(name[4*i+k]) << (8 * k)
		}
		return w
	}
	return [headSlots]lbSlot{
		{Backend: h.order, Alias: h.how},
		{Backend: h.seqStart, Alias: h.starters},
		{Backend: h.prefix4, Alias: h.prefix6},
		{Backend: word(0), Alias: word(1)},
		{Backend: word(2), Alias: word(3)},
	}
}

func (h head) kind() algo.Kind       { return algo.Kind(h.how & howKind) }
func (h head) cost() algo.Cost       { return algo.Cost(h.how >> howCostShift & howField) }
func (h head) verdict() lb.Verdict   { return lb.Verdict(h.how >> howVerdictShift & 0xff) }
func (h head) hashKey() lb.HashKey   { return lb.HashKey(h.how >> howKeyShift & howField) }
func (h head) has(flag uint32) bool  { return h.how&flag != 0 }
func pairs(n uint32) (slots uint32)  { return (n + 1) / 2 }
func groups(n uint32) (count uint32) { return (n + algo.GroupMembers - 1) / algo.GroupMembers }

// layout is where the parts of a region of n backends are, from its start.
type layout struct {
	order, factors, starters uint32
	bounds                   uint32 // from here on the kernel writes
	end                      uint32
}

func (h head) layout(n uint32) (l layout) {
	l.order = headSlots + n
	l.factors = l.order + (h.order+3)/4
	l.starters = l.factors
	if h.has(howFactors) {
		l.starters += pairs(n)
	}
	l.bounds = l.starters + pairs(h.starters)
	l.end = l.bounds
	if h.has(howBounds) {
		l.end += 1 + groups(n)
	}
	return l
}

// headFor returns the head of a pool's region.
func headFor(b lb.Balance, p *dataplane.Pool) head {
	t := p.Table
	h := head{
		how:      uint32(t.Kind) | uint32(p.Empty)<<howVerdictShift | uint32(t.Cost)<<howCostShift,
		order:    uint32(len(t.Order)),
		starters: uint32(len(t.Starters)),
		name:     b.Algorithm,
	}
	if t.Alias != nil {
		h.how |= howAlias
	}
	if t.Factors != nil {
		h.how |= howFactors
	}
	if t.Kind == algo.Least && t.Cost == algo.Conns && t.N > algo.GroupMembers {
		h.how |= howBounds
	}
	if t.Cost == algo.Time {
		h.how |= uint32(b.Signal+1) << howSignalShift
	}
	if t.Kind == algo.Hash {
		h.how |= uint32(b.HashKey) << howKeyShift
		h.prefix4, h.prefix6 = 32, 128
		if b.Prefix4 > 0 {
			h.prefix4 = uint32(b.Prefix4)
		}
		if b.Prefix6 > 0 {
			h.prefix6 = uint32(b.Prefix6)
		}
	}
	return h
}

// render writes a pool as the kernel reads it. What the kernel writes is zero:
// bounds are not known.
func render(b lb.Balance, p *dataplane.Pool, ids []uint32) []lbSlot {
	h, t := headFor(b, p), p.Table
	content := make([]lbSlot, 0, h.layout(uint32(len(ids))).end)
	for _, s := range h.slots() {
		content = append(content, s)
	}
	for i, id := range ids {
		s := lbSlot{Backend: id}
		if t.Alias != nil {
			s.Alias = t.Alias[i]
		}
		content = append(content, s)
	}
	for chunk := range slices.Chunk(t.Order, 4) {
		var w uint64
		for i, index := range chunk {
			w |= uint64(index) << (16 * i)
		}
		content = append(content, lbSlot{Backend: uint32(w), Alias: uint32(w >> 32)})
	}
	content = appendPairs(appendPairs(content, t.Factors), t.Starters)
	return content[:cap(content)]
}

// appendPairs packs words, two to a slot.
func appendPairs(content []lbSlot, words []uint32) []lbSlot {
	for pair := range slices.Chunk(words, 2) {
		s := lbSlot{Backend: pair[0]}
		if len(pair) > 1 {
			s.Alias = pair[1]
		}
		content = append(content, s)
	}
	return content
}

// sameContent says whether a region has what content says, apart from what the
// kernel writes and where the turns of a sequence start.
func sameContent(old, content []lbSlot, n uint32) bool {
	end := headOf(content).layout(n).bounds
	if uint32(len(old)) < end {
		return false
	}
	start := content[headMore]
	start.Backend = old[headMore].Backend
	return slices.Equal(old[:headMore], content[:headMore]) && old[headMore] == start &&
		slices.Equal(old[headPrefix:end], content[headPrefix:end])
}

// tableOf reads a region back, with the table that was rendered into it.
func tableOf(slots []lbSlot, n uint32) (head, algo.Table) {
	h := headOf(slots)
	l := h.layout(n)
	t := algo.Table{Kind: h.kind(), Cost: h.cost(), N: n}
	if h.has(howAlias) {
		for _, s := range slots[headSlots:l.order] {
			t.Alias = append(t.Alias, s.Alias)
		}
	}
	for i := range h.order {
		s := slots[l.order+i/4]
		w := uint64(s.Alias)<<32 | uint64(s.Backend)
		t.Order = append(t.Order, uint16(w>>(16*(i%4))))
	}
	if h.has(howFactors) {
		t.Factors = unpack(slots[l.factors:l.starters], n)
	}
	if h.starters > 0 {
		t.Starters = unpack(slots[l.starters:l.bounds], h.starters)
	}
	return h, t
}

// unpack returns the first n words of slots.
func unpack(slots []lbSlot, n uint32) []uint32 {
	words := make([]uint32, 0, n+1)
	for _, s := range slots {
		words = append(words, s.Backend, s.Alias)
	}
	return words[:n]
}

// poolWord is a pool as the kernel stores it: n backends at base.
func poolWord(base, n uint32) uint64 { return uint64(n)<<32 | uint64(base) }

func poolLen(word uint64) uint32 { return uint32(word >> 32) }
