// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/algo"
)

func TestTurnsAreExact(t *testing.T) {
	one, big := map[string]int{"a": 1, "b": 1, "c": 1}, map[string]int{"a": 300, "b": 200, "c": 100}
	for _, tc := range []struct {
		weights map[string]int
		n       int
		answers map[string]int
		exact   bool
	}{
		{one, 12, map[string]int{"a": 4, "b": 4, "c": 4}, true},
		{one, 12, map[string]int{"a": 5, "b": 4, "c": 3}, false},
		{one, 12, map[string]int{"a": 6, "b": 6}, false},
		{one, 10, map[string]int{"a": 4, "b": 3, "c": 3}, true},
		{one, 10, map[string]int{"a": 5, "b": 3, "c": 2}, false},
		{big, 12, map[string]int{"a": 6, "b": 4, "c": 2}, true},
		{big, 12, map[string]int{"a": 4, "b": 4, "c": 4}, false},
		{big, 9, map[string]int{"a": 5, "b": 3, "c": 1}, true},
		{big, 9, map[string]int{"a": 4, "b": 3, "c": 2}, true}, // within a place of each share
		{big, 9, map[string]int{"a": 7, "b": 2}, false},
	} {
		r := &row{svc: &service{algorithm: "round-robin"}, n: tc.n, answers: tc.answers, want: want{weights: tc.weights}}
		if r.checkCounts(turns(tc.weights, tc.n)); (len(r.faults) == 0) != tc.exact {
			t.Errorf("weights %v, %d connections as %v: faults %v, want exact %t", tc.weights, tc.n, tc.answers, r.faults, tc.exact)
		}
	}
}

// The demo must accept any stretch of the order that lbproxy writes down.
func TestAnyStretchOfTheOrderIsInTurn(t *testing.T) {
	const seed = 7
	rng := rand.New(rand.NewPCG(seed, seed))
	for range 200 {
		ws := map[string]int{}
		var members []algo.Member
		for i := range 1 + rng.IntN(5) {
			w := 1 + rng.IntN(1+rng.IntN(400))
			ws[string(rune('a'+i))] = w
			members = append(members, algo.Member{ID: uint64(i), Weight: uint16(w)})
		}
		table, err := algo.Build("round-robin", members)
		if err != nil {
			t.Fatal(err)
		}
		n := 1 + rng.IntN(100)
		if rng.IntN(2) == 0 {
			n = inTurn(ws)
		}
		got, start := map[string]int{}, rng.IntN(1000)
		for i := range n {
			got[string(rune('a'+algo.Pick(table, algo.Input{Seq: uint32(start + i)})))]++
		}
		for pod, s := range turns(ws, n) {
			if !s.holds(got[pod]) {
				t.Errorf("seed %d, weights %v, %d connections: %s got %d of %v, want %s", seed, ws, n, pod, got[pod], got, s)
			}
		}
	}
}

func TestChanceHasRoomButNotForOtherWeights(t *testing.T) {
	equal, weighted := map[string]int{"a": 100, "b": 100, "c": 100}, map[string]int{"a": 100, "b": 100, "c": 20}
	for _, tc := range []struct {
		weights map[string]int
		got     map[string]int
		ok      bool
	}{
		{equal, map[string]int{"a": 200, "b": 200, "c": 200}, true},
		{equal, map[string]int{"a": 240, "b": 180, "c": 180}, true},
		{equal, map[string]int{"a": 273, "b": 273, "c": 54}, false},
		{weighted, map[string]int{"a": 273, "b": 273, "c": 54}, true},
		{weighted, map[string]int{"a": 200, "b": 200, "c": 200}, false},
		{weighted, map[string]int{"a": 300, "b": 300, "c": 0}, false},
	} {
		r := &row{svc: &service{algorithm: "random"}, n: 600, answers: tc.got}
		if r.checkCounts(chances(tc.weights, 600)); (len(r.faults) == 0) != tc.ok {
			t.Errorf("weights %v, %v: faults %v, want ok %t", tc.weights, tc.got, r.faults, tc.ok)
		}
	}
}

