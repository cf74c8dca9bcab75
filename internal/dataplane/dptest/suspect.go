// SPDX-License-Identifier: Apache-2.0

package dptest

import (
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// suspectRow is one promise of dataplane.Witness. Nothing is wrong with the backends: the
// agent says that one is suspect.
type suspectRow struct {
	name string
	run  func(t *testing.T, e *env, from Origin)
}

var suspectRows = []suspectRow{
	{"a suspect backend is avoided", func(t *testing.T, e *env, from Origin) {
		for _, name := range algo.Names() {
			fe := e.clusterIP(80)
			svc := e.suspecting(t, name, e.backends(0, 1, 2), fe)
			e.suspect(t, svc, 0, time.Hour)
			e.avoids(t, from, fe, 0)
			e.suspect(t, svc, 1, time.Hour)
			e.only(t, from, fe.Addr, 6, e.backend(2).Addr)
		}
	}},
	{"all suspect: served", func(t *testing.T, e *env, from Origin) {
		fe := e.clusterIP(80)
		svc := e.suspecting(t, "round-robin", e.backends(0, 1, 2), fe)
		for i := range 3 {
			e.suspect(t, svc, i, time.Hour)
		}
		e.reaches(t, from, fe.Addr, e.backends(0, 1, 2)...)
	}},
	{"weight 0 is not taken instead", func(t *testing.T, e *env, from Origin) {
		for _, name := range algo.Names() {
			fe := e.clusterIP(80)
			bs := []lb.Backend{e.backend(0), weighted(e.backend(1), 0)}
			e.suspect(t, e.suspecting(t, name, bs, fe), 0, time.Hour)
			e.only(t, from, fe.Addr, 6, e.backend(0).Addr)
		}
	}},
	{"it ends when the agent says so", func(t *testing.T, e *env, from Origin) {
		fe := e.clusterIP(80)
		svc := e.suspecting(t, "round-robin", e.backends(0, 1), fe)
		e.suspect(t, svc, 0, time.Hour)
		e.avoids(t, from, fe, 0)
		e.suspect(t, svc, 0, -time.Hour)
		e.reaches(t, from, fe.Addr, e.backends(0, 1)...)
	}},
	{"it ends by itself", func(t *testing.T, e *env, from Origin) {
		const soon = 200 * time.Millisecond
		fe := e.clusterIP(80)
		e.suspect(t, e.suspecting(t, "round-robin", e.backends(0, 1), fe), 0, soon)
		e.wait(2 * soon)
		e.reaches(t, from, fe.Addr, e.backends(0, 1)...)
	}},
	{"a service that does not suspect heeds nothing", func(t *testing.T, e *env, from Origin) {
		fe := e.clusterIP(80)
		svc := e.service(t, "a", e.backends(0, 1), fe)
		e.put(t, svc)
		e.suspect(t, svc, 0, time.Hour)
		e.reaches(t, from, fe.Addr, e.backends(0, 1)...)
	}},
}

// runSuspect checks suspicion. Only connections of TCP avoid anybody.
func runSuspect(t *testing.T, e *env) {
	e.dp = e.h.Dataplane(t)
	for _, row := range suspectRows {
		for _, from := range e.paths() {
			t.Run(row.name+", from "+string(from), func(t *testing.T) {
				e.need(t, FeatureSuspect, Feature(from))
				e.sync(t, dataplane.Delta{Full: true})
				if e.proto == lb.TCP {
					row.run(t, e, from)
					return
				}
				fe := e.clusterIP(80)
				e.suspect(t, e.suspecting(t, "round-robin", e.backends(0, 1), fe), 0, time.Hour)
				e.reaches(t, from, fe.Addr, e.backends(0, 1)...)
			})
		}
	}
}

// suspecting puts a Service that suspects.
func (e *env) suspecting(t *testing.T, algorithm string, bs []lb.Backend, fes ...lb.Frontend) *dataplane.Service {
	t.Helper()
	svc := e.balanced(t, algorithm, "a", bs, fes...)
	svc.Terms.Suspect = 2 * time.Second
	e.sync(t, dataplane.Delta{Full: true}) // nobody of the row before is suspect any more
	e.put(t, svc)
	return svc
}

// suspect makes new connections to svc avoid backend i for d.
func (e *env) suspect(t *testing.T, svc *dataplane.Service, i int, d time.Duration) {
	t.Helper()
	w, ok := e.dp.(dataplane.Witness)
	if !ok {
		t.Fatalf("%T is no Witness", e.dp)
	}
	if err := w.Suspect(svc.Name, e.backend(i).Addr, e.now().Add(d), 0); err != nil {
		t.Fatal(err)
	}
}

// avoids fails if backend i answers.
func (e *env) avoids(t *testing.T, from Origin, fe lb.Frontend, i int) {
	t.Helper()
	f, got := e.try(t, from, fe.Addr, 8)
	if got.Verdict != OK || got.Backends[e.backend(i).Addr] > 0 {
		t.Errorf("%s: %s by %v, want answers of others than %s", f, got.Verdict, got.Backends, e.backend(i).Addr)
	}
}
