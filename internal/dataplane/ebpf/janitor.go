// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

const (
	sweepInterval   = 5 * time.Second // how often idle connections are looked for
	reclaimInterval = time.Second     // how often what was retired is freed
	hurryPart       = 16              // of all slots: as many make the janitor come at once
	graceFallback   = 2 * time.Second // longer than any program runs
)

// retired is what no new program run can find, but one under way may still use.
type retired struct {
	regions []region
	slots   int // of all regions
}

func (r *retired) add(g region) {
	if g.size > 0 {
		r.regions = append(r.regions, g)
		r.slots += int(g.size)
	}
}

// release forgets the first n regions and returns them.
func (r *retired) release(n int) []region {
	free := slices.Clone(r.regions[:n])
	r.regions = slices.Delete(r.regions, 0, n)
	for _, g := range free {
		r.slots -= int(g.size)
	}
	return free
}

// orphan is a removed Service whose backends still have connections.
type orphan struct {
	name    lb.ServiceName
	service *service
	ripe    bool // it was removed before the grace period under way
}

// wakeJanitor frees what was retired if that is much, or a table is full; otherwise the janitor comes by
// itself soon. The grace period is a system call of several ms, in which the Go runtime
// may not notice that the API server has sent something.
func (d *Dataplane) wakeJanitor(full bool) {
	if full || d.retired.slots >= len(d.maps.slots)/hurryPart {
		wake(d.wake)
	}
}

// janitor frees what was retired and removes idle connections.
func (d *Dataplane) janitor(ctx context.Context) error {
	sweep := time.NewTicker(sweepInterval)
	defer sweep.Stop()
	reclaim := time.NewTicker(reclaimInterval)
	defer reclaim.Stop()
	recount := time.NewTicker(recountInterval)
	defer recount.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sweep.C:
			d.sweepOrTell()
		case <-d.flush:
			d.sweepOrTell()
		case <-recount.C:
			if err := d.Recount(); err != nil {
				d.opts.Log.Warn("connections were not counted anew", "error", err)
			}
		case <-reclaim.C:
			d.reclaim(ctx)
		case <-d.wake:
			d.reclaim(ctx)
		}
	}
}

// reclaim frees what was retired before a grace period: regions, and backends
// that left and have no connections.
func (d *Dataplane) reclaim(ctx context.Context) {
	d.reclaiming.Lock()
	defer d.reclaiming.Unlock()
	regions, any := d.startGrace()
	if !any {
		return
	}
	grace(ctx, d.maps)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, g := range d.retired.release(regions) {
		d.regions.release(g)
	}
	for svc := range d.draining {
		if d.freeLeft(svc); len(svc.leaving) == 0 {
			delete(d.draining, svc)
		}
	}
	d.orphans = slices.DeleteFunc(d.orphans, func(o orphan) bool {
		if len(o.service.leaving) > 0 || !o.ripe {
			return false
		}
		if o.service.id != 0 {
			d.serviceIDs.release(o.service.id)
		}
		return true
	})
}

// startGrace notes what may be freed after the grace period that follows. It
// returns how many of the retired regions, and whether there is anything.
func (d *Dataplane) startGrace() (regions int, any bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ripe = map[uint32]bool{}
	for svc := range d.draining {
		for _, id := range svc.leaving {
			d.ripe[id] = true
		}
	}
	for i := range d.orphans {
		d.orphans[i].ripe = true
	}
	regions = len(d.retired.regions)
	return regions, regions+len(d.ripe)+len(d.orphans) > 0
}

// freeLeft frees the backends of svc that left before the grace period and have
// no connections.
func (d *Dataplane) freeLeft(svc *service) {
	svc.leaving = slices.DeleteFunc(svc.leaving, func(id uint32) bool {
		if !d.ripe[id] || d.maps.liveOf(id) != 0 {
			return false
		}
		d.keep(svc, id)
		d.setState(id, lbBackendStateBACKEND_FREE)
		d.backendIDs.release(id)
		return true
	})
}

// grace returns when every program run that was under way has ended. They run
// in RCU read-side sections; to replace an inner map, the kernel waits for those
// before the system call returns. If that cannot be done it waits for longer
// than a run should take.
func grace(ctx context.Context, m *maps) {
	if m.grace.wait() == nil {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(graceFallback):
	}
}

func (d *Dataplane) sweepOrTell() {
	if err := d.Sweep(); err != nil {
		d.opts.Log.Warn("idle connections, and those to what is gone, were not removed", "error", err)
	}
}

// sweepResult is what the last sweep counted.
type sweepResult struct {
	conns, entries, expired, flows uint64
}

// Sweep removes connections and flows that were idle for longer than their
// time-outs, and counts those that are alive.
func (d *Dataplane) Sweep() error {
	return d.sweepAt(uint64(monotonic()))
}

// sweepAt sweeps as if the monotonic clock showed now, in nanoseconds.
func (d *Dataplane) sweepAt(now uint64) error { return d.sweep(now, false) }

// sweep sweeps, and counts what is open if it should.
func (d *Dataplane) sweep(now uint64, recount bool) error {
	in := lbSweep{Now: now}
	if recount {
		in.Recount = 1
	}
	out, err := runSyscall(d.progs[lbProgLbSweep], &in)
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.swept = sweepResult{out.Conns, out.Entries, d.swept.expired + out.Expired, out.Flows}
	return nil
}
