// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/ebpf"
	"github.com/lbproxy/lbproxy/internal/dataplane/iptables"
)

// translatedPeriod is the time between two looks for connections that netfilter
// translates, as long as there are some.
const translatedPeriod = 30 * time.Second

// ebpfPlane is the eBPF dataplane beside connections that netfilter translates: those
// that began while another proxy, or the iptables dataplane, served this node.
type ebpfPlane struct {
	*ebpf.Dataplane
	lock io.Closer // keeps the iptables dataplane away
	log  *slog.Logger

	known chan struct{} // capacity 1: after a full Sync more is known of what is translated
}

// openEBPF opens the eBPF dataplane. The lock of the other one keeps both apart.
func openEBPF(c config.Config, _ announcer, log *slog.Logger) (plane, error) {
	lock, err := iptables.Lock(iptablesOptions(c, log))
	if err != nil && os.Geteuid() == 0 {
		return nil, errors.Join(ebpf.Running(ebpfOptions(c, log)), err)
	}
	if err := iptables.Keep(context.Background()); err != nil {
		log.Warn("old connections of the iptables dataplane, and new ones, may get the same ports", "error", err)
	}
	d, err := ebpf.Open(ebpfOptions(c, log))
	if err != nil {
		if lock != nil {
			err = errors.Join(err, lock.Close())
		}
		return nil, err
	}
	if err := (iptables.Tracker{}).Reserve(nil); err != nil { // by whom was draining what goes on now
		log.Warn("source ports that conntrack has reserved stay so for a minute", "error", err)
	}
	p := &ebpfPlane{d, lock, log, make(chan struct{}, 1)}
	p.look()
	return p, nil
}

// look tells the dataplane which connections netfilter translates, and whether to look
// again.
func (p *ebpfPlane) look() (again bool) {
	found, err := iptables.Translated()
	if err != nil { // there is no conntrack, or it cannot be read: nothing is translated, or it cannot be told
		p.log.Debug("connection tracking cannot be read", "error", err)
		return false
	}
	again = p.KeepTranslated(found)
	masked, plain, err := iptables.Leaving()
	if err == nil {
		err = p.Reserve(masked, plain)
	}
	if err != nil {
		p.log.Warn("new connections may get the ports of old ones of another proxy", "error", err)
	}
	return again || len(masked)+len(plain) > 0
}

// Sync applies d.
func (p *ebpfPlane) Sync(ctx context.Context, d dataplane.Delta) error {
	err := p.Dataplane.Sync(ctx, d)
	if d.Full {
		select {
		case p.known <- struct{}{}:
		default: // it is looked at once more anyway
		}
	}
	return err
}

// Run runs the dataplane until ctx ends.
func (p *ebpfPlane) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		tick := time.NewTicker(translatedPeriod)
		defer tick.Stop()
		for p.look() {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			case <-p.known:
			}
		}
		return nil
	})
	g.Go(func() error { return p.Dataplane.Run(ctx) })
	return g.Wait()
}

// leaveEBPF makes the eBPF dataplane go; then nothing needs to be kept apart any more.
func leaveEBPF(ctx context.Context, c config.Config, _ plane, log *slog.Logger) error {
	err := ebpf.Drain(ctx, ebpfOptions(c, log), iptables.Tracker{})
	if err != nil || ctx.Err() != nil {
		return err
	}
	return iptables.EndKeep(ctx)
}

// Close releases it; everything stays in the kernel.
func (p *ebpfPlane) Close() error { return errors.Join(p.Dataplane.Close(), p.lock.Close()) }
