// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane/iptables"
	"github.com/lbproxy/lbproxy/internal/health"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// iptablesOptions picks what concerns the iptables dataplane.
func iptablesOptions(c config.Config, log *slog.Logger) iptables.Options {
	return iptables.Options{
		Backend:            c.IPTables.Backend,
		HashSeed:           c.HashSeed,
		MasqueradeBit:      c.IPTables.MasqueradeBit,
		LocalhostNodePorts: c.IPTables.LocalhostNodePorts,
		Local:              c.LocalDetector(),
		NodePorts:          c.NodePortAddresses,
		LockFile:           filepath.Join(c.StateDir, "lock"),
		Conntrack: iptables.Conntrack{
			MaxPerCore:     c.Conntrack.MaxPerCore,
			Min:            c.Conntrack.Min,
			TCPEstablished: c.Conntrack.TCPEstablished,
			TCPCloseWait:   c.Conntrack.TCPCloseWait,
			TCPLiberal:     c.Conntrack.TCPBeLiberal,
			UDP:            c.Conntrack.UDPTimeout,
			UDPStream:      c.Conntrack.UDPStreamTimeout,
		},
		Log: log,
	}
}

// iptablesPlane is the iptables dataplane and what measures latencies for it.
type iptablesPlane struct {
	*iptables.Dataplane
	connects *health.Connects
}

// openIPTables opens the iptables dataplane.
func openIPTables(c config.Config, announce announcer, log *slog.Logger) (plane, error) {
	if err := os.MkdirAll(c.StateDir, 0o755); err != nil { // for the lock
		return nil, err
	}
	p := &iptablesPlane{connects: health.NewConnects(nil)}
	opts := iptablesOptions(c, log)
	opts.Announce, opts.Latency, opts.Measure = announce, p.connects.Latency, p.connects.Set
	var err error
	if p.Dataplane, err = iptables.Open(opts); err != nil {
		return nil, err
	}
	return p, nil
}

// Run runs the dataplane until ctx ends.
func (p *iptablesPlane) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.connects.Run(ctx) })
	g.Go(func() error { return p.Dataplane.Run(ctx) })
	return g.Wait()
}

// takenOver is a dataplane that can be told that it serves alone from now on.
type takenOver interface {
	TakeOver() []lb.FrontendKey
}

// leaveIPTables removes what the iptables dataplane left.
func leaveIPTables(ctx context.Context, c config.Config, serving plane, log *slog.Logger) error {
	frontends := func() []lb.FrontendKey {
		if dp, ok := serving.(takenOver); ok {
			return dp.TakeOver()
		}
		return nil
	}
	return iptables.Leave(ctx, iptablesOptions(c, log), frontends, func() {
		log.Info("what the iptables dataplane left is removed; netfilter translates old connections until they have ended")
	})
}
