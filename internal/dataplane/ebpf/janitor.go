// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lb"
)

const (
	sweepInterval   = 5 * time.Second // how often idle connections are looked for
	reclaimInterval = time.Second     // how often backends that left are looked at
	graceFallback   = 2 * time.Second // longer than any program runs
)

// retired is what no new program run can find, but one under way may still use.
type retired struct {
	regions  []region
	services []uint32
}

func (r *retired) add(g region) {
	if g.size > 0 {
		r.regions = append(r.regions, g)
	}
}

// orphan is a removed Service whose backends still have connections.
type orphan struct {
	name    lb.ServiceName
	service *service
}

func (d *Dataplane) wakeJanitor() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// janitor frees what was retired and removes idle connections.
func (d *Dataplane) janitor(ctx context.Context) error {
	sweep := time.NewTicker(sweepInterval)
	defer sweep.Stop()
	reclaim := time.NewTicker(reclaimInterval)
	defer reclaim.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sweep.C:
			if err := d.Sweep(); err != nil {
				d.opts.Log.Warn("idle connections were not removed", "err", err)
			}
		case <-reclaim.C:
			d.reclaim(ctx)
		case <-d.wake:
			d.reclaim(ctx)
		}
	}
}

// reclaim frees regions and services that were retired before a grace period,
// and the backends that have left and have no connections.
func (d *Dataplane) reclaim(ctx context.Context) {
	d.reclaiming.Lock()
	defer d.reclaiming.Unlock()
	d.mu.Lock()
	batch := d.retired
	d.retired.services = nil
	orphans := d.orphans
	d.orphans = nil
	leaving := 0
	for _, svc := range d.services {
		leaving += len(svc.leaving)
	}
	d.mu.Unlock()
	if len(batch.regions) == 0 && len(batch.services) == 0 && len(orphans) == 0 && leaving == 0 {
		return
	}
	grace(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, g := range batch.regions {
		d.regions.release(g)
	}
	d.retired.regions = slices.Delete(d.retired.regions, 0, len(batch.regions))
	d.serviceIDs.release(batch.services...)
	for _, svc := range d.services {
		d.freeLeft(svc)
	}
	for _, o := range orphans {
		if d.freeLeft(o.service); len(o.service.leaving) > 0 {
			d.orphans = append(d.orphans, o)
			continue
		}
		if o.service.id != 0 {
			d.serviceIDs.release(o.service.id)
		}
	}
}

// freeLeft frees the backends of svc that have left and have no connections.
// A grace period has passed since they were last picked.
func (d *Dataplane) freeLeft(svc *service) {
	svc.leaving = slices.DeleteFunc(svc.leaving, func(id uint32) bool {
		if d.maps.liveOf(id) != 0 {
			return false
		}
		d.setState(id, lbBackendStateBACKEND_FREE)
		d.backendIDs.release(id)
		return true
	})
}

// grace returns when every program run that was under way has ended: they run
// in RCU read-side sections, and the global memory barrier waits for those.
func grace(ctx context.Context) {
	const membarrierGlobal = 1 // MEMBARRIER_CMD_GLOBAL, linux/membarrier.h
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno == 0 {
		return
	}
	select { // not there with nohz_full: wait for longer than a run can take
	case <-ctx.Done():
	case <-time.After(graceFallback):
	}
}

// sweepResult is what the last sweep counted.
type sweepResult struct {
	conns, entries, expired, flows uint64
}

// Sweep removes connections and flows that were idle for longer than their
// time-outs, and counts those that are alive.
func (d *Dataplane) Sweep() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	return d.sweepAt(uint64(now.Nano()))
}

// sweepAt sweeps as if the monotonic clock showed now, in nanoseconds.
func (d *Dataplane) sweepAt(now uint64) error {
	out, err := runSyscall(d.progs[lbProgLbSweep], &lbSweep{Now: now})
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.swept = sweepResult{out.Conns, out.Entries, d.swept.expired + out.Expired, out.Flows}
	return nil
}
