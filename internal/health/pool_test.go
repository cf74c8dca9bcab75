// SPDX-License-Identifier: Apache-2.0

package health

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// pool returns a pool of n backends: addr(0), addr(1) and so on.
func pool(n int) (list []lb.Backend) {
	for i := range n {
		list = append(list, lb.Backend{Addr: addr(i), Weight: lb.DefaultWeight})
	}
	return list
}

// TestRule: p is a backend that a probe speaks against, c one of which connections tell, z
// has weight 0 and is spoken against, 0 has weight 0, w works. Connections told of those
// that come later earlier.
func TestRule(t *testing.T) {
	const none = lb.NoPercent
	for _, tc := range []struct {
		pool    string
		max     lb.Percent
		panic   lb.Percent
		out     string // x: it is out, !: it is ejected and takes connections
		because string // of the ignored
	}{
		{"", 30, 25, "", ""},
		{"w", 30, 25, ".", ""},
		{"www", 30, 25, "...", ""},
		{"p", 30, none, "!", "it is the only one"},
		{"c", 30, none, "!", "it is the only one"},
		{"pw", 30, 25, "x.", ""},
		{"cw", 30, 25, "x.", ""},
		{"pp", 30, none, "!!", "none of 2 would be left"},
		{"cc", 30, none, "!x", "at most 1 of 2 may be out for what became of connections"},
		{"cc", 100, none, "!x", "none of 2 would be left"},
		{"ccc", 100, none, "!xx", "none of 3 would be left"},
		{"pc", 30, none, "x!", "none of 2 would be left"},
		{"pppw", 30, 25, "xxx.", ""},
		{"ppppw", 30, 25, "!!!!.", "only 1 of 5 would be left, fewer than 25 %"},
		{"ppppw", 30, none, "xxxx.", ""},
		{"pppw", 30, 50, "!!!.", "only 1 of 4 would be left, fewer than 50 %"},
		{"pwww", 30, 100, "!...", "only 3 of 4 would be left, fewer than 100 %"},
		{"ppww", 30, 50, "xx..", ""},
		{"cccwwwwwww", 30, 25, "xxx.......", ""},
		{"ccccwwwwww", 30, 25, "!xxx......", "at most 3 of 10 may be out for what became of connections"},
		{"ccccwwwww", 30, 25, "!!xx.....", "at most 2 of 9 may be out for what became of connections"},
		{"cww", 10, 25, "x..", ""},
		{"cww", none, 25, "!..", "at most 0 of 3 may be out for what became of connections"},
		{"pppcw", 30, 25, "xxx!.", "only 1 of 5 would be left, fewer than 25 %"},
		{"pcww", 30, 25, "xx..", ""},
		{"ppppc", 30, 25, "!!!!!", "only 1 of 5 would be left, fewer than 25 %"},
		{"z", 30, 25, ".", ""},
		{"zp", 30, 25, ".!", "it is the only one"},
		{"z0pw", 30, 25, "..x.", ""},
		{"000p", 30, none, "...!", "it is the only one"},
	} {
		h := testHealth(lb.ProbeTCP, func(h *lb.Health) { h.MaxEjected, h.Panic = tc.max, tc.panic })
		backends, votes := pool(len(tc.pool)), map[netip.AddrPort]vote{addr(999): {}}
		for i, c := range tc.pool {
			since := epoch.Add(-time.Duration(i) * time.Second)
			switch c {
			case 'p', 'c':
				votes[addr(i)] = vote{c == 'c', since}
			case 'z':
				votes[addr(i)] = vote{false, since}
				backends[i].Weight = 0
			case '0':
				backends[i].Weight = 0
			}
		}
		r := rule(backends, votes, &h)
		got := ""
		for i := range tc.pool {
			switch why, ignored := r.ignored[addr(i)]; {
			case r.out[addr(i)] && ignored:
				got += "?"
			case r.out[addr(i)]:
				got += "x"
			case ignored:
				got += "!"
				if why != tc.because {
					t.Errorf("%s, %d %%, %d %%: ignored because %q, want %q", tc.pool, tc.max, tc.panic, why, tc.because)
				}
			default:
				got += "."
			}
		}
		if got != tc.out {
			t.Errorf("%s, %d %%, %d %%: %s, want %s", tc.pool, tc.max, tc.panic, got, tc.out)
		}
	}
}

// TestRuleProperties: no pool is emptied, or brought below its bounds; nobody is brought
// in; each vote is heeded or ignored; the order of things does not matter.
func TestRuleProperties(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 5000 {
		backends, votes := pool(rnd.IntN(12)), map[netip.AddrPort]vote{}
		n := 0
		for i := range backends {
			backends[i].Weight = uint16(rnd.IntN(3))
			n += int(min(backends[i].Weight, 1))
		}
		for i := range 14 {
			if rnd.IntN(2) == 0 {
				votes[addr(i)] = vote{rnd.IntN(2) == 0, epoch.Add(time.Duration(rnd.IntN(3)))}
			}
		}
		h := testHealth(lb.ProbeTCP, func(h *lb.Health) {
			h.MaxEjected, h.Panic = lb.Percent(rnd.IntN(102)-1), lb.Percent(rnd.IntN(102)-1)
		})
		r := rule(backends, votes, &h)
		about := fmt.Sprintf("%v, votes %v, %d %%, %d %%: %+v", backends, votes, h.MaxEjected, h.Panic, r)
		left := n - len(r.out)
		if n > 0 && left < 1 || len(r.out) > 0 && left*100 < n*int(max(h.Panic, 0)) {
			t.Fatalf("%d of %d are left: %s", left, n, about)
		}
		seen := 0
		for _, be := range backends {
			v, spoken := votes[be.Addr]
			_, ignored := r.ignored[be.Addr]
			if (r.out[be.Addr] || ignored) != (spoken && be.Weight > 0) || r.out[be.Addr] && ignored {
				t.Fatalf("%s: %s", be.Addr, about)
			}
			if r.out[be.Addr] && v.passive {
				seen++
			}
		}
		if seen > max(1, h.MaxEjected.Of(n)) {
			t.Fatalf("%d are out for connections: %s", seen, about)
		}
		for _, drain := range []bool{false, true} {
			checkApplied(t, backends, r.apply(backends, drain), r, drain)
		}
		shuffled := slices.Clone(backends)
		rnd.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if again := rule(shuffled, votes, &h); !maps.Equal(again.out, r.out) || !maps.Equal(again.ignored, r.ignored) {
			t.Fatalf("in another order %+v: %s", again, about)
		}
	}
}

// checkApplied checks that got is backends without those that are out, in the same order.
func checkApplied(t *testing.T, backends, got []lb.Backend, r ruling, drain bool) {
	t.Helper()
	var want []lb.Backend
	for _, be := range backends {
		if r.out[be.Addr] {
			be.Weight = 0
			if drain {
				continue
			}
		}
		want = append(want, be)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%v becomes %v, want %v", backends, got, want)
	}
	if len(r.out) == 0 && len(got) > 0 && &got[0] != &backends[0] {
		t.Fatalf("a copy where nothing is out")
	}
}
