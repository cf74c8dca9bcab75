// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/dataplane"
)

// Drain makes what an earlier agent left go, while another dataplane serves this node.
// From now on nothing new is translated. What UDP sockets are connected to through
// lbproxy is closed, as when a Service is removed; their flows move. TCP connections of
// sockets need nobody any more. Those of the packet path go on, and Drain returns when
// the last one has ended and everything is removed, or when ctx is done; then the next
// Drain, or Open, goes on with what is there.
//
// Old connections are made known to tracker before a new one can be the other
// dataplane's: one that was silent since that one began would look like no connection to
// netfilter, and a new one of the same client could get the same addresses towards the
// same backend. What masqueraded ones leave as is known to it until Drain has ended.
//
// Drain works in the network namespace of the calling thread, and returns an error that
// wraps ErrRunning while another process has the state open.
func Drain(ctx context.Context, opts Options, tracker Tracker) error {
	if opts.BPFFS == "" {
		opts.BPFFS = defaultBPFFS
	}
	if _, err := os.Stat(stateDir(opts.BPFFS)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	opts, err := opts.orDefault()
	if err != nil {
		return err
	}
	d, err := openDrain(opts)
	if errors.Is(err, ErrRunning) {
		return err
	}
	if err != nil { // another layout, or a kernel that does not take the programs any more
		opts.Log.Warn("connections that eBPF translates per packet end: its state cannot be used", "error", err)
		_, err = Cleanup(opts)
		return err
	}
	masked, err := d.drainAll(ctx, tracker)
	if err == nil && ctx.Err() == nil {
		var removed []string
		removed, err = cleanupAll(opts)
		err = errors.Join(err, tracker.Untrack(masked))
		opts.Log.Info("what the eBPF dataplane left is removed", "pins", len(removed))
	}
	return errors.Join(err, d.Close())
}

// openDrain opens what is there, with the programs that look at it.
func openDrain(opts Options) (*Dataplane, error) {
	if _, err := os.Stat(pinDir(opts.BPFFS)); err != nil {
		return nil, err
	}
	d, err := openState(opts)
	if err != nil {
		return nil, err
	}
	if d.progs, err = loadPrograms(d.maps, opts.Local); err == nil {
		d.killer, err = newStaleKiller(d.maps)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// drainAll lets all Services go and waits until no connection needs the programs. It
// returns what the tracker knows on their behalf.
func (d *Dataplane) drainAll(ctx context.Context, tracker Tracker) (masked []dataplane.Flow, err error) {
	d.track(tracker)
	if err := d.openClusterIPs(); err != nil {
		return nil, fmt.Errorf("let unknown ports pass: %w", err)
	}
	if err := d.Sync(ctx, dataplane.Delta{Full: true}); err != nil {
		return nil, fmt.Errorf("remove Services: %w", err)
	}
	n, err := d.killer.killStale(ctx) // after it nobody is under way who has seen a Service
	d.tellKilled("connected through what is gone", n, err)
	masked = d.track(tracker)
	return masked, d.awaitConns(ctx)
}

// track makes the tracker know the connections that go on. It returns those that are
// known to it for as long as conns has them. That something fails costs some luck: most
// connections are not silent, so that it knows them, and few ports are taken twice.
func (d *Dataplane) track(tracker Tracker) (masked []dataplane.Flow) {
	h, err := d.held()
	if err == nil {
		err = tracker.Track(slices.Concat(h.open, h.masked))
	}
	if err != nil {
		d.opts.Log.Warn("connection tracking does not know all old connections; some that are silent may be reset", "error", err)
	}
	return h.masked
}

// awaitConns waits until conns has no connection.
func (d *Dataplane) awaitConns(ctx context.Context) error {
	for told := false; ; told = true {
		if err := d.Sweep(); err != nil {
			return err
		}
		d.mu.Lock()
		left := d.swept.conns
		d.mu.Unlock()
		if left == 0 {
			return nil
		}
		if !told {
			d.opts.Log.Info("eBPF translates the packets of old connections until they have ended", "connections", left)
		}
		if !sleep(ctx, sweepInterval) {
			return nil
		}
	}
}

// Running returns an error that wraps ErrRunning if another process has open what is
// below opts.BPFFS, or serves the cgroup, and another one if that cannot be told. It
// changes nothing.
func Running(opts Options) error {
	opts, err := opts.orDefault()
	if err != nil {
		return err
	}
	for _, dir := range []string{opts.CgroupRoot, stateDir(opts.BPFFS)} {
		f, err := os.Open(dir)
		if err != nil {
			continue
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("%w: it holds the lock on %s", ErrRunning, dir)
		}
	}
	return nil
}
