// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// place tells the backends of a pool with bounds where they are in it, before the
// pool is committed: a backend that closes a connection lowers its group's bound.
// Until the commit it finds somebody else there, or itself, and knows.
func (d *Dataplane) place(sc lb.Scope, p *poolChange) {
	if !headOf(p.content).has(howBounds) {
		return
	}
	for i, id := range p.ids {
		d.setPlace(id, sc, uint16(i))
	}
}

// unplace takes a backend's place in the pools of svc that have no bounds, or that
// it is not in.
func (d *Dataplane) unplace(svc *service, id uint32) {
	for sc := range lb.Scope(scopes) {
		at := uint32(d.maps.backends[id].Place[sc])
		if at == noPlace {
			continue
		}
		ids := svc.ids[sc]
		if !d.maps.head(svc.id, sc).has(howBounds) || at >= uint32(len(ids)) || ids[at] != id {
			d.setPlace(id, sc, noPlace)
		}
	}
}

// hasBounds tells whether a pool of svc has bounds.
func (d *Dataplane) hasBounds(svc *service) bool {
	return d.maps.head(svc.id, lb.ScopeCluster).has(howBounds) || d.maps.head(svc.id, lb.ScopeLocal).has(howBounds)
}

func (d *Dataplane) setPlace(id uint32, sc lb.Scope, at uint16) {
	if p := &d.maps.backends[id].Place[sc]; *p != at {
		d.maps.wrote()
		*p = at
	}
}

// seedLatency gives new backends of a Service that is balanced by time the mean of
// the others. One of which nothing is known would seem the fastest of all.
func (d *Dataplane) seedLatency(c *change) {
	byTime := false
	for _, p := range c.pools {
		byTime = byTime || !p.same && len(p.content) > 0 && headOf(p.content).cost() == algo.Time
	}
	if !byTime || len(c.fresh) == 0 {
		return
	}
	var sum, n uint64
	for _, ids := range c.svc.ids {
		for _, id := range ids {
			if us := uint64(d.maps.latencyOf(id)); us > 0 {
				sum, n = sum+us, n+1
			}
		}
	}
	if n == 0 {
		return
	}
	now := uint32(monotonic() / time.Millisecond)
	for _, id := range c.fresh {
		d.maps.stats[id].Latency.Us, d.maps.stats[id].Latency.At = uint32(sum/n), now
	}
}

// latencyOf returns the average latency of a backend in µs; 0 is unknown.
func (m *maps) latencyOf(id uint32) uint32 {
	us, _ := m.latencyAt(id)
	return us
}

// latencyAt returns the average latency of a backend in µs, and when it last
// changed, in ms of the monotonic clock.
func (m *maps) latencyAt(id uint32) (us, at uint32) {
	w := atomic.LoadUint64((*uint64)(unsafe.Pointer(&m.stats[id].Latency.Us)))
	return uint32(w), uint32(w >> 32)
}

// monotonic returns the time since the machine started.
func monotonic() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0 // it cannot fail with a clock that exists
	}
	return time.Duration(now.Nano())
}

// resumeTurns returns where the turns of a pool's next content start, so that they
// go on behind the backend whose turn it was last, whoever else came or went.
func (d *Dataplane) resumeTurns(svc *service, sc lb.Scope, p *poolChange) uint32 {
	ids := svc.ids[sc]
	if headOf(p.content).kind() != algo.Seq || len(ids) == 0 || len(p.ids) == 0 {
		return 0
	}
	base := d.content(svc, sc)
	h, old := tableOf(base, uint32(len(ids)))
	_, next := tableOf(p.content, uint32(len(p.ids)))
	if old.Kind != algo.Seq {
		return 0
	}
	index := make(map[uint32]int, len(p.ids))
	for i, id := range p.ids {
		index[id] = i
	}
	moved := make([]int, len(ids))
	for i, id := range ids {
		moved[i] = -1
		if at, ok := index[id]; ok {
			moved[i] = at
		}
	}
	seq := atomic.LoadUint32(&d.maps.states[svc.id].Seq[sc])
	return algo.Offset(seq, algo.Resume(old, next, moved, (seq+h.seqStart)%old.Places()))
}
