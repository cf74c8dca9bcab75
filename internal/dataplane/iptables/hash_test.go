// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/bpf"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// hashPool returns a pool of the backends with the given numbers, equal in weight.
func hashPool(t testing.TB, key lb.HashKey, f lb.Family, numbers []int) poolSpec {
	p := newPool(t, "hash", f, numbers, nil)
	p.balance.HashKey = key
	return p
}

// hashWanted is what programs compute, in plain Go.
func hashWanted(p *poolSpec, pk *packet, salt ...uint32) uint32 {
	first := algo.HashWords(p.seed, append([]uint32{1}, salt...))
	last := algo.HashWords(p.seed, append([]uint32{2}, salt...))
	mix := func(h, factor uint32, shift int) uint32 {
		h *= factor
		return h ^ h>>shift
	}
	words := func(a netip.Addr) (out []uint32) {
		for b := a.AsSlice(); len(b) > 0; b = b[4:] {
			out = append(out, binary.BigEndian.Uint32(b))
		}
		return out
	}
	h, prefix := first, int(p.balance.Prefix4)
	if p.family == lb.IPv6 {
		prefix = int(p.balance.Prefix6)
	}
	if p.balance.HashKey == lb.HashSourcePort {
		h = mix(h^uint32(pk.src.Port()), 0xcc9e2d51, 16)
	}
	if p.balance.HashKey == lb.HashTuple {
		h = mix(h^(uint32(pk.src.Port())<<16|uint32(pk.dst.Port())), 0xcc9e2d51, 16)
	}
	src := words(algo.HashPrefix(pk.src.Addr(), p.balance.Prefix4, p.balance.Prefix6))
	for i, w := range src {
		if prefix == 0 || prefix > 32*i {
			h = mix(h^w, 0xcc9e2d51, 16)
		}
	}
	if p.balance.HashKey == lb.HashTuple {
		for _, w := range words(pk.dst.Addr()) {
			h ^= w
		}
	}
	return mix(h^last, 0x85ebca6b, 13) * 0xc2b2ae35
}

// caller returns the packet of caller number i, of sequential addresses and ports.
func caller(f lb.Family, i int) *packet {
	p := &packet{family: f, proto: lb.TCP, dst: netip.MustParseAddrPort("10.96.0.1:80")}
	addr := netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)})
	if f == lb.IPv6 {
		p.dst = netip.MustParseAddrPort("[fd00:96::1]:80")
		addr = netip.AddrFrom16([16]byte{0: 0xfd, 2: 2, 7: byte(i >> 8), 15: byte(i)})
	}
	p.src = netip.AddrPortFrom(addr, uint16(32768+i%28000))
	return p
}

// runProgram returns what a program says of a packet.
func runProgram(t *testing.T, code []bpf.Instruction, pk *packet) bool {
	t.Helper()
	vm, err := bpf.NewVM(code)
	if err != nil {
		t.Fatal(err)
	}
	n, err := vm.Run((&tracer{}).bytes(pk))
	if err != nil {
		t.Fatal(err)
	}
	return n != 0
}

// eachKey calls f for each form of program.
func eachKey(f func(name string, p *poolRenderer)) {
	for _, family := range []lb.Family{lb.IPv4, lb.IPv6} {
		for _, key := range []lb.HashKey{lb.HashSource, lb.HashSourcePort, lb.HashTuple} {
			for _, prefix := range []uint8{0, 1, 8, 24, 31, 32, 33, 48, 64, 127, 128} {
				if family == lb.IPv4 && prefix > 32 || key != lb.HashSource && prefix > 0 {
					continue
				}
				r := &poolRenderer{poolSpec: poolSpec{family: family, seed: 7, balance: lb.Balance{HashKey: key}}}
				if family == lb.IPv4 {
					r.balance.Prefix4 = prefix
				} else {
					r.balance.Prefix6 = prefix
				}
				f(fmt.Sprintf("%s of %s/%d", key, family, prefix), r)
			}
		}
	}
}

