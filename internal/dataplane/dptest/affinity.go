// SPDX-License-Identifier: Apache-2.0

package dptest

import (
	"net/netip"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// longAffinity is Kubernetes' default.
const longAffinity = 3 * time.Hour

// affinityRow is one promise of session affinity. Picks take turns, so a client that
// does not stay is seen to move with its next connection.
type affinityRow struct {
	name string
	run  func(t *testing.T, e *env, from Origin)
}

var affinityRows = []affinityRow{
	{"a client stays, at every address of the service", func(t *testing.T, e *env, from Origin) {
		fes := []lb.Frontend{
			e.clusterIP(80), e.clusterIP(443), e.nodePort(),
			e.external(lb.LoadBalancer, 80), e.external(lb.ExternalIP, 80),
		}
		e.put(t, e.sticky(t, "a", e.backends(0, 1, 2), fes...))
		be := e.dialOne(t, from, e.on(fes[0]))
		for range 2 {
			for _, fe := range fes {
				e.only(t, from, e.on(fe), 2, be)
			}
		}
	}},
	{"another client is free", func(t *testing.T, e *env, from Origin) {
		e.need(t, FeatureExactTurns)
		fe, other := e.clusterIP(80), e.other(t, from)
		e.put(t, e.sticky(t, "a", e.backends(0, 1, 2), fe))
		mine, others := e.dialOne(t, from, fe.Addr), e.dialOne(t, other, fe.Addr)
		if mine == others {
			t.Errorf("%s and %s take turns and met %s both", from, other, mine)
		}
		e.only(t, from, fe.Addr, 3, mine)
		e.only(t, other, fe.Addr, 3, others)
	}},
	{"another port of the service is independent", func(t *testing.T, e *env, from Origin) {
		a, b := e.clusterIP(80), e.clusterIP(81)
		put := func(first, second []lb.Backend) {
			other := e.sticky(t, "a", second, b)
			other.Name.Port = "q"
			e.put(t, e.sticky(t, "a", first, a), other)
		}
		put(e.backends(0), e.backends(1))
		e.only(t, from, a.Addr, 1, e.backend(0).Addr)
		e.only(t, from, b.Addr, 1, e.backend(1).Addr)
		put(e.backends(0, 1, 2), e.backends(0, 1, 2))
		e.only(t, from, a.Addr, 3, e.backend(0).Addr)
		e.only(t, from, b.Addr, 3, e.backend(1).Addr)
	}},
	{"it yields when the weight becomes 0", func(t *testing.T, e *env, from Origin) {
		e.yields(t, from, []lb.Backend{weighted(e.backend(0), 0), e.backend(1), e.backend(2)})
	}},
	{"it yields when the backend is removed", func(t *testing.T, e *env, from Origin) {
		e.yields(t, from, e.backends(1, 2))
	}},
	{"it yields where the caller's pool has not the backend", func(t *testing.T, e *env, from Origin) {
		e.need(t, FeatureRemote)
		fe, here := e.clusterIP(80), internalLocal(e.clusterIP(80))
		away := remote(e.all())
		e.put(t, e.sticky(t, "a", away[:1], fe, here))
		e.only(t, from, fe.Addr, 1, away[0].Addr)
		e.put(t, e.sticky(t, "a", e.all(), fe, here))
		e.only(t, from, fe.Addr, 2, away[0].Addr)
		next := e.dialOne(t, from, here.Addr)
		if next == away[0].Addr {
			t.Errorf("from %s: %s answered where only endpoints of this node may", from, next)
		}
		e.only(t, from, here.Addr, 2, next)
		e.only(t, from, fe.Addr, 2, next)
	}},
	{"without affinity connections are balanced again", func(t *testing.T, e *env, from Origin) {
		fe := e.clusterIP(80)
		e.put(t, e.sticky(t, "a", e.backends(0, 1, 2), fe))
		e.only(t, from, fe.Addr, 3, e.dialOne(t, from, fe.Addr))
		e.put(t, e.service(t, "a", e.backends(0, 1, 2), fe))
		e.reaches(t, from, fe.Addr, e.backends(0, 1, 2)...)
	}},
}

func runAffinity(t *testing.T, e *env) {
	e.dp = e.h.Dataplane(t)
	origins := []Origin{PodHooked, PodUnhooked, Node, Outside}
	for _, row := range affinityRows {
		for _, from := range origins {
			t.Run(row.name+", from "+string(from), func(t *testing.T) {
				e.need(t, Feature(from))
				e.sync(t, dataplane.Delta{Full: true})
				row.run(t, e, from)
			})
		}
	}
	t.Run("it survives a start of the agent", func(t *testing.T) {
		e.sync(t, dataplane.Delta{Full: true})
		e.survives(t, origins)
	})
	t.Run("the timeout slides, and ends", func(t *testing.T) {
		e.sync(t, dataplane.Delta{Full: true})
		e.slides(t, origins)
	})
}

// sticky is service with session affinity.
func (e *env) sticky(t *testing.T, name string, bs []lb.Backend, fes ...lb.Frontend) *dataplane.Service {
	t.Helper()
	svc := e.service(t, name, bs, fes...)
	svc.Terms.Affinity = longAffinity
	return svc
}

// dialOne makes one connection and returns who answered.
func (e *env) dialOne(t *testing.T, from Origin, to netip.AddrPort) netip.AddrPort {
	t.Helper()
	f, got := e.try(t, from, to, 1)
	for be := range got.Backends {
		return be
	}
	t.Fatalf("%s: %s, want ok", f, got.Verdict)
	return netip.AddrPort{}
}

// other returns an origin that has another address than from.
func (e *env) other(t *testing.T, from Origin) Origin {
	t.Helper()
	for _, o := range everyone {
		if o != from && e.h.Supports(Feature(o)) && e.source(o) != e.source(from) {
			return o
		}
	}
	t.Fatal("affinity needs two clients with addresses of their own, and the harness has one")
	return ""
}

// yields leaves a client with backend 0, which next serves no longer: it gets
// another one, and keeps that when all are back.
func (e *env) yields(t *testing.T, from Origin, next []lb.Backend) {
	t.Helper()
	fe := e.clusterIP(80)
	e.put(t, e.sticky(t, "a", e.backends(0), fe))
	e.only(t, from, fe.Addr, 1, e.backend(0).Addr)
	e.put(t, e.sticky(t, "a", next, fe))
	be := e.dialOne(t, from, fe.Addr)
	if be == e.backend(0).Addr {
		t.Fatalf("from %s: %s answered, want another one", from, be)
	}
	e.only(t, from, fe.Addr, 3, be)
	e.put(t, e.sticky(t, "a", e.backends(0, 1, 2), fe))
	e.only(t, from, fe.Addr, 3, be)
}

// survives starts the agent again between connections of all origins, which meet whom
// they met before: at once, and after the first Sync.
func (e *env) survives(t *testing.T, origins []Origin) {
	t.Helper()
	fe := e.clusterIP(80)
	svc := e.sticky(t, "a", e.backends(0, 1, 2), fe)
	e.put(t, svc)
	met := map[Origin]netip.AddrPort{}
	for _, from := range origins {
		if e.h.Supports(Feature(from)) {
			met[from] = e.dialOne(t, from, fe.Addr)
		}
	}
	e.reopen(t)
	for from, be := range met {
		e.only(t, from, fe.Addr, 2, be)
	}
	e.sync(t, dataplane.Delta{Put: []*dataplane.Service{svc}, Full: true})
	for from, be := range met {
		e.only(t, from, fe.Addr, 2, be)
	}
}

// reopen starts the agent again.
func (e *env) reopen(t *testing.T) {
	t.Helper()
	e.need(t, FeatureReopen)
	r, ok := e.h.(Reopener)
	if !ok {
		t.Fatalf("%T is no Reopener", e.h)
	}
	e.dp = r.Reopen(t)
}

// The timeout of the rows that wait for it, and how long they wait in between.
const (
	shortAffinity = 2 * time.Second
	affinityGap   = 1100 * time.Millisecond
)

// slides checks the timeout: connections that come before it ends renew it, and
// after it the client is free. Each origin has a Service of its own.
func (e *env) slides(t *testing.T, origins []Origin) {
	t.Helper()
	to, first := map[Origin]netip.AddrPort{}, map[Origin]netip.AddrPort{}
	for i, from := range origins {
		if !e.h.Supports(Feature(from)) {
			continue
		}
		fe := e.clusterIP(80)
		svc := e.sticky(t, string(rune('a'+i)), e.backends(0, 1, 2), fe)
		svc.Terms.Affinity = shortAffinity
		e.put(t, svc)
		to[from] = fe.Addr
	}
	e.renews(t, to, first)
	if !e.h.Supports(FeatureExactTurns) {
		return
	}
	e.wait(shortAffinity + shortAffinity/4)
	for from, addr := range to {
		if next := e.dialOne(t, from, addr); next == first[from] {
			t.Errorf("from %s: %s again after the timeout of %v, want the next in turn", from, next, shortAffinity)
		}
	}
}

// renews fails unless each origin meets the same backend thrice, within more than
// the timeout in all. first tells which one. The machine may be slower than the
// timeout: then what was seen tells nothing, and is tried again.
func (e *env) renews(t *testing.T, to, first map[Origin]netip.AddrPort) {
	t.Helper()
	const attempts = 20
	last := map[Origin]time.Time{}
	round := func(check bool) (inTime bool) {
		inTime = true
		for from, addr := range to {
			began := e.now()
			be := e.dialOne(t, from, addr)
			switch {
			case !check:
				first[from] = be
			case e.now().Sub(last[from]) >= shortAffinity:
				inTime = false
			case be != first[from]:
				t.Fatalf("from %s: %s answered %v after %s did, want the same: the timeout is %v",
					from, be, e.now().Sub(last[from]), first[from], shortAffinity)
			}
			last[from] = began
		}
		return inTime
	}
	for range attempts {
		round(false)
		e.wait(affinityGap)
		ok := round(true)
		e.wait(affinityGap)
		if ok && round(true) {
			return
		}
	}
	t.Fatalf("in %d attempts no two connections came within %v", attempts, shortAffinity)
}
