// SPDX-License-Identifier: Apache-2.0

package dptest

import (
	"net/netip"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// hashStays checks a hash of which nothing is known but that it is one: a source always
// meets the same backend, also after an update that changes nothing for it.
func hashStays(t *testing.T, e *env, from Origin) {
	fe := e.clusterIP(80)
	for _, name := range []string{"hash", "ip-hash"} {
		e.put(t, e.balanced(t, name, "a", e.backends(0, 1, 2), fe))
		be := e.dialOne(t, from, fe.Addr)
		e.only(t, from, fe.Addr, 4, be)
		e.put(t, e.balanced(t, name, "a", e.backends(0, 1, 2), fe, e.nodePort()))
		e.only(t, from, fe.Addr, 4, be)
	}
}

// prefixStays hashes so few bits of the source that both pods are one.
func prefixStays(t *testing.T, e *env, from Origin) {
	fe := e.clusterIP(80)
	for bits := range uint8(4) {
		svc := e.balanced(t, "ip-hash", "a", e.backends(0, 1, 2), fe)
		svc.Balance.Prefix4, svc.Balance.Prefix6 = 8+2*bits, 32+4*bits
		e.put(t, svc)
		be := e.dialOne(t, PodUnhooked, fe.Addr)
		e.only(t, PodUnhooked, fe.Addr, 2, be)
		e.only(t, from, fe.Addr, 3, be)
	}
}

// hashSpreads dials from many sources: they meet every backend but that of weight 0, each
// always the same, and most of those who met one that stays do so when another one goes.
func hashSpreads(t *testing.T, e *env) {
	fe := e.clusterIP(80)
	meet := func() map[netip.Addr]netip.AddrPort {
		met := map[netip.Addr]netip.AddrPort{}
		for _, src := range e.addrs.Many {
			if lb.FamilyOf(src) != e.fam {
				continue
			}
			f := Flow{From: Outside, To: fe.Addr, Proto: e.proto, N: 2, Source: src}
			got := e.h.Try(t, f)
			if got.Verdict != OK || len(got.Backends) != 1 {
				t.Fatalf("%s, bound to %s: %s by %v, want one and the same", f, src, got.Verdict, got.Backends)
			}
			for be := range got.Backends {
				met[src] = be
			}
		}
		return met
	}
	all := []lb.Backend{e.backend(0), weighted(e.backend(1), 0), e.backend(2)}
	e.put(t, e.balanced(t, "hash", "a", all, fe))
	before, count := meet(), map[netip.AddrPort]int{}
	for _, be := range before {
		count[be]++
	}
	if count[all[0].Addr] == 0 || count[all[1].Addr] != 0 || count[all[2].Addr] == 0 {
		t.Errorf("%d sources met %v, want both of a weight", len(before), count)
	}
	e.put(t, e.balanced(t, "hash", "a", e.backends(0, 1, 2), fe))
	moved, after := 0, meet()
	for src, be := range before {
		if after[src] != be && after[src] != all[1].Addr {
			moved++
		}
	}
	if moved > len(before)/4 {
		t.Errorf("a backend came, and %d of %d sources moved to another one than that", moved, len(before))
	}
}

// Connections that make a backend loaded, and how many are then looked at.
const (
	load   = 12
	looked = 24
)

// loads makes backend i alone the Service's and holds connections to it.
func (e *env) loads(t *testing.T, from Origin, algorithm string, fe lb.Frontend, be lb.Backend) []Held {
	t.Helper()
	e.put(t, e.balanced(t, algorithm, "a", []lb.Backend{be}, fe))
	return e.holds(t, from, fe.Addr, load)[be.Addr]
}

// prefers fails unless soon after the loads were looked at, at least least of the next
// connections go to want, and all to those of bs that have a weight.
func (e *env) prefers(t *testing.T, from Origin, to netip.AddrPort, least int, want lb.Backend, bs ...lb.Backend) {
	t.Helper()
	r, ok := e.h.(Refresher)
	if !ok {
		t.Fatalf("%T is no Refresher", e.h)
	}
	for deadline := time.Now().Add(limit); ; {
		r.Refresh(t)
		f, got := e.try(t, from, to, looked)
		known := 0
		for _, be := range bs {
			if be.Weight > 0 {
				known += got.Backends[be.Addr]
			}
		}
		if got.Verdict != OK || known != looked {
			t.Fatalf("%s: %s by %v, want all by %v", f, got.Verdict, got.Backends, bs)
		}
		if got.Backends[want.Addr] >= least {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: answered by %v, want %s at least %d times: the others are loaded", f, got.Backends, want.Addr, least)
		}
	}
}

func leastAvoidsLoaded(t *testing.T, e *env, from Origin) {
	fe, bs := e.clusterIP(80), e.backends(0, 1)
	for i, be := range bs {
		held := e.loads(t, from, "least-connection", fe, be)
		e.put(t, e.balanced(t, "least-connection", "a", bs, fe))
		e.prefers(t, from, fe.Addr, looked-2, bs[1-i], bs...)
		for _, h := range held {
			h.Close()
		}
	}
}

// leastAvoidsByWeight gives two backends of different weights as many connections: the
// heavier one has fewer for its weight.
func leastAvoidsByWeight(t *testing.T, e *env, from Origin) {
	fe := e.clusterIP(80)
	bs := []lb.Backend{weighted(e.backend(0), 300), weighted(e.backend(1), 100), weighted(e.backend(2), 0)}
	e.loads(t, from, "least-connection", fe, bs[0])
	e.loads(t, from, "least-connection", fe, bs[1])
	e.put(t, e.balanced(t, "least-connection", "a", bs, fe))
	e.prefers(t, from, fe.Addr, looked-2, bs[0], bs...)
}

// twoAvoidsLoaded has two backends: the loaded one gets at most what two draws of the
// same one give it, a quarter.
func twoAvoidsLoaded(t *testing.T, e *env, from Origin) {
	fe, bs := e.clusterIP(80), e.backends(0, 1)
	e.loads(t, from, "power-of-two", fe, bs[0])
	e.put(t, e.balanced(t, "power-of-two", "a", bs, fe))
	e.prefers(t, from, fe.Addr, looked*2/3, bs[1], bs...)
}
