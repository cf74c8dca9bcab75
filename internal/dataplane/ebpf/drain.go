// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

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
// same backend. What masqueraded ones leave as is reserved there until they, or Drain, have
// ended. If nobody drains any more, the tracker forgets it by itself.
//
// Drain works in the network namespace of the calling thread, and returns an error that
// wraps ErrRunning while another process has the state open.
func Drain(ctx context.Context, opts Options, tracker Tracker) error {
	if opts.BPFFS == "" {
		opts.BPFFS = defaultBPFFS
	}
	if _, err := os.Stat(stateDir(opts.BPFFS)); errors.Is(err, os.ErrNotExist) {
		return tracker.Reserve(nil)
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
		return errors.Join(err, tracker.Reserve(nil))
	}
	err = d.drainAll(ctx, tracker)
	if err == nil && ctx.Err() == nil {
		var removed []string
		removed, err = cleanupAll(opts)
		err = errors.Join(err, tracker.Reserve(nil))
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

// drainAll lets all Services go and waits until no connection needs the programs.
func (d *Dataplane) drainAll(ctx context.Context, tracker Tracker) error {
	d.track(tracker)
	if err := d.openClusterIPs(); err != nil {
		return fmt.Errorf("let unknown ports pass: %w", err)
	}
	d.reserve(tracker) // what has begun since track looked
	if err := d.Sync(ctx, dataplane.Delta{Full: true}); err != nil {
		return fmt.Errorf("remove Services: %w", err)
	}
	d.reserve(tracker)                // and since then: another proxy takes any port
	n, err := d.killer.killStale(ctx) // after it nobody is under way who has seen a Service
	d.tellKilled("connected through what is gone", n, err)
	d.track(tracker)
	return d.awaitConns(ctx, tracker)
}

// track makes the tracker know the connections that go on, and reserves what masqueraded
// ones leave as. That something fails costs some luck: most connections are not silent,
// so that it knows them, and few ports are taken twice.
func (d *Dataplane) track(tracker Tracker) {
	h, err := d.held()
	if err == nil {
		made, errTrack := tracker.Track(h.open)
		err = errors.Join(errTrack, tracker.Reserve(h.masked), d.untrackEnded(tracker, made))
	}
	if err != nil {
		d.opts.Log.Warn("connection tracking does not know all old connections; some that are silent may be reset", "error", err)
	}
}

// untrackEnded makes the tracker forget those of flows, which it did not know before, that
// have ended while it was told of them: it may have seen their last packets before, and
// would wait for them in vain. One that it follows by itself sees its own end; if it were
// forgotten then, a proxy that drops what is of no connection would drop the last packets,
// which would be sent again for minutes, and the drain would wait for them.
func (d *Dataplane) untrackEnded(tracker Tracker, flows []dataplane.Flow) error {
	if len(flows) == 0 {
		return nil
	}
	now, err := d.held()
	if err != nil {
		return err
	}
	goOn := make(map[dataplane.Flow]bool, len(now.open))
	for _, fl := range now.open {
		goOn[fl] = true
	}
	return tracker.Untrack(slices.DeleteFunc(flows, func(fl dataplane.Flow) bool { return goOn[fl] }))
}

// reservePeriod is the time between two renewals of reservations, of which a tracker
// forgets those that are a minute old. A renewal costs a look at all connections, and a
// system call for each that is masqueraded.
const reservePeriod = 4 * sweepInterval

// reserve renews the reservations of connections that go on.
func (d *Dataplane) reserve(tracker Tracker) {
	var h held
	err := d.eachConn(h.add)
	if err == nil {
		err = tracker.Reserve(h.masked)
	}
	if err != nil {
		d.opts.Log.Warn("netfilter may give source ports of old connections to others", "error", err)
	}
}

// awaitConns waits until conns has no connection, and renews reservations meanwhile.
func (d *Dataplane) awaitConns(ctx context.Context, tracker Tracker) error {
	renewed := time.Now()
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
		if time.Since(renewed) >= reservePeriod {
			d.reserve(tracker)
			renewed = time.Now()
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
