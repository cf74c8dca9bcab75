// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// backendAddr returns the address of the backend with a number.
func backendAddr(f lb.Family, number int) netip.AddrPort {
	if f == lb.IPv6 {
		b := [16]byte{0xfd, 0, 1}
		binary.BigEndian.PutUint32(b[12:], uint32(number))
		return netip.AddrPortFrom(netip.AddrFrom16(b), 8080)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(number >> 8), byte(number)}), 8080)
}

// newPool returns a pool of the backends with the given numbers. Without weights all
// have the default.
func newPool(t testing.TB, algorithm string, f lb.Family, numbers []int, weights []uint16) poolSpec {
	t.Helper()
	p := poolSpec{name: "LBP-C-0123456789abcdef", family: f, proto: lb.TCP, seed: 42, bpf: true}
	var ms []algo.Member
	for i, n := range numbers {
		b := lb.Backend{Addr: backendAddr(f, n), Weight: lb.DefaultWeight}
		if weights != nil {
			b.Weight = weights[i]
		}
		p.backends = append(p.backends, b)
		ms = append(ms, algo.Member{ID: backendID(b.Addr), Weight: b.Weight})
	}
	var err error
	if p.table, err = algo.Build(algorithm, ms); err != nil {
		t.Fatal(err)
	}
	p.to = func(i int) string { return fmt.Sprintf("-p tcp -j DNAT --to-destination %s", p.backends[i].Addr) }
	return p
}

