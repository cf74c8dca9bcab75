// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Simulation is the rules of one pool on one node, followed in Go, with the feedback of
// loads in the simulator's time. It touches no kernel.
type Simulation struct {
	spec     poolSpec
	pool     loaded
	feedback feedback
	tracer   *tracer
	latency  []time.Duration // of the members, at the tick that runs
	members  map[netip.AddrPort]int
	fresh    []uint64 // connections since the last tick, by member
}

// NewSimulation returns a simulation without members. seed is that of hashes.
func NewSimulation(seed uint64) *Simulation {
	s := &Simulation{}
	s.spec = poolSpec{name: hashName("C-"), family: lb.IPv4, proto: lb.TCP, seed: seed, bpf: true}
	s.spec.to = func(i int) string { return "-p tcp -j DNAT --to-destination " + s.spec.backends[i].Addr.String() }
	s.feedback.pools = map[poolKey]*poolLoad{}
	s.feedback.latency = func(at netip.AddrPort) time.Duration {
		if s.latency == nil {
			return 0
		}
		return s.latency[s.members[at]]
	}
	return s
}

// Load makes t the table of the pool, as when the Service is told anew. ids tell its
// members from all others that were or will be there; they are below 2^24.
func (s *Simulation) Load(t algo.Table, ids []uint32, weights []uint16) error {
	s.spec.table, s.spec.shares = t, nil
	s.spec.backends = make([]lb.Backend, t.N)
	s.members, s.fresh = make(map[netip.AddrPort]int, t.N), make([]uint64, t.N)
	for i := range s.spec.backends {
		addr := netip.AddrFrom4([4]byte{10, byte(ids[i] >> 16), byte(ids[i] >> 8), byte(ids[i])})
		s.spec.backends[i] = lb.Backend{Addr: netip.AddrPortFrom(addr, 80), Weight: weights[i]}
		s.members[s.spec.backends[i].Addr] = i
	}
	s.pool = loaded{backends: s.spec.backends, table: t}
	return s.render()
}

// render makes the rules those of the shares.
func (s *Simulation) render() error {
	chains, _ := renderPool(s.spec)
	var err error
	s.tracer, err = newTracer(chains)
	return err
}

// Pick follows the rules for a new connection of the caller that key stands for, and
// returns a member, or -1 if there is none.
func (s *Simulation) Pick(key uint32, random func() uint32) (int, error) {
	s.tracer.random = random
	var src [4]byte
	binary.BigEndian.PutUint32(src[:], key)
	v := s.tracer.walk(s.spec.name, &packet{
		family: lb.IPv4, proto: lb.TCP,
		src: netip.AddrPortFrom(netip.AddrFrom4(src), uint16(random())), dst: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 0, 1}), 80),
	})
	if v.target == "" {
		return -1, nil
	}
	m, ok := s.members[v.to]
	if !ok {
		return 0, fmt.Errorf("the rules lead to %s, which is no member", v.to)
	}
	s.fresh[m]++
	return m, nil
}

// Tick reads the connections that each member has and, if the table compares times, their
// latencies (nil: all the same), and changes the rules if that moves shares. since is the
// time from the tick before; 0: there was none.
func (s *Simulation) Tick(active []uint32, latency []time.Duration, since time.Duration) error {
	if s.spec.table.Cost == algo.NoCost {
		return nil
	}
	read := make(map[netip.AddrPort]*count, len(active))
	for i, b := range s.spec.backends {
		read[b.Addr] = &count{live: uint64(active[i]), fresh: s.fresh[i]}
	}
	clear(s.fresh)
	s.latency = latency
	p := s.feedback.pool(&s.pool)
	shares := s.feedback.sharesOf(&s.pool, p, read, since)
	if shares == nil || !p.moved(shares) {
		return nil
	}
	p.shares, s.spec.shares = shares, shares
	return s.render()
}
