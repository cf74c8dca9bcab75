// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/net/bpf"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Pools of at most placeMembers backends that hash the source are rendered as places, as
// algo has them, but fewer: hashPlaces, a prime. With more backends ranks are better in
// everything. Pools of at most rankMembers have no groups. These limits are few, because a
// pool that grows from one to the next moves nearly all its connections' keys.
const (
	placeMembers = 32
	hashPlaces   = 1021
	rankMembers  = 64
	flatMembers  = 1024 // one level of groups
)

// hashes renders a hash: a connection is sent to the same backend by every node, and
// stays with it, mostly, when others come and go. That is by places where the source is
// all that counts, and by ranks otherwise.
//
// By ranks each backend, or group of backends, has a hash function of its own. The rule
// of the highest rank takes the connections whose hash is below its share, the next rule
// takes its part of the others, and so on. So each share is exact, one rule for each
// backend is enough, and who leaves the first rank takes nothing along. Who leaves the
// last one makes all others move up: then twice as many connections move as had to. A
// tree of groups adds as many for each level.
// Source: weighted distributed hash tables by skeletons, as in Lamping and Veach, "A
// fast, minimal memory, consistent hash algorithm", 2014, with members that have names.
func (r *poolRenderer) hashes() {
	weights := make([]float64, len(r.backends))
	for i, b := range r.backends {
		weights[i] = float64(b.Weight)
	}
	parts := r.parts(weights)
	slices.SortFunc(parts, func(a, b part) int { return cmp.Compare(a.id, b.id) })
	if r.balance.HashKey == lb.HashSource && len(parts) <= placeMembers {
		r.chains = []chain{{r.name, r.places(parts)}}
		return
	}
	var levels []int
	if n := len(parts); n > flatMembers {
		levels = []int{5, 5}
	} else if n > rankMembers {
		levels = []int{6}
	}
	r.tree(r.name, parts, levels, 0, r.rank, r.rank)
}

// rank renders a choice by ranks. The order of parts is that of their ids.
func (r *poolRenderer) rank(parts []part) []string {
	return firstOf(parts, 1<<32, func(p part, below uint64) string {
		h := r.hasher(uint32(p.id>>32), uint32(p.id))
		return h.match([]uint64{0, below})
	})
}

// places renders a choice by places: a backend has those that algo gives it. What the
// rules before have taken does not count as a gap between two places.
func (r *poolRenderer) places(parts []part) []string {
	members := make([]algo.Member, len(parts))
	for i, p := range parts {
		members[i] = algo.Member{ID: p.id, Weight: uint16(p.share)}
	}
	type place struct {
		owner uint16
		begin uint64
	}
	var left []place
	for i, owner := range algo.Owners(members, hashPlaces) {
		left = append(left, place{owner, (uint64(i)<<32 + hashPlaces - 1) / hashPlaces})
	}
	h := r.hasher()
	var rules []string
	for i, p := range parts[:len(parts)-1] {
		var bounds []uint64 // where places of the backend begin and end
		inside := false
		for _, at := range left {
			if is := int(at.owner) == i; is != inside {
				bounds, inside = append(bounds, at.begin), is
			}
		}
		if inside {
			bounds = append(bounds, 1<<32)
		}
		for some := range slices.Chunk(bounds, h.room()) {
			rules = append(rules, h.match(some)+p.end)
		}
		left = slices.DeleteFunc(left, func(at place) bool { return int(at.owner) == i })
	}
	return append(rules, parts[len(parts)-1].end)
}

// hasher makes BPF programs that compare a hash of what the pool's hash key says with
// bounds. All of them compute the same one, which is another one for other salts. The
// packet begins with the IP header; ports are where they are without IPv6 extensions.
type hasher struct{ code []bpf.Instruction } // leaves the hash in A

// Limits of a rule's program: of xt_bpf, and of iptables-restore for the length of an
// argument, which is 1023.
const (
	maxInstructions = 64
	maxBytecode     = 1000
)

