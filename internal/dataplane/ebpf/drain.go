// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/dataplane"
)

// Drain makes what an earlier agent left go, while another dataplane serves this node.
// From now on nothing new is translated. What UDP sockets are connected to through
// lbproxy is closed, as when a Service is removed; their flows move. TCP connections of
// sockets need nobody any more. Those of the packet path go on, and Drain returns when
// the last one has ended and everything is removed, or when ctx is done; then the next
// Drain, or Open, goes on with what is there. It works in the network namespace of the
// calling thread, and returns an error that wraps ErrRunning while another process has
// the state open.
func Drain(ctx context.Context, opts Options) error {
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
	err = d.drainAll(ctx)
	if err == nil && ctx.Err() == nil {
		var removed []string
		removed, err = cleanupAll(opts)
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
func (d *Dataplane) drainAll(ctx context.Context) error {
	if err := d.openClusterIPs(); err != nil {
		return fmt.Errorf("let unknown ports pass: %w", err)
	}
	if err := d.Sync(ctx, dataplane.Delta{Full: true}); err != nil {
		return fmt.Errorf("remove Services: %w", err)
	}
	n, err := d.killer.killStale(ctx)
	d.tellKilled("connected through what is gone", n, err)
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
