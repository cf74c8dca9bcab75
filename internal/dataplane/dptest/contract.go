// SPDX-License-Identifier: Apache-2.0

package dptest

import (
	"errors"
	"slices"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// errFault is what a Faulter is told to fail with.
var errFault = errors.New("told to fail")

// runContract checks what Sync promises beyond the traffic.
func runContract(t *testing.T, e *env) {
	e.dp = e.h.Dataplane(t)
	for _, row := range []struct {
		name string
		run  func(t *testing.T, e *env)
	}{
		{"the same again writes nothing", sameAgain},
		{"deleting what is not there is no error", deleteNothing},
		{"a service that fails keeps what it had", failureKeeps},
		{"a new service that fails is absent", failureAbsent},
		{"a delete that fails keeps the service", failureDelete},
		{"a failure does not touch others", failureAlone},
	} {
		t.Run(row.name, func(t *testing.T) {
			e.sync(t, dataplane.Delta{Full: true})
			row.run(t, e)
		})
	}
}

// origin returns an origin that the harness supports.
func (e *env) origin(t *testing.T) Origin {
	t.Helper()
	for _, o := range everyone {
		if e.h.Supports(Feature(o)) {
			return o
		}
	}
	t.Fatal("the harness supports no origin")
	return ""
}

func sameAgain(t *testing.T, e *env) {
	e.need(t, FeatureWrites)
	counter, ok := e.dp.(WriteCounter)
	if !ok {
		t.Fatalf("%T is no WriteCounter", e.dp)
	}
	w := e.world(t)
	limited := e.limited(t, "limited", e.backends(0), e.elsewhere(3), e.ranged(lb.LoadBalancer))
	limited.Terms.Affinity = longAffinity
	draining(e, limited)
	w.svcs = append(w.svcs, limited)
	e.sync(t, dataplane.Delta{Put: w.svcs, Full: true})
	before := counter.Writes()
	for _, full := range []bool{false, true} {
		d := dataplane.Delta{Put: again(w.svcs), Full: full}
		e.sync(t, d)
		if after := counter.Writes(); after != before {
			t.Errorf("%d writes by a sync of the same (full: %t), want 0", after-before, d.Full)
		}
	}
}

// again returns what is equal to svcs, and not the same values.
func again(svcs []*dataplane.Service) []*dataplane.Service {
	out := make([]*dataplane.Service, len(svcs))
	for i, svc := range svcs {
		c := *svc
		c.Frontends = slices.Clone(svc.Frontends)
		c.Terms.SourceRanges, c.Terms.Draining = slices.Clone(svc.Terms.SourceRanges), slices.Clone(svc.Terms.Draining)
		out[i] = &c
	}
	return out
}

func deleteNothing(t *testing.T, e *env) {
	e.sync(t, dataplane.Delta{Delete: []lb.ServiceName{e.name("never-was")}})
}

func (e *env) faulter(t *testing.T) Faulter {
	t.Helper()
	e.need(t, FeatureFaults)
	f, ok := e.dp.(Faulter)
	if !ok {
		t.Fatalf("%T is no Faulter", e.dp)
	}
	return f
}

// syncFails applies d, of which exactly name must fail.
func (e *env) syncFails(t *testing.T, d dataplane.Delta, name lb.ServiceName) {
	t.Helper()
	err := e.dp.Sync(t.Context(), d)
	var se *dataplane.SyncError
	if !errors.As(err, &se) {
		t.Fatalf("sync: error %v, want a SyncError", err)
	}
	if got := se.Names(); !slices.Equal(got, []lb.ServiceName{name}) || se.Other != nil {
		t.Errorf("sync: failed %v, other %v, want %v alone", got, se.Other, name)
	}
	if !errors.Is(err, errFault) {
		t.Errorf("sync: error %v does not wrap its cause", err)
	}
}

func failureKeeps(t *testing.T, e *env) {
	faults, from := e.faulter(t), e.origin(t)
	fe, more := e.clusterIP(80), e.clusterIP(80)
	e.put(t, e.service(t, "a", e.backends(0), fe))
	faults.FailService(e.name("a"), errFault)
	next := e.service(t, "a", e.backends(1), fe, more)
	e.syncFails(t, dataplane.Delta{Put: []*dataplane.Service{next}}, e.name("a"))
	e.reaches(t, from, fe.Addr, e.backend(0))
	e.fails(t, from, more.Addr, Untouched)
	faults.FailService(e.name("a"), nil)
	e.put(t, next)
	e.reaches(t, from, fe.Addr, e.backend(1))
	e.reaches(t, from, more.Addr, e.backend(1))
}

func failureAbsent(t *testing.T, e *env) {
	faults, from, fe := e.faulter(t), e.origin(t), e.clusterIP(80)
	faults.FailService(e.name("a"), errFault)
	svc := e.service(t, "a", e.backends(0), fe)
	e.syncFails(t, dataplane.Delta{Put: []*dataplane.Service{svc}}, e.name("a"))
	e.fails(t, from, fe.Addr, Untouched)
	faults.FailService(e.name("a"), nil)
	e.put(t, svc)
	e.reaches(t, from, fe.Addr, e.backend(0))
}

func failureDelete(t *testing.T, e *env) {
	faults, from, fe := e.faulter(t), e.origin(t), e.clusterIP(80)
	e.put(t, e.service(t, "a", e.backends(0), fe))
	faults.FailService(e.name("a"), errFault)
	for _, d := range []dataplane.Delta{{Delete: []lb.ServiceName{e.name("a")}}, {Full: true}} {
		e.syncFails(t, d, e.name("a"))
		e.reaches(t, from, fe.Addr, e.backend(0))
	}
	faults.FailService(e.name("a"), nil)
	e.sync(t, dataplane.Delta{Full: true})
	e.fails(t, from, fe.Addr, Untouched)
}

func failureAlone(t *testing.T, e *env) {
	faults, from := e.faulter(t), e.origin(t)
	a, b, c := e.clusterIP(80), e.clusterIP(80), e.clusterIP(80)
	e.put(t, e.service(t, "a", e.backends(0), a), e.service(t, "b", e.backends(0), b))
	faults.FailService(e.name("b"), errFault)
	defer faults.FailService(e.name("b"), nil)
	e.syncFails(t, dataplane.Delta{Put: []*dataplane.Service{
		e.service(t, "a", e.backends(1), a), e.service(t, "b", e.backends(1), b), e.service(t, "c", e.backends(1), c),
	}}, e.name("b"))
	e.reaches(t, from, a.Addr, e.backend(1))
	e.reaches(t, from, b.Addr, e.backend(0))
	e.reaches(t, from, c.Addr, e.backend(1))
}