// TestProgramsHashAsWritten runs programs beside the same in Go. They fit into a rule.
func TestProgramsHashAsWritten(t *testing.T) {
	eachKey(func(name string, p *poolRenderer) {
		for i := range 300 {
			pk := caller(p.family, i*37)
			h := p.hasher(uint32(i), 5)
			want := uint64(hashWanted(&p.poolSpec, pk, uint32(i), 5))
			for _, tc := range []struct {
				bounds []uint64
				want   bool
			}{
				{[]uint64{want, want + 1}, true},
				{[]uint64{0, want}, false},
				{[]uint64{0, want + 1}, true},
				{[]uint64{want + 1, 1 << 32}, want == 1<<32},
				{[]uint64{want, 1 << 32}, true},
				{[]uint64{0, want / 2, want, 1 << 32}, true},
				{[]uint64{0, want / 2, want + 1, 1 << 32}, want == 0},
			} {
				code := h.program(tc.bounds)
				if got := runProgram(t, code, pk); got != tc.want {
					t.Fatalf("%s: bounds %v, hash %d: %t, want %t", name, tc.bounds, want, got, tc.want)
				}
			}
		}
		h := p.hasher()
		bounds := make([]uint64, h.room())
		for i := range bounds {
			bounds[i] = 1<<32 - 100 + uint64(i)
		}
		code := h.program(bounds)
		if h.room() < 4 || len(code) > 64 || len(bytecode(code)) > 1023 {
			t.Errorf("%s: room for %d bounds, %d instructions, %d characters", name, h.room(), len(code), len(bytecode(code)))
		}
	})
}

// TestHashDependsOnAllBits: one bit more or less in the caller's address changes each of
// the leading bits of the hash half of the time, and callers in sequence, as pods are,
// fill 64 equal parts of the range evenly.
func TestHashDependsOnAllBits(t *testing.T) {
	const n = 4096
	eachKey(func(name string, p *poolRenderer) {
		if p.balance.Prefix4+p.balance.Prefix6 > 0 {
			return
		}
		var parts [64]int
		for i := range n {
			parts[hashWanted(&p.poolSpec, caller(p.family, i))>>26]++
		}
		var chi float64
		for _, got := range parts {
			chi += math.Pow(float64(got)-n/64, 2) / (n / 64)
		}
		if chi > 115 { // of 63 degrees of freedom: one in 10,000
			t.Errorf("%s: chi-squared %.0f of 64 parts: %v", name, chi, parts)
		}
		for bit := range p.family.Unspecified().BitLen() {
			var flips [16]int
			for i := range 1000 {
				pk := caller(p.family, i)
				before := hashWanted(&p.poolSpec, pk)
				raw := pk.src.Addr().AsSlice()
				raw[bit/8] ^= 0x80 >> (bit % 8)
				addr, _ := netip.AddrFromSlice(raw)
				pk.src = netip.AddrPortFrom(addr, pk.src.Port())
				changed := before ^ hashWanted(&p.poolSpec, pk)
				for k := range flips {
					flips[k] += int(changed >> (31 - k) & 1)
				}
			}
			if lo, hi := slices.Min(flips[:]), slices.Max(flips[:]); lo < 350 || hi > 650 {
				t.Errorf("%s: bit %d of the source changes the leading bits of 1000 hashes %v times", name, bit, flips)
			}
		}
	})
}

// picksOf returns the backend of each of n callers, and the mean number of rules that
// they look at.
func picksOf(t *testing.T, p poolSpec, n int) (picks []netip.AddrPort, looks float64) {
	t.Helper()
	tr := tracerOf(t, p)
	for i := range n {
		picks = append(picks, tr.walk(p.name, caller(p.family, i)).to)
	}
	return picks, float64(tr.looks) / float64(n)
}

