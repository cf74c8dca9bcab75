// SPDX-License-Identifier: Apache-2.0

package dptest

import (
	"net/netip"
	"testing"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// pods are the origins whose address backends and dataplane see as it is.
var pods = []Origin{PodHooked, PodUnhooked}

// algorithmRow is one promise of an algorithm.
type algorithmRow struct {
	name  string
	held  bool    // needs connections that end when they are closed
	exact Feature // that run needs; without it rough runs
	run   func(t *testing.T, e *env, from Origin)
	rough func(t *testing.T, e *env, from Origin)
}

var algorithmRows = []algorithmRow{
	{"hash picks what the table says for the source", false, FeatureReferenceHash, hashBySource, hashStays},
	{"ip-hash by prefix", false, FeatureReferenceHash, hashByPrefix, prefixStays},
	{"weight 0 takes none", false, "", weightZero, nil},
	{"least-connection takes the emptiest", true, FeatureExactLoad, leastTakesEmptiest, leastAvoidsLoaded},
	{"least-connection by weight", true, FeatureExactLoad, leastByWeight, leastAvoidsByWeight},
	{"power-of-two takes the emptier", true, FeatureExactLoad, twoTakesEmptier, twoAvoidsLoaded},
	{"any algorithm becomes any other", true, "", switches, nil},
}

// runAlgorithms checks whom each algorithm picks.
func runAlgorithms(t *testing.T, e *env) {
	e.dp = e.h.Dataplane(t)
	for _, row := range algorithmRows {
		for _, from := range pods {
			t.Run(row.name+", from "+string(from), func(t *testing.T) {
				if row.held {
					e.need(t, FeatureHeld)
					if e.proto != lb.TCP {
						return // without an end that packets tell
					}
				}
				e.need(t, Feature(from))
				e.sync(t, dataplane.Delta{Full: true})
				if row.exact != "" && !e.h.Supports(row.exact) {
					row.rough(t, e, from)
					return
				}
				row.run(t, e, from)
			})
		}
	}
	t.Run("hash spreads sources, and most stay", func(t *testing.T) {
		e.need(t, Feature(Outside))
		e.sync(t, dataplane.Delta{Full: true})
		hashSpreads(t, e)
	})
}

// source returns the address of an origin in the section's family.
func (e *env) source(from Origin) netip.Addr {
	for _, a := range e.addrs.Sources[from] {
		if lb.FamilyOf(a) == e.fam {
			return a
		}
	}
	return netip.Addr{}
}

// only fails unless n dials are all answered by want.
func (e *env) only(t *testing.T, from Origin, to netip.AddrPort, n int, want netip.AddrPort) {
	t.Helper()
	f, got := e.try(t, from, to, n)
	if got.Verdict != OK || got.Backends[want] != n {
		t.Errorf("%s: %s by %v, want all by %s", f, got.Verdict, got.Backends, want)
	}
}

// hashBySource dials from each pod: the reference says who answers, so hooked
// sockets and packets agree about an address.
func hashBySource(t *testing.T, e *env, from Origin) {
	fe := e.clusterIP(80)
	for _, name := range []string{"hash", "ip-hash"} {
		svc := e.balanced(t, name, "a", e.backends(0, 1, 2), fe)
		e.put(t, svc)
		i := algo.Pick(svc.Cluster.Table, algo.Input{Hash: algo.HashSource(0, e.source(from))})
		e.only(t, from, fe.Addr, 5, svc.Cluster.Backends[i].Addr)
	}
}

// hashByPrefix hashes so few bits of the source that both pods are one.
func hashByPrefix(t *testing.T, e *env, from Origin) {
	fe := e.clusterIP(80)
	for bits := range uint8(4) {
		svc := e.balanced(t, "ip-hash", "a", e.backends(0, 1, 2), fe)
		svc.Balance.Prefix4, svc.Balance.Prefix6 = 8+2*bits, 32+4*bits
		e.put(t, svc)
		src := algo.HashPrefix(e.source(from), svc.Balance.Prefix4, svc.Balance.Prefix6)
		if other := algo.HashPrefix(e.source(PodUnhooked), svc.Balance.Prefix4, svc.Balance.Prefix6); other != src {
			t.Fatalf("the pods %s and %s differ in their first bits", src, other)
		}
		i := algo.Pick(svc.Cluster.Table, algo.Input{Hash: algo.HashSource(0, src)})
		e.only(t, from, fe.Addr, 3, svc.Cluster.Backends[i].Addr)
	}
}

func weightZero(t *testing.T, e *env, from Origin) {
	fe := e.clusterIP(80)
	for _, name := range algo.Names() {
		bs := []lb.Backend{weighted(e.backend(0), 0), weighted(e.backend(1), 3), weighted(e.backend(2), 0)}
		e.put(t, e.balanced(t, name, "a", bs, fe))
		e.only(t, from, fe.Addr, 6, e.backend(1).Addr)
	}
}

// open holds a connection for as long as the row lasts.
func (e *env) open(t *testing.T, from Origin, to netip.AddrPort) Held {
	t.Helper()
	h := e.h.Open(t, Flow{From: from, To: to, Proto: e.proto, N: 1})
	t.Cleanup(h.Close)
	return h
}

// holds opens n connections and returns them by backend.
func (e *env) holds(t *testing.T, from Origin, to netip.AddrPort, n int) map[netip.AddrPort][]Held {
	t.Helper()
	got := map[netip.AddrPort][]Held{}
	for range n {
		h := e.open(t, from, to)
		got[h.Backend] = append(got[h.Backend], h)
	}
	return got
}

// held fails unless backend i holds want[i] connections.
func (e *env) held(t *testing.T, from Origin, got map[netip.AddrPort][]Held, want ...int) {
	t.Helper()
	for i, n := range want {
		if be := e.backend(i).Addr; len(got[be]) != n {
			t.Errorf("from %s: %s holds %d connections, want %d", from, be, len(got[be]), n)
		}
	}
}

func leastTakesEmptiest(t *testing.T, e *env, from Origin) {
	fe := e.clusterIP(80)
	e.put(t, e.balanced(t, "least-connection", "a", e.backends(0, 1, 2), fe))
	got := e.holds(t, from, fe.Addr, 6)
	e.held(t, from, got, 2, 2, 2)
	for i := range 3 {
		be := e.backend(i).Addr
		for _, h := range got[be] {
			h.Close()
		}
		for range 2 {
			if h := e.open(t, from, fe.Addr); h.Backend != be {
				t.Errorf("from %s: %s answered, want %s, which is empty", from, h.Backend, be)
			}
		}
	}
}

func leastByWeight(t *testing.T, e *env, from Origin) {
	fe := e.clusterIP(80)
	bs := []lb.Backend{weighted(e.backend(0), 300), weighted(e.backend(1), 100), weighted(e.backend(2), 0)}
	e.put(t, e.balanced(t, "least-connection", "a", bs, fe))
	e.held(t, from, e.holds(t, from, fe.Addr, 8), 6, 2, 0)
}

// twoTakesEmptier has two backends: both are compared each time.
func twoTakesEmptier(t *testing.T, e *env, from Origin) {
	fe := e.clusterIP(80)
	e.put(t, e.balanced(t, "power-of-two", "a", e.backends(0, 1), fe))
	got := e.holds(t, from, fe.Addr, 6)
	e.held(t, from, got, 3, 3)
	be := e.backend(1).Addr
	for _, h := range got[be] {
		h.Close()
	}
	for range 3 {
		if h := e.open(t, from, fe.Addr); h.Backend != be {
			t.Errorf("from %s: %s answered, want %s, which is empty", from, h.Backend, be)
		}
	}
}

// switches changes the algorithm under connections that last: they do, and the
// next connection is picked by the new one.
func switches(t *testing.T, e *env, from Origin) {
	fe, bs := e.clusterIP(80), e.backends(0, 1, 2)
	alone := []lb.Backend{weighted(e.backend(0), 0), e.backend(1), weighted(e.backend(2), 0)}
	for _, first := range algo.Names() {
		e.put(t, e.balanced(t, first, "a", bs, fe))
		h := e.open(t, from, fe.Addr)
		for _, next := range algo.Names() {
			e.put(t, e.balanced(t, next, "a", alone, fe))
			e.only(t, from, fe.Addr, 1, e.backend(1).Addr)
			e.put(t, e.balanced(t, next, "a", bs, fe))
			if f, got := e.try(t, from, fe.Addr, 1); got.Verdict != OK {
				t.Errorf("%s: %s after %s became %s", f, got.Verdict, first, next)
			}
		}
		if err := h.Check(); err != nil {
			t.Errorf("from %s: a connection under %s broke: %v", from, first, err)
		}
		h.Close()
	}
}
