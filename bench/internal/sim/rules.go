// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane/iptables"
)

// period is how often a node with rules reads its connections, in seconds.
const period = 1

// rules is the engine that the iptables dataplane has: the rules that it renders,
// followed in Go. Rules cannot compare loads: see ruled.
type rules struct {
	*iptables.Simulation
	random rand.PCG
}

func newRules(seed uint64) *rules { return &rules{Simulation: iptables.NewSimulation(seed)} }

// Load makes t the table. Members are known by their indexes, and all have the same
// weight in hashes.
func (e *rules) Load(t algo.Table) error {
	ids, weights := make([]uint32, t.N), make([]uint16, t.N)
	for i := range ids {
		ids[i], weights[i] = uint32(i), 1
	}
	return e.Simulation.Load(t, ids, weights)
}

// Pick draws as many random numbers as the rules want, from a seed that in has.
func (e *rules) Pick(in *algo.Input) (int, error) {
	e.random.Seed(uint64(in.Rand[0])<<32|uint64(in.Rand[1]), uint64(in.Rand[2])<<32|uint64(in.Rand[3]))
	return e.Simulation.Pick(in.Hash, func() uint32 { return uint32(e.random.Uint64() >> 32) })
}

func (e *rules) Close() error { return nil }

// ruled is an algorithm of internal/algo as the iptables dataplane has it: each node has
// rules of its own. Where the algorithm compares loads a node reads its connections every
// period, at a time of its own, and makes the rules draw by the shares that follow.
type ruled struct {
	run   *run
	name  string
	table algo.Table
	nodes map[*node]*ruledNode
}

type ruledNode struct {
	rules *rules
	last  float64 // when connections were read; below 0: never
	next  float64
}

func newRuled(r *run, name string) *ruled {
	p := &ruled{run: r, name: name, nodes: map[*node]*ruledNode{}}
	for i := range r.nodes {
		p.nodes[&r.nodes[i]] = &ruledNode{
			rules: newRules(r.sc.Seed), last: -1,
			next: math.Floor(r.now) + period*float64(i)/float64(len(r.nodes)),
		}
	}
	return p
}

func (p *ruled) build(pool *pool) error {
	table, err := algo.Build(p.name, pool.members)
	if err != nil {
		return fmt.Errorf("build %s of %d members: %w", p.name, len(pool.members), err)
	}
	p.table = table
	ids, weights := make([]uint32, len(pool.members)), make([]uint16, len(pool.members))
	for m, b := range pool.backends {
		ids[m], weights[m] = uint32(b), pool.members[m].Weight
	}
	for n, r := range p.nodes {
		n.least = nil
		if err := r.rules.Simulation.Load(table, ids, weights); err != nil {
			return fmt.Errorf("render %s: %w", p.name, err)
		}
	}
	return nil
}

func (p *ruled) pick(n *node, in *algo.Input) (int, error) {
	r := p.nodes[n]
	if p.table.Cost != algo.NoCost && p.run.now >= r.next {
		if err := p.read(n, r); err != nil {
			return 0, err
		}
	}
	return r.rules.Pick(in)
}

// read makes a node's shares follow its connections. The only latency that it knows is
// that of connecting.
func (p *ruled) read(n *node, r *ruledNode) error {
	pool := &p.run.pool
	active := make([]uint32, len(pool.backends))
	var latency []time.Duration
	if p.run.alg.Signal == "connect" {
		latency = make([]time.Duration, len(active))
	}
	for m, b := range pool.backends {
		active[m] = n.loads[b].active
		if latency != nil {
			latency[m] = time.Duration(n.loads[b].latency) * time.Microsecond
		}
	}
	var since time.Duration
	if r.last >= 0 {
		since = time.Duration((p.run.now - r.last) * float64(time.Second))
	}
	r.last = p.run.now
	for r.next <= p.run.now {
		r.next += period
	}
	return r.rules.Tick(active, latency, since)
}