// hasher returns a hasher. salt makes it independent of others of the same seed.
func (r *poolRenderer) hasher(salt ...uint32) *hasher {
	first := algo.HashWords(r.seed, append([]uint32{1}, salt...))
	last := algo.HashWords(r.seed, append([]uint32{2}, salt...))
	h := &hasher{}
	src, dst, words, prefix := uint32(12), uint32(16), uint32(1), uint32(r.balance.Prefix4)
	if r.family == lb.IPv6 {
		src, dst, words, prefix = 8, 24, 4, uint32(r.balance.Prefix6)
	}
	if prefix == 0 {
		prefix = 32 * words
	}
	h.ports(r.family, r.balance.HashKey, first)
	for i := range words {
		if prefix > 32*i {
			h.take(src+4*i, prefix-32*i, first)
			h.mix(0xcc9e2d51, 16)
		}
	}
	if r.balance.HashKey == lb.HashTuple {
		for i := range words {
			h.take(dst+4*i, 32, first)
		}
	}
	h.add(bpf.ALUOpConstant{Op: bpf.ALUOpXor, Val: last})
	h.mix(0x85ebca6b, 13)
	h.add(bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: 0xc2b2ae35})
	return h
}

func (h *hasher) add(code ...bpf.Instruction) { h.code = append(h.code, code...) }

// ports takes in the source port, or both, if they count.
func (h *hasher) ports(f lb.Family, key lb.HashKey, first uint32) {
	size := 2
	switch key {
	case lb.HashSource:
		return
	case lb.HashTuple:
		size = 4
	case lb.HashSourcePort:
	}
	if f == lb.IPv4 {
		h.add(bpf.LoadMemShift{Off: 0}, bpf.LoadIndirect{Off: 0, Size: size})
	} else {
		h.add(bpf.LoadAbsolute{Off: 40, Size: size})
	}
	h.add(bpf.ALUOpConstant{Op: bpf.ALUOpXor, Val: first})
	h.mix(0xcc9e2d51, 16)
}

// take takes in the leading bits of the word at an offset of the packet.
func (h *hasher) take(at, leading, first uint32) {
	again := len(h.code) > 0
	if again {
		h.add(bpf.TAX{})
	}
	h.add(bpf.LoadAbsolute{Off: at, Size: 4})
	if leading < 32 {
		h.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: ^uint32(0) << (32 - leading)})
	}
	if again {
		h.add(bpf.ALUOpX{Op: bpf.ALUOpXor})
	} else {
		h.add(bpf.ALUOpConstant{Op: bpf.ALUOpXor, Val: first})
	}
}

// mix makes all bits depend on each other. Three rounds of it with these numbers, of
// which the last one needs no shift as high bits decide, are those of MurmurHash3
// (Appleby, 2011).
func (h *hasher) mix(factor, shift uint32) {
	h.add(bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: factor}, bpf.TAX{},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: shift}, bpf.ALUOpX{Op: bpf.ALUOpXor})
}

// room returns how many bounds a program may have: an even number.
func (h *hasher) room() int {
	const longest = len(",53 0 63 4294967295")
	text := len(bytecode(h.program(nil)))
	return min(maxInstructions-2-len(h.code), (maxBytecode-text)/longest) &^ 1
}

// program returns a program that is true if the number of bounds that are no higher than
// the hash is odd. The bounds ascend; below the first one and from the last one on it is
// false. The first one may be 0, the last one 1<<32.
func (h *hasher) program(bounds []uint64) []bpf.Instruction {
	code := slices.Clone(h.code)
	end := len(code) + len(bounds) // where false is returned; true is after it
	for i, b := range bounds {
		skip := end - len(code) - 1
		no := skip + i%2
		if b == 1<<32 {
			code = append(code, bpf.Jump{Skip: uint32(no)})
			continue
		}
		code = append(code, bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: uint32(b), SkipFalse: uint8(no)})
	}
	return append(code, bpf.RetConstant{Val: 0}, bpf.RetConstant{Val: 1})
}

// match returns the beginning of a rule that matches where program says so.
func (h *hasher) match(bounds []uint64) string {
	return `-m bpf --bytecode "` + bytecode(h.program(bounds)) + `" `
}

// bytecode returns a program as iptables has it.
func bytecode(code []bpf.Instruction) string {
	raw, err := bpf.Assemble(code)
	if err != nil { // no input makes such a program
		panic(fmt.Sprintf("assemble a hash: %v", err))
	}
	text := strconv.AppendInt(nil, int64(len(raw)), 10)
	for _, ins := range raw {
		text = fmt.Appendf(text, ",%d %d %d %d", ins.Op, ins.Jt, ins.Jf, ins.K)
	}
	return string(text)
}
