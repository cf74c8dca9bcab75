// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"github.com/lbproxy/lbproxy/internal/algo"

	"github.com/lbproxy/lbproxy/bench/internal/station"
)

// node is what one node of the cluster knows: only what it did and saw itself.
type node struct {
	seq   uint32
	loads []load      // by backend
	least *leastIndex // of the members, where the policy wants it
}

// load is what a node knows of a backend. As in the kernel, times are in µs and ms.
type load struct {
	active  uint32
	latency uint32 // moving average, µs; 0: unknown
	changed uint32 // when latency was, ms
	opened  uint32 // when it got a connection, ms
	began   uint32 // when it got a connection and had none, ms
}

// pool is the backends that may be picked.
type pool struct {
	members  []algo.Member
	backends []int32 // by member
	index    []int32 // by backend: the member; -1: none
	servers  []station.Server
}

// open counts a new connection to a backend.
func (n *node) open(p *pool, backend int32, now float64) {
	l := &n.loads[backend]
	l.opened = uint32(now * 1000)
	if l.active == 0 {
		l.began = l.opened
	}
	n.add(p, backend, 1)
}

// add changes a node's number of connections to a backend.
func (n *node) add(p *pool, backend int32, delta int32) {
	l := &n.loads[backend]
	l.active += uint32(delta)
	if n.least == nil {
		return
	}
	if m := p.index[backend]; m >= 0 {
		n.least.set(int(m), l.active)
	}
}

// indexed gives the node an index of the members' counts.
func (n *node) indexed(p *pool, factors, floors []uint32) {
	n.least = newLeastIndex(len(p.members), factors, floors)
	for m, b := range p.backends {
		if a := n.loads[b].active; a > 0 {
			n.least.set(m, a)
		}
	}
}

// sample takes a latency in µs into the moving average.
func (n *node) sample(backend int32, latency uint32, now float64) {
	l := &n.loads[backend]
	ms := uint32(now * 1000)
	l.latency = algo.NextLatency(l.latency, latency, ms-l.changed)
	l.changed = ms
}

// seedLatency lets a backend that is new begin with the mean of the others, so
// that it is neither shunned nor flooded.
func (n *node) seedLatency(p *pool, backend int32, now float64) {
	var sum, known uint64
	for _, b := range p.backends {
		if t := n.loads[b].latency; t > 0 && b != backend {
			sum += uint64(t)
			known++
		}
	}
	if known > 0 {
		n.loads[backend].latency = uint32(sum / known)
		n.loads[backend].changed = uint32(now * 1000)
	}
}

// micros returns a sample as the kernel takes it.
func micros(seconds float64) uint32 {
	return uint32(min(max(seconds*1e6, 1), 1<<23-1))
}
