// SPDX-License-Identifier: Apache-2.0

package picktest

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
)

// checkVectors compares m with the golden vectors.
func checkVectors(t *testing.T, m *machine) {
	vs, err := ReadVectors("../testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(vs) == 0 {
		t.Fatal("there are no vectors")
	}
	for _, v := range vs {
		load(t, m, v.Table, v.Loads)
		got := make([]int, len(v.Draws))
		if err := m.PickAll(v.Inputs(), got); err != nil {
			t.Fatal(err)
		}
		for i := range got {
			if got[i] != v.Picks[i] {
				t.Errorf("%s of %v, loads %v, input %v: pick %d, want %d", v.Algorithm, v.Members, v.Loads, v.Draws[i], got[i], v.Picks[i])
			}
		}
	}
}

// checkRandom compares m with algo.Pick on random tables, loads and inputs.
func checkRandom(t *testing.T, m *machine, cases int) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range cases {
		v := randomVector(rng)
		compare(t, m, v)
		if t.Failed() {
			t.Fatalf("seed %d: %d members", seed, len(v.Members))
		}
	}
}

// compare compares m with algo.Pick on the inputs of v.
func compare(t *testing.T, m *machine, v Vector) {
	t.Helper()
	table, err := algo.Build(v.Algorithm, v.Members)
	if err != nil {
		t.Fatal(err)
	}
	load(t, m, table, v.Loads)
	ins := v.Inputs()
	got := make([]int, len(ins))
	if err := m.PickAll(ins, got); err != nil {
		t.Fatal(err)
	}
	for i, in := range ins {
		if want := algo.Pick(table, in); got[i] != want {
			t.Errorf("%s of %d members, input %v: pick %d, Go says %d", v.Algorithm, len(v.Members), v.Draws[i], got[i], want)
		}
	}
}

func load(t *testing.T, m *machine, table algo.Table, loads []algo.Load) {
	t.Helper()
	if err := m.Load(table); err != nil {
		t.Fatal(err)
	}
	if err := m.SetLoads(loads); err != nil {
		t.Fatal(err)
	}
}

// randomVector returns a case of up to 300 members. Loads are often equal, near
// the limits or large.
func randomVector(rng *rand.Rand) Vector {
	names := algo.Names()
	v := Vector{Algorithm: names[rng.IntN(len(names))], Members: make([]algo.Member, 1+rng.IntN(300))}
	if rng.IntN(3) == 0 {
		v.Members = v.Members[:1+rng.IntN(min(5, len(v.Members)))]
	}
	span, loads := 1+rng.IntN(1<<rng.IntN(17)), 1+rng.IntN(40)
	ramped := rng.IntN(3) == 0
	for i := range v.Members {
		m := algo.Member{ID: rng.Uint64(), Weight: uint16(min(rng.IntN(span+1), 65535))}
		if ramped && rng.IntN(2) == 0 {
			m.Ramp = uint16(rng.Uint32())
		}
		v.Members[i] = m
		l := algo.Load{Active: rng.Uint32N(uint32(loads)), Latency: rng.Uint32() >> rng.IntN(33), Idle: rng.Uint32() >> (8 + rng.IntN(24))}
		if rng.IntN(50) == 0 {
			l = algo.Load{Active: rng.Uint32() >> rng.IntN(10), Latency: 1<<32 - 1, Idle: 1<<32 - 1}
		}
		v.Loads = append(v.Loads, l)
	}
	for range 64 {
		d := Draw{Seq: rng.Uint32(), Hash: rng.Uint32()}
		for i := range d.Rand {
			d.Rand[i] = rng.Uint32()
		}
		v.Draws = append(v.Draws, d)
	}
	return v
}

// checkFunctions compares the hashes and the moving average.
func checkFunctions(t *testing.T, m *machine, cases int) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range cases {
		key := rng.Uint64() * uint64(rng.IntN(2))
		src, dst := randomAddr(rng), randomAddr(rng)
		port, dport, proto := rng.Uint32()>>rng.IntN(17), uint16(rng.Uint32()), uint8(rng.Uint32())
		words := append(append(addrWords(src), port), make([]uint32, 7)...)
		for _, tc := range []struct {
			op    pickOp
			words []uint32
			want  uint32
		}{
			{pickOpOP_SOURCE, words, algo.HashSource(key, src)},
			{pickOpOP_PORT, words, algo.HashSourcePort(key, src, port)},
			{pickOpOP_TUPLE, append(append(addrWords(src), addrWords(dst)...), port, uint32(dport), uint32(proto), 0),
				algo.HashTuple(key, src, port, netip.AddrPortFrom(dst, dport), proto)},
			{pickOpOP_LATENCY, append([]uint32{port, uint32(key), uint32(key >> 32)}, make([]uint32, 9)...), algo.NextLatency(port, uint32(key), uint32(key>>32))},
		} {
			m.words(tc.words...)
			if err := m.call(tc.op, key, 1); err != nil {
				t.Fatal(err)
			}
			if got := m.result(0); got != tc.want {
				t.Fatalf("seed %d: op %d of %v, key %#x: %#x, Go says %#x", seed, tc.op, tc.words, key, got, tc.want)
			}
		}
	}
}

func randomAddr(rng *rand.Rand) netip.Addr {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], rng.Uint64())
	binary.LittleEndian.PutUint64(b[8:], rng.Uint64())
	if rng.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16(b)
}

// addrWords returns an address as the kernel holds it.
func addrWords(a netip.Addr) []uint32 {
	b := a.As16()
	var words []uint32
	for i := 0; i < len(b); i += 4 {
		words = append(words, binary.LittleEndian.Uint32(b[i:]))
	}
	return words
}

func TestHostVectors(t *testing.T) {
	checkVectors(t, &newHost(t).machine)
}

func TestHostEqualsGo(t *testing.T) {
	h := newHost(t)
	checkRandom(t, &h.machine, 300)
	checkFunctions(t, &h.machine, 1000)
}

// FuzzHost compares the header, compiled for the host, with Go.
func FuzzHost(f *testing.F) {
	h := newHost(f)
	for seed := range uint64(8) {
		f.Add(seed, []byte{1, 2, 3}, uint32(0), uint32(1<<32-1))
	}
	f.Fuzz(func(t *testing.T, seed uint64, raw []byte, a, b uint32) {
		v := randomVector(rand.New(rand.NewPCG(seed, 1)))
		for i, x := range raw[:min(len(raw), len(v.Members))] {
			v.Members[i].Weight = uint16(x) * uint16(x)
			v.Loads[i].Active = a >> (x % 32)
			v.Loads[i].Latency = b >> (x % 32)
		}
		v.Draws = append(v.Draws, Draw{Rand: [5]uint32{a, b, b, a, a ^ b}, Seq: a, Hash: b})
		compare(t, &h.machine, v)
	})
}