func TestBinomialBounds(t *testing.T) {
	for _, tc := range []struct {
		n    int
		p    float64
		want span
	}{
		{10, 0, span{0, 0}},
		{10, 1, span{10, 10}},
		{10, 0.5, span{0, 10}}, // 2^-10 is nothing rare
		{36, 0.5, span{0, 36}}, // 2^-36 = 1.5e-11
		{37, 0.5, span{1, 36}}, // 2^-37 = 0.7e-11
		{600, 0, span{0, 0}},
	} {
		if got := binomial(tc.n, tc.p); got != tc.want {
			t.Errorf("%d draws of %g: got %s, want %s", tc.n, tc.p, got, tc.want)
		}
	}
}

func TestLeastConnectionFillsUp(t *testing.T) {
	ws := map[string]int{"a": 3, "b": 2, "c": 1}
	for _, tc := range []struct {
		open tally
		n    int
		want tally
	}{
		{tally{}, 60, tally{"a": 30, "b": 20, "c": 10}},
		{tally{"b": 20, "c": 10}, 30, tally{"a": 30}},
		{tally{"a": 30}, 30, tally{"b": 20, "c": 10}},
	} {
		if got := tc.open.fill(ws, tc.n); !maps.Equal(got, tc.want) {
			t.Errorf("beside %v: got %v, want %v", tc.open, got, tc.want)
		}
	}
	open := tally{"a": 2, "b": 1, "c": 1} // the next costs 3/3, 2/2, 2/1
	for pod, want := range map[string]bool{"a": true, "b": true, "c": false} {
		if got := open.cheapest(ws, pod); got != want {
			t.Errorf("%v: %s is cheapest: got %t, want %t", open, pod, got, want)
		}
	}
}

func TestWeightsComeFromPodThenSliceThenNode(t *testing.T) {
	services := loadDemo(t)
	for name, want := range map[string]string{
		"random": "backend1=100 backend2=100 canary=20", "round-robin": "backend1=3 backend2=2 backend3=1",
		"hash": "backend1=100 backend2=100 backend3=100",
	} {
		var got []string
		for _, e := range services[name].endpoints {
			got = append(got, e.pod+"="+strconv.Itoa(e.weight))
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("%s: got %s, want %s", name, text, want)
		}
	}
}

func TestSourceOfAHash(t *testing.T) {
	ip := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	for _, tc := range []struct {
		algorithm, prefix string
		addr              netip.Addr
		want              string
	}{
		{"hash", "", ip("10.1.2.3"), "10.1.2.3/32"},
		{"ip-hash", "24", ip("10.1.2.3"), "10.1.2.0/24"},
		{"ip-hash", "24", ip("fd00::1"), "fd00::1/128"},
		{"ip-hash", "24,64", ip("fd00::1"), "fd00::/64"},
	} {
		s := &service{algorithm: tc.algorithm, annotations: map[string]string{prefixKey: tc.prefix}}
		got, err := s.source(tc.addr)
		if err != nil || got.String() != tc.want {
			t.Errorf("%s %q of %s: got %s, %v, want %s", tc.algorithm, tc.prefix, tc.addr, got, err, tc.want)
		}
	}
}

func TestEveryAlgorithmIsShown(t *testing.T) {
	shown := map[string]bool{}
	for _, s := range loadDemo(t) {
		if s.showcase {
			shown[s.algorithm] = true
		}
	}
	for _, name := range algo.Names() {
		if !shown[name] {
			t.Errorf("no Service of the manifests shows %s", name)
		}
	}
	if len(algorithmOrder) != len(algo.Names()) {
		t.Errorf("the table has %d algorithms, lbproxy %d", len(algorithmOrder), len(algo.Names()))
	}
}

func TestAnnotationChangesAndComesBack(t *testing.T) {
	dir := t.TempDir() + "/manifests"
	if err := copyManifests("manifests", dir); err != nil {
		t.Fatal(err)
	}
	check := func(want string) {
		t.Helper()
		c, err := load(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range c.services {
			if s.name == "demo/round-robin" && (s.algorithm != want || len(s.endpoints) != 3) {
				t.Errorf("got %s over %d endpoints, want %s over 3", s.algorithm, len(s.endpoints), want)
			}
		}
	}
	check("round-robin")
	e, err := annotate(dir, &service{name: "demo/round-robin"}, algorithmKey, "least-connection")
	if err != nil {
		t.Fatal(err)
	}
	check("least-connection")
	if err := e.undo(); err != nil {
		t.Fatal(err)
	}
	check("round-robin")
}