// TestHashMovesLittle measures how evenly callers are spread, and how many move without
// need when a backend leaves; by time reversed, that is also how many when one comes.
func TestHashMovesLittle(t *testing.T) {
	const callers = 4000
	for _, tc := range []struct {
		key    lb.HashKey
		n      int
		rules  int
		looks  float64
		most   float64 // load of the busiest backend, mean 1, with sampling noise
		excess float64 // mean part of all callers that moves without need
	}{
		{lb.HashSource, 3, 15, 11, 1.06, 0.01},
		{lb.HashSource, 10, 40, 23, 1.15, 0.02},
		{lb.HashSource, 32, 64, 34, 1.35, 0.03},
		{lb.HashSource, 100, 151, 30, 1.6, 0.02},
		{lb.HashTuple, 3, 3, 2.1, 1.06, 0.1},
		{lb.HashTuple, 10, 10, 5.6, 1.2, 0.09},
		{lb.HashTuple, 100, 151, 30, 1.6, 0.02},
		{lb.HashTuple, 3000, 4033, 40, 10, 0.002},
	} {
		all := upTo(tc.n)
		p := hashPool(t, tc.key, lb.IPv4, all)
		before, looks := picksOf(t, p, callers)
		count := map[netip.AddrPort]int{}
		most := 0
		for _, b := range before {
			count[b]++
			most = max(most, count[b])
		}
		var moved, must int
		leavers := min(tc.n, 4)
		for k := range leavers {
			gone := k * tc.n / leavers
			after, _ := picksOf(t, hashPool(t, tc.key, lb.IPv4, slices.Delete(slices.Clone(all), gone, gone+1)), callers)
			for i := range before {
				if before[i] != after[i] {
					moved++
				}
			}
			must += count[p.backends[gone].Addr]
		}
		chains, _ := renderPool(p)
		excess := float64(moved-must) / callers / float64(leavers)
		load := float64(most*tc.n) / callers
		t.Logf("%s, %d backends: %d rules, %.1f looked at, busiest %.2f, excess %.4f", tc.key, tc.n, countRules(chains), looks, load, excess)
		if countRules(chains) > tc.rules || looks > tc.looks || load > tc.most || excess > tc.excess {
			t.Errorf("%s, %d backends: %d rules, %.1f looked at, busiest %.2f, excess %.4f, want at most %d, %.1f, %.2f, %.4f",
				tc.key, tc.n, countRules(chains), looks, load, excess, tc.rules, tc.looks, tc.most, tc.excess)
		}
	}
}

// TestHashIsTheSameOnAllNodes: neither the order of backends nor the name of the pool
// says who is picked, but the seed and the backends do.
func TestHashIsTheSameOnAllNodes(t *testing.T) {
	for _, n := range []int{5, 40, 100} {
		numbers := upTo(n)
		want, _ := picksOf(t, hashPool(t, lb.HashSource, lb.IPv6, numbers), 500)
		slices.Reverse(numbers)
		p := hashPool(t, lb.HashSource, lb.IPv6, numbers)
		p.name = "LBP-L-0123456789abcdef"
		if got, _ := picksOf(t, p, 500); !slices.Equal(got, want) {
			t.Errorf("%d backends in another order: other picks", n)
		}
		p.seed++
		if got, _ := picksOf(t, p, 500); slices.Equal(got, want) {
			t.Errorf("%d backends: another seed gives the same picks", n)
		}
	}
}

// TestHashByPrefix: callers of one prefix go to one backend.
func TestHashByPrefix(t *testing.T) {
	for _, n := range []int{5, 40} {
		p := hashPool(t, lb.HashSource, lb.IPv4, upTo(n))
		p.balance.Prefix4 = 24
		picks, _ := picksOf(t, p, 256*40)
		seen := map[netip.AddrPort]bool{}
		for i, b := range picks {
			if b != picks[i&^255] {
				t.Fatalf("%d backends: callers %d and %d of one prefix go to %s and %s", n, i&^255, i, picks[i&^255], b)
			}
			seen[b] = true
		}
		if len(seen) < 4 {
			t.Errorf("%d backends: 40 prefixes go to %d of them", n, len(seen))
		}
	}
}

// TestHashFollowsWeights: shares are those of the weights, by ranks exactly.
func TestHashFollowsWeights(t *testing.T) {
	const callers = 20000
	for _, key := range []lb.HashKey{lb.HashSource, lb.HashSourcePort} {
		weights := []uint16{100, 50, 0, 10, 200}
		p := newPool(t, "hash", lb.IPv4, upTo(len(weights)), weights)
		p.balance.HashKey = key
		picks, _ := picksOf(t, p, callers)
		count := map[netip.AddrPort]int{}
		for _, b := range picks {
			count[b]++
		}
		for i, w := range weights {
			share := float64(w) / 360
			margin := 5*math.Sqrt(callers*share*(1-share)) + 0.02*share*callers
			if got := float64(count[p.backends[i].Addr]); math.Abs(got-share*callers) > margin {
				t.Errorf("%s: backend of weight %d has %.0f of %d callers, want %.0f +- %.0f", key, w, got, callers, share*callers, margin)
			}
		}
	}
}
