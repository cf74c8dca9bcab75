// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/lb"
)

const (
	watchPeriod   = 250 * time.Millisecond // between looks for what somebody did to the tables
	growPeriod    = time.Second            // between looks at how full ipsets of clients are
	witnessPeriod = time.Second            // between looks at connections that nobody has answered
	retryPeriod   = 2 * time.Second        // between attempts of what failed
	readPeriod    = 30 * time.Second       // between readings of all rules, for audits
)

// Run keeps the kernel as Syncs left it, and follows the Node and the loads of backends,
// until ctx is done. Everything that it does is done by the calling thread, but for hearing
// of connections that are refused.
func (d *Dataplane) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { d.witness.hear(ctx, d.opts.Log) })
	watch := time.NewTicker(watchPeriod)
	defer watch.Stop()
	loads := time.NewTicker(d.opts.Period)
	defer loads.Stop()
	grow := time.NewTicker(growPeriod)
	defer grow.Stop()
	seen := time.NewTicker(witnessPeriod)
	defer seen.Stop()
	read := time.NewTicker(readPeriod)
	defer read.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-d.look:
			err = d.refresh(ctx)
		case <-watch.C:
			err = d.watch(ctx)
		case <-loads.C:
			d.measure()
			d.feedback.tick(ctx)
		case now := <-seen.C:
			err = d.witness.tick(now)
		case <-grow.C:
			err = d.grow()
		case <-read.C:
			err = d.readBack(ctx)
		}
		if ctx.Err() == nil {
			d.log.tell(d.opts.Log, err)
		}
	}
}

// watch repairs the tables if somebody changed what is lbproxy's.
func (d *Dataplane) watch(ctx context.Context) error {
	switch complete, unknown, late := d.state(); {
	case !complete, (unknown || late) && time.Now().Before(d.retry):
		return nil
	case unknown: // the last repair failed
		d.retry = time.Now().Add(retryPeriod)
		return d.repair(ctx)
	case late:
		d.retry = time.Now().Add(retryPeriod)
		return d.refresh(ctx)
	}
	damaged, failed := d.watcher.check(ctx)
	if len(damaged) == 0 {
		return failed
	}
	for _, found := range damaged {
		d.opts.Log.Warn("rules were changed by somebody else; they are written anew", "what", found.String())
	}
	mended, err := d.mend(ctx, damaged)
	if !mended {
		err = d.repair(ctx)
	}
	return errors.Join(failed, err)
}

// state tells whether there was a full Sync, whether it is not known what the kernel has,
// and whether something could not be done so far.
func (d *Dataplane) state() (complete, unknown, late bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, fam := range d.families {
		unknown = unknown || fam.chains == nil
		late = late || fam.outdated || len(fam.pending) > 0
	}
	return d.complete, unknown, late
}

// grow enlarges ipsets of clients that are nearly full: the kernel does not when rules
// add to them.
func (d *Dataplane) grow() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	grown, err := d.sets.grow()
	if len(grown) > 0 {
		d.opts.Log.Debug("ipsets of clients were enlarged", "sets", len(grown))
	}
	return err
}

// measure tells whose latencies are wanted, if that changed.
func (d *Dataplane) measure() {
	if d.opts.Measure == nil {
		return
	}
	var targets []netip.AddrPort
	for _, l := range d.loaded() {
		if l.table.Cost != algo.Time || l.name.Proto != lb.TCP {
			continue
		}
		for _, be := range l.backends {
			targets = append(targets, be.Addr)
		}
	}
	slices.SortFunc(targets, netip.AddrPort.Compare)
	targets = slices.Compact(targets)
	if !slices.Equal(targets, d.measured) {
		d.measured = targets
		d.opts.Measure(slices.Clone(targets))
	}
}
