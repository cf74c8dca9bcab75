// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/health"
	"github.com/lbproxy/lbproxy/internal/lb"
	"github.com/lbproxy/lbproxy/internal/server"
)

// asker asks the agent whose state directory is dir what it thinks of backends. The
// error wraps server.ErrNoAgent if none runs.
type asker func(ctx context.Context, dir string) ([]server.Verdict, error)

// told returns verdicts as the control socket tells them.
func told(vs []health.Verdict) []server.Verdict {
	all := make([]server.Verdict, len(vs))
	for i, v := range vs {
		all[i] = server.Verdict{
			Service: v.Service.String(), Backend: v.Backend.String(), State: v.State.String(), Probe: v.Kind.String(), Since: v.Since,
			Reason: v.Reason, Ignored: v.Ignored, Ejections: v.Ejections,
		}
		if !v.Until.IsZero() {
			all[i].Until = &v.Until
		}
	}
	return all
}

// tell returns what is thought of the backends that are watched.
func (n *node) tell() []server.Verdict { return told(n.verdicts()) }

// healthNumbers counts what tell tells of.
func (n *node) healthNumbers() server.HealthStats { return n.healthStats() }

// probeObserver returns what is told each probe.
func probeObserver(m *server.Metrics) func(lb.ProbeKind, time.Duration, error) {
	return func(kind lb.ProbeKind, took time.Duration, err error) {
		result := server.ProbeUnhealthy
		switch {
		case err == nil:
			result = server.ProbeHealthy
		case errors.Is(err, health.ErrCannot):
			result = server.ProbeCannot
		}
		m.ObserveProbe(kind, took, result)
	}
}

// opinions are what an agent thinks of backends, by Service and backend.
type opinions map[[2]string]server.Verdict

// askHealth asks the agent of this node. Without one nothing is known of health: that is
// a line on stderr.
func (a *app) askHealth(ctx context.Context, cfg config.Config) opinions {
	vs, err := a.ask(ctx, cfg.StateDir)
	if err != nil {
		fmt.Fprintf(a.stderr, "health is not known: %s\n", oneLine(err))
	}
	known := opinions{}
	for _, v := range vs {
		known[[2]string{v.Service, v.Backend}] = v
	}
	return known
}

// of returns what is thought of a backend; nil: it is not watched, or nothing is known.
func (o opinions) of(service, backend string) *server.Verdict {
	if v, ok := o[[2]string{service, backend}]; ok {
		return &v
	}
	return nil
}

// all returns what is thought of the backends of a Service, sorted.
func (o opinions) all(service string) []server.Verdict {
	var vs []server.Verdict
	for at, v := range o {
		if at[0] == service {
			vs = append(vs, v)
		}
	}
	slices.SortFunc(vs, func(a, b server.Verdict) int { return compareAddresses(a.Backend, b.Backend) })
	return vs
}

// stateOut is the state of a backend that gets no new connections, unless that is ignored.
var stateOut = health.Ejected.String()

// opinion writes what is thought of a backend in one cell: its state and, unless all is
// well, why.
func opinion(v *server.Verdict) string {
	switch {
	case v == nil:
		return "-"
	case v.State == health.Healthy.String() || v.State == health.Unknown.String():
		return v.State
	case v.Ignored != "":
		return fmt.Sprintf("%s, ignored (%s): %s", v.State, v.Ignored, v.Reason)
	}
	return v.State + ": " + v.Reason
}

// age writes how long ago t was.
func (a *app) age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return max(0, a.now().Sub(t)).Round(time.Second).String()
}
