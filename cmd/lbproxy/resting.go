// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/health"
	"github.com/lbproxy/lbproxy/internal/server"
)

// kindRules is the Kind of Services that are served by rules.
const kindRules = "rules"

// restingTold returns backends that take no new connections as the control socket tells them.
func restingTold(list []health.Resting) []server.Resting {
	all := make([]server.Resting, len(list))
	for i, r := range list {
		all[i] = server.Resting{Service: r.Service.String(), Backend: r.Backend.String(), Pools: "cluster"}
		switch {
		case r.Cluster && r.Local:
			all[i].Pools = "both"
		case r.Local:
			all[i].Pools = "local"
		}
	}
	return all
}

// resting returns them now.
func (n *node) resting() []server.Resting { return restingTold(n.monitor.Resting()) }

// addResting adds the backends that take no new connections to Services that are served by
// rules: there is no rule for them. Only the agent knows them; without one, that they are
// not known is a line on stderr.
func (a *app) addResting(ctx context.Context, cfg config.Config, svcs []named) {
	if !slices.ContainsFunc(svcs, func(s named) bool { return s.Kind == kindRules }) {
		return
	}
	list, err := a.askResting(ctx, cfg.StateDir)
	if err != nil {
		fmt.Fprintf(a.stderr, "backends of weight 0 are not known: %s\n", oneLine(err))
		return
	}
	of := map[string][]server.Resting{}
	for _, r := range list {
		of[r.Service] = append(of[r.Service], r)
	}
	for i := range svcs {
		if svcs[i].Kind == kindRules {
			svcs[i].Backends = withResting(svcs[i].Backends, of[svcs[i].ServiceView.Name])
		}
	}
}

// withResting returns backends with those that rest. One that rules lead to in one pool is
// as it is; one that only has connections is not leaving.
func withResting(backends []dataplane.BackendView, resting []server.Resting) []dataplane.BackendView {
	place := make(map[string]int, len(backends))
	for i, b := range backends {
		place[b.Address] = i
	}
	for _, r := range resting {
		i, there := place[r.Backend]
		if !there {
			i = len(backends)
			backends = append(backends, dataplane.BackendView{Address: r.Backend, State: stateLeaving})
		}
		if backends[i].State == stateLeaving {
			backends[i].State, backends[i].Pools = "active", r.Pools
		}
	}
	return backends
}

// stateLeaving is the state of a backend that is in no pool and has connections.
const stateLeaving = "leaving"
