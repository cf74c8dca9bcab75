// SPDX-License-Identifier: Apache-2.0

package dptest

import (
	"net/netip"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// changeRow is one change; new connections must follow it at once.
type changeRow struct {
	name string
	run  func(t *testing.T, e *env, from Origin)
}

var changeRows = []changeRow{
	{"a backend is added", func(t *testing.T, e *env, from Origin) {
		fe := e.clusterIP(80)
		e.put(t, e.service(t, "a", e.backends(0), fe))
		e.reaches(t, from, fe.Addr, e.backends(0)...)
		e.put(t, e.service(t, "a", e.backends(0, 1), fe))
		e.reaches(t, from, fe.Addr, e.backends(0, 1)...)
	}},
	{"a backend is removed", func(t *testing.T, e *env, from Origin) {
		fe := e.clusterIP(80)
		e.put(t, e.service(t, "a", e.backends(0, 1, 2), fe))
		e.reaches(t, from, fe.Addr, e.backends(0, 1, 2)...)
		e.put(t, e.service(t, "a", e.backends(0, 2), fe))
		e.reaches(t, from, fe.Addr, e.backends(0, 2)...)
	}},
	{"a backend is replaced", func(t *testing.T, e *env, from Origin) {
		fe := e.clusterIP(80)
		e.put(t, e.service(t, "a", e.backends(0), fe))
		e.reaches(t, from, fe.Addr, e.backend(0))
		e.put(t, e.service(t, "a", e.backends(1), fe))
		e.reaches(t, from, fe.Addr, e.backend(1))
	}},
	{"the last backend goes and one comes back", func(t *testing.T, e *env, from Origin) {
		fe := e.clusterIP(80)
		e.put(t, e.service(t, "a", e.backends(0), fe))
		e.reaches(t, from, fe.Addr, e.backend(0))
		e.put(t, e.service(t, "a", nil, fe))
		e.fails(t, from, fe.Addr, Refused)
		e.put(t, e.service(t, "a", e.backends(1), fe))
		e.reaches(t, from, fe.Addr, e.backend(1))
	}},
	{"a backend's weight becomes 0", func(t *testing.T, e *env, from Origin) {
		fe := e.clusterIP(80)
		e.put(t, e.service(t, "a", e.backends(0, 1), fe))
		e.reaches(t, from, fe.Addr, e.backends(0, 1)...)
		e.put(t, e.service(t, "a", []lb.Backend{weighted(e.backend(0), 0), e.backend(1)}, fe))
		e.reaches(t, from, fe.Addr, e.backend(1))
	}},
	{"the backends' port changes", func(t *testing.T, e *env, from Origin) {
		fe := e.clusterIP(80)
		e.put(t, e.service(t, "a", e.backends(0), fe))
		e.reaches(t, from, fe.Addr, e.backendAt(0, 0))
		e.put(t, e.service(t, "a", []lb.Backend{e.backendAt(0, 1)}, fe))
		e.reaches(t, from, fe.Addr, e.backendAt(0, 1))
	}},
	{"a service is deleted and created again", func(t *testing.T, e *env, from Origin) {
		fe := e.clusterIP(80)
		e.put(t, e.service(t, "a", e.backends(0), fe))
		e.reaches(t, from, fe.Addr, e.backend(0))
		e.sync(t, dataplane.Delta{Delete: []lb.ServiceName{e.name("a")}})
		e.fails(t, from, fe.Addr, Untouched)
		e.put(t, e.service(t, "a", e.backends(1), fe))
		e.reaches(t, from, fe.Addr, e.backend(1))
	}},
	{"the service's port changes", func(t *testing.T, e *env, from Origin) {
		fe := e.clusterIP(80)
		next := e.at(netip.AddrPortFrom(fe.Addr.Addr(), 8080), lb.ClusterIP)
		e.put(t, e.service(t, "a", e.backends(0), fe))
		e.reaches(t, from, fe.Addr, e.backend(0))
		e.put(t, e.service(t, "a", e.backends(0), next))
		e.reaches(t, from, next.Addr, e.backend(0))
		e.fails(t, from, fe.Addr, Refused)
	}},
	{"the type becomes NodePort and ClusterIP again", func(t *testing.T, e *env, from Origin) {
		fe, port := e.clusterIP(80), e.nodePort()
		e.put(t, e.service(t, "a", e.backends(0), fe))
		e.fails(t, from, e.on(port), Untouched)
		e.put(t, e.service(t, "a", e.backends(0), fe, port))
		e.reaches(t, from, e.on(port), e.backend(0))
		e.reaches(t, from, fe.Addr, e.backend(0))
		e.put(t, e.service(t, "a", e.backends(0), fe))
		e.fails(t, from, e.on(port), Untouched)
		e.reaches(t, from, fe.Addr, e.backend(0))
	}},
	{"the internal traffic policy changes", func(t *testing.T, e *env, from Origin) {
		e.need(t, FeatureRemote)
		fe, away := e.clusterIP(80), remote(e.all())
		e.put(t, e.service(t, "a", away, fe))
		e.reaches(t, from, fe.Addr, away...)
		e.put(t, e.service(t, "a", away, internalLocal(fe)))
		e.fails(t, from, fe.Addr, Dropped)
		e.put(t, e.service(t, "a", away, fe))
		e.reaches(t, from, fe.Addr, away...)
	}},
	{"the algorithm changes", func(t *testing.T, e *env, from Origin) {
		fe := e.clusterIP(80)
		e.put(t, e.balanced(t, "round-robin", "a", e.backends(0, 1), fe))
		e.reaches(t, from, fe.Addr, e.backends(0, 1)...)
		e.put(t, e.balanced(t, "random", "a", e.backends(0, 1), fe))
		e.spreads(t, from, fe.Addr, e.backends(0, 1)...)
		e.put(t, e.balanced(t, "round-robin", "a", e.backends(0, 1), fe))
		e.reaches(t, from, fe.Addr, e.backends(0, 1)...)
	}},
	{"two services share a backend", func(t *testing.T, e *env, from Origin) {
		a, b := e.clusterIP(80), e.clusterIP(80)
		e.put(t, e.service(t, "a", e.backends(0), a), e.service(t, "b", e.backends(0, 1), b))
		e.reaches(t, from, a.Addr, e.backend(0))
		e.reaches(t, from, b.Addr, e.backends(0, 1)...)
		e.sync(t, dataplane.Delta{Delete: []lb.ServiceName{e.name("a")}})
		e.fails(t, from, a.Addr, Untouched)
		e.reaches(t, from, b.Addr, e.backends(0, 1)...)
	}},
	{"a frontend moves to another service", func(t *testing.T, e *env, from Origin) {
		fe, other := e.clusterIP(80), e.clusterIP(80)
		e.put(t, e.service(t, "a", e.backends(0), fe, other))
		e.reaches(t, from, fe.Addr, e.backend(0))
		e.put(t, e.service(t, "a", e.backends(0), other), e.service(t, "b", e.backends(1), fe))
		e.reaches(t, from, fe.Addr, e.backend(1))
		e.reaches(t, from, other.Addr, e.backend(0))
	}},
	{"a service is replaced by another one at the same address", func(t *testing.T, e *env, from Origin) {
		fe := e.clusterIP(80)
		e.put(t, e.service(t, "a", e.backends(0), fe))
		e.reaches(t, from, fe.Addr, e.backend(0))
		e.sync(t, dataplane.Delta{
			Put:    []*dataplane.Service{e.service(t, "b", e.backends(1), fe)},
			Delete: []lb.ServiceName{e.name("a")},
		})
		e.reaches(t, from, fe.Addr, e.backend(1))
	}},
	{"what a delta does not name stays", func(t *testing.T, e *env, from Origin) {
		a, b := e.clusterIP(80), e.clusterIP(80)
		e.put(t, e.service(t, "a", e.backends(0), a))
		e.put(t, e.service(t, "b", e.backends(1), b))
		e.reaches(t, from, a.Addr, e.backend(0))
		e.reaches(t, from, b.Addr, e.backend(1))
	}},
	{"what a full delta does not name goes", func(t *testing.T, e *env, from Origin) {
		a, b := e.clusterIP(80), e.clusterIP(80)
		e.put(t, e.service(t, "a", e.backends(0), a), e.service(t, "b", e.backends(1), b))
		e.sync(t, dataplane.Delta{Put: []*dataplane.Service{e.service(t, "b", e.backends(1), b)}, Full: true})
		e.fails(t, from, a.Addr, Untouched)
		e.reaches(t, from, b.Addr, e.backend(1))
	}},
}

func runChange(t *testing.T, e *env) {
	e.dp = e.h.Dataplane(t)
	for _, row := range changeRows {
		for _, from := range e.paths() {
			t.Run(row.name+", from "+string(from), func(t *testing.T) {
				e.need(t, Feature(from))
				e.sync(t, dataplane.Delta{Full: true})
				row.run(t, e, from)
			})
		}
	}
	t.Run("the external traffic policy changes", func(t *testing.T) {
		e.need(t, Feature(Outside), FeatureRemote)
		fe := e.external(lb.LoadBalancer, 80)
		e.put(t, e.service(t, "a", e.all(), fe))
		e.reaches(t, Outside, fe.Addr, e.all()...)
		e.put(t, e.service(t, "a", e.all(), externalLocal(fe)))
		e.reaches(t, Outside, fe.Addr, local(e.all())...)
		e.put(t, e.service(t, "a", e.all(), fe))
		e.reaches(t, Outside, fe.Addr, e.all()...)
	})
}
