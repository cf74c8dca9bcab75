// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"

	"github.com/lbproxy/lbproxy/bench/scenario"
	"github.com/lbproxy/lbproxy/internal/algo"
)

// policy picks a member for a new request.
type policy interface {
	// build is told of every change of members, weights and speeds.
	build(p *pool) error
	// pick returns a member, or -1 if there is none.
	pick(n *node, in *algo.Input) (int, error)
}

// newPolicy returns the policy of an algorithm of a scenario.
func (r *run) newPolicy(a *scenario.Algorithm) policy {
	switch {
	case a.Name == scenario.OracleJSQ, a.Name == scenario.OracleSED:
		return &oracle{run: r, speeds: a.Name == scenario.OracleSED}
	case a.Trial != nil:
		return newTrial(r, a)
	}
	if _, ok := r.engine.(*rules); ok {
		return newRuled(r, a.Name)
	}
	return &tabled{run: r, name: a.Name}
}

// tabled is an algorithm of internal/algo.
type tabled struct {
	run   *run
	name  string
	table algo.Table
}

func (t *tabled) build(p *pool) error {
	before := t.table
	table, err := algo.Build(t.name, p.members)
	if err != nil {
		return fmt.Errorf("build %s of %d members: %w", t.name, len(p.members), err)
	}
	t.table = table
	if err := t.run.engine.Load(table); err != nil {
		return fmt.Errorf("load the table of %s: %w", t.name, err)
	}
	_, fast := t.run.engine.(*reference)
	for i := range t.run.nodes {
		n := &t.run.nodes[i]
		n.least = nil
		if fast && table.Kind == algo.Least {
			n.indexed(p, table.Factors, nil)
		}
	}
	if table.Kind == algo.Hash {
		t.run.measure.churned(&before, &table, p)
	}
	return nil
}

func (t *tabled) pick(n *node, in *algo.Input) (int, error) {
	switch {
	case n.least == nil:
	case len(t.table.Starters) > 0:
		return n.least.pickStarting(&t.table, n, &t.run.pool, in.Rand[0], in.Rand[4]), nil
	default:
		m, _ := n.least.pick(in.Rand[0])
		return m, nil
	}
	return t.run.engine.Pick(in)
}

// oracle knows every backend's true number of requests, wherever they come from.
// Join-shortest-queue takes the backend with the fewest; shortest-expected-delay
// also knows speeds and cores, and takes the one that would be done first on
// average. Ties go to a random one.
type oracle struct {
	run    *run
	speeds bool
}

func (o *oracle) build(p *pool) error {
	for i := range o.run.nodes {
		o.run.nodes[i].least = nil
	}
	factors, floors := make([]uint32, len(p.members)), make([]uint32, len(p.members))
	slowest := never
	for _, b := range p.backends {
		if s := &p.servers[b]; s.Speed > 0 && !s.Failed {
			slowest = min(slowest, s.Capacity())
		}
	}
	for m, b := range p.backends {
		switch s := &p.servers[b]; {
		case s.Failed, p.members[m].Weight == 0:
		case !o.speeds:
			factors[m] = 1
		case s.Speed > 0: // a frozen backend is never done
			factors[m] = uint32(max(1, 1<<24*slowest/s.Capacity()+0.5))
			floors[m] = uint32(s.Cores) - 1
		}
	}
	o.run.global.indexed(p, factors, floors)
	return nil
}

func (o *oracle) pick(_ *node, in *algo.Input) (int, error) {
	m, _ := o.run.global.least.pick(in.Rand[0])
	return m, nil
}