// upTo returns 0, 1, ... n-1.
func upTo(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// tracerOf returns a tracer of a pool.
func tracerOf(t testing.TB, p poolSpec) *tracer {
	t.Helper()
	chains, _ := renderPool(p)
	tr, err := newTracer(chains)
	if err != nil {
		t.Fatal(err)
	}
	tr.random = rand.New(rand.NewPCG(1, 2)).Uint32
	return tr
}

// odds walks through rules with every random choice at once. It returns the probability
// of each backend and the mean number of rules that a packet looks at. Turns count as
// chances.
func odds(t *testing.T, tr *tracer, name string) (shares map[netip.AddrPort]float64, looks float64) {
	t.Helper()
	shares = map[netip.AddrPort]float64{}
	var follow func(name string, chance float64)
	follow = func(name string, chance float64) {
		for _, r := range tr.chains[name] {
			looks += chance
			part := 1.0
			for _, m := range r.matches {
				var n float64
				if _, err := fmt.Sscanf(m.form, "--probability %g", &n); err == nil {
					part *= n / (1 << 31)
				} else if _, err := fmt.Sscanf(m.form, "--every %g", &n); err == nil {
					part /= n
				}
			}
			if r.chain != "" {
				follow(r.chain, chance*part)
			} else {
				shares[r.to] += chance * part
			}
			chance *= 1 - part
		}
		if chance > 0 {
			t.Errorf("chain %s: %g of what comes to it goes nowhere", name, chance)
		}
	}
	follow(name, 1)
	return shares, looks
}

func TestSharesAreExact(t *testing.T) {
	const seed = 5
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, n := range []int{1, 2, 3, 16, 17, 64, 100, 257, 1000, 5000} {
		weights := make([]uint16, n)
		for i := range weights {
			if rng.IntN(4) > 0 {
				weights[i] = uint16(1 + rng.IntN(1000))
			}
		}
		weights[n/2] = 100
		p := newPool(t, "random", lb.IPv4, upTo(n), weights)
		p.shares = make([]float64, n)
		var sum float64
		for i, w := range weights {
			p.shares[i] = float64(w)
			sum += float64(w)
		}
		tr := tracerOf(t, p)
		got, _ := odds(t, tr, p.name)
		for i, b := range p.backends {
			if want := p.shares[i] / sum; math.Abs(got[b.Addr]-want) > 0x1p-30 {
				t.Errorf("seed %d, %d backends: backend %d has %.12f, want %.12f", seed, n, i, got[b.Addr], want)
			}
			if _, ok := got[b.Addr]; ok != (weights[i] > 0) {
				t.Errorf("seed %d, %d backends: backend %d of weight %d has a rule: %t", seed, n, i, weights[i], ok)
			}
		}
	}
}

// TestBudgets: how many rules a pool has, and how many of them a connection looks at.
func TestBudgets(t *testing.T) {
	for _, tc := range []struct {
		algorithm string
		n, rules  int
		looks     float64
	}{
		{"random", 1, 1, 1}, {"random", 10, 10, 5.5}, {"random", 100, 108, 12}, {"random", 1000, 1075, 20}, {"random", 5000, 5600, 20},
		{"round-robin", 1, 1, 1}, {"round-robin", 10, 10, 5.5}, {"round-robin", 64, 64, 33}, {"round-robin", 5000, 5600, 20},
	} {
		p := newPool(t, tc.algorithm, lb.IPv4, upTo(tc.n), nil)
		chains, _ := renderPool(p)
		_, looks := odds(t, tracerOf(t, p), p.name)
		if rules := countRules(chains); rules > tc.rules || looks > tc.looks+0.01 {
			t.Errorf("%s, %d backends: %d rules, %.1f looked at; want at most %d, %.1f", tc.algorithm, tc.n, rules, looks, tc.rules, tc.looks)
		}
	}
}

func countRules(chains []chain) int {
	n := 0
	for _, c := range chains {
		n += len(c.rules)
	}
	return n
}

// TestFewChainsChange: a backend that leaves changes one chain of each level.
func TestFewChainsChange(t *testing.T) {
	for _, tc := range []struct{ n, want int }{{10, 1}, {100, 2}, {1000, 3}, {5000, 4}} {
		before, _ := renderPool(newPool(t, "random", lb.IPv4, upTo(tc.n), nil))
		after, _ := renderPool(newPool(t, "random", lb.IPv4, upTo(tc.n)[1:], nil))
		old := map[string]string{}
		for _, c := range before {
			old[c.name] = strings.Join(c.rules, "\n")
		}
		changed := 0
		for _, c := range after {
			if old[c.name] != strings.Join(c.rules, "\n") {
				changed++
			}
		}
		if changed > tc.want {
			t.Errorf("one of %d backends left: %d of %d chains changed, want at most %d", tc.n, changed, len(after), tc.want)
		}
	}
}

func TestPoolWithoutBackends(t *testing.T) {
	for _, weights := range [][]uint16{{}, {0}, {0, 0, 0}} {
		for _, name := range algo.Names() {
			p := newPool(t, name, lb.IPv4, upTo(len(weights)), weights)
			chains, approximation := renderPool(p)
			if len(chains) != 1 || chains[0].name != p.name || len(chains[0].rules) > 0 || approximation != "" {
				t.Errorf("%s of %v: %v, %q, want one chain without rules", name, weights, chains, approximation)
			}
		}
	}
}

func TestAnnouncements(t *testing.T) {
	for _, tc := range []struct {
		algorithm string
		weights   []uint16
		bpf       bool
		want      string // begin; "" nothing
	}{
		{"random", []uint16{1, 2}, true, ""},
		{"round-robin", []uint16{1, 2}, true, ""},
		{"round-robin", []uint16{251, 241, 239}, true, "turns by shares"},
		{"round-robin", make([]uint16, 65), true, "more than 64 backends"},
		{"round-robin", make([]uint16, 64), true, ""},
		{"hash", []uint16{1, 2}, true, ""},
		{"ip-hash", []uint16{1, 2}, false, "no hash"},
		{"power-of-two", []uint16{1, 2}, true, "power-of-two by shares"},
		{"least-connection", []uint16{1, 2}, true, "least-connection by shares"},
		{"least-time", []uint16{1, 2}, true, "least-time by shares"},
		{"least-time", []uint16{1, 0}, true, ""},
	} {
		if tc.weights[0] == 0 {
			for i := range tc.weights {
				tc.weights[i] = 7
			}
		}
		p := newPool(t, tc.algorithm, lb.IPv4, upTo(len(tc.weights)), tc.weights)
		p.bpf = tc.bpf
		if _, got := renderPool(p); !strings.HasPrefix(got, tc.want) || got != "" && tc.want == "" {
			t.Errorf("%s of %d backends, bpf %t: %q, want %q", tc.algorithm, len(tc.weights), tc.bpf, got, tc.want)
		}
	}
}

// TestPoolsAreAsWritten compares pools of each kind with testdata/pool-*.golden.
func TestPoolsAreAsWritten(t *testing.T) {
	weights := []uint16{5, 3, 0, 1}
	for name, p := range map[string]poolSpec{
		"random-equal":     newPool(t, "random", lb.IPv4, upTo(3), nil),
		"random-weights":   newPool(t, "random", lb.IPv6, upTo(4), weights),
		"random-groups":    newPool(t, "random", lb.IPv4, upTo(20), nil),
		"turns-equal":      newPool(t, "round-robin", lb.IPv4, upTo(3), nil),
		"turns-weights":    newPool(t, "round-robin", lb.IPv4, upTo(4), weights),
		"turns-groups":     newPool(t, "round-robin", lb.IPv4, upTo(65), nil),
		"hash":             newPool(t, "ip-hash", lb.IPv4, upTo(4), weights),
		"hash-6":           newPool(t, "ip-hash", lb.IPv6, upTo(2), nil),
		"hash-ranks":       newPool(t, "hash", lb.IPv4, upTo(40), nil),
		"least-connection": newPool(t, "least-connection", lb.IPv4, upTo(4), weights),
		"one":              newPool(t, "least-time", lb.IPv4, upTo(1), nil),
	} {
		chains, approximation := renderPool(p)
		got := "# " + approximation + "\n"
		for _, c := range chains {
			got += ":" + c.name + "\n"
			for _, r := range c.rules {
				got += "-A " + c.name + " " + r + "\n"
			}
		}
		golden(t, "pool-"+name, got)
	}
}
