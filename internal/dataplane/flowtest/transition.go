// SPDX-License-Identifier: Apache-2.0

package flowtest

import (
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane/dptest"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Transition is a change under a connection or flow that exists, which has b0.
type Transition struct {
	Name   string
	Spec   string
	Before string // endpoints
	After  string // "-": the Service is deleted
	TCP    dptest.Fate
	UDP    dptest.Fate
}

// Transitions returns them all.
// Source: semantics 1.3; issue 4, stale flows.
func Transitions() []Transition {
	const stays, moves, ends = dptest.Stays, dptest.Moves, dptest.Ends
	return []Transition{
		{"another one comes", "", "b0", "b0 b1", stays, stays},
		{"it terminates and serves", "", "b0", "b0:term b1", stays, stays},
		{"it terminates and serves, alone", "", "b0", "b0:term", stays, stays},
		{"it terminates and serves no longer", "", "b0", "b0:gone b1", stays, moves},
		{"it is removed", "", "b0", "b1", stays, moves},
		{"it is not ready and serves", "", "b0", "b0:busy b1", stays, stays},
		{"it is not ready and does not serve", "", "b0", "b0:notready b1", stays, moves},
		{"hints choose another one", "", "b0", "b0@b b1@a", stays, stays},
		{"its target port changes", "", "b0", "#2> b0", stays, moves},
		{"it moves to another slice", "", "b0", "| b0 b1", stays, stays},
		{"it is removed, with reset", "reset", "b0", "b1", ends, moves},
		{"it terminates and serves, with reset", "reset", "b0", "b0:term b1", stays, stays},
		{"the Service is deleted", "", "b0", "-", stays, ends},
	}
}

// runTransitions runs each for sockets and for packets.
func runTransitions(t *testing.T, h Harness) {
	n := h.Network()
	dp := h.Configure(t, newWorld(&n, &plain).setup())
	for _, tr := range Transitions() {
		for _, proto := range []lb.Proto{lb.TCP, lb.UDP} {
			for _, from := range []dptest.Origin{dptest.PodHooked, dptest.PodUnhooked, dptest.Outside} {
				t.Run(tr.Name+"/"+proto.String()+" from "+string(from), func(t *testing.T) {
					need(t, h, dptest.Feature(from), dptest.Feature(proto.String()))
					w := newWorld(&n, &plain)
					w.add(t, 0, &Rule{Name: "r", Services: []Service{{"web", tr.Spec, tr.Before}}})
					w.program(t, dp)
					f := dptest.Flow{From: from, To: w.target(t, &Rule{Name: "r", Services: []Service{{"web", "", ""}}}, "cluster", lb.IPv4), Proto: proto, N: 1}
					fate := tr.TCP
					if proto == lb.UDP {
						fate = tr.UDP
					}
					dptest.Through(t, h, f, fate, func() {
						w.replace("web", Service{"web", tr.Spec, tr.After})
						w.program(t, dp)
					})
				})
			}
		}
	}
}

func need(t *testing.T, h Harness, features ...dptest.Feature) {
	t.Helper()
	for _, f := range features {
		if !h.Supports(f) {
			t.Skipf("the harness does not support: %s", f)
		}
	}
}

// replace makes the slices of rule r's Service name those of s, or deletes it.
func (w *world) replace(name string, s Service) {
	b := w.built["r"][name]
	for _, sl := range b.slices {
		w.store.DeleteSlice(lb.Object{Namespace: sl.Namespace, Name: sl.Name})
	}
	if s.Eps == "-" {
		w.store.DeleteService(lb.Object{Namespace: b.svc.Namespace, Name: b.svc.Name})
		return
	}
	for _, sl := range w.builder.slices(b.svc, s.Eps) {
		w.store.UpsertSlice(sl)
	}
}
