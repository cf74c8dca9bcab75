// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/lbproxy/lbproxy/internal/agent"
	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/endpoints"
	"github.com/lbproxy/lbproxy/internal/server"
)

func (a *app) runVerb() *cobra.Command {
	return a.verb(&cobra.Command{
		Use:   "run",
		Short: "Serve the cluster's Services on this node",
		Long: `Serve the cluster's Services on this node until SIGTERM or SIGINT. Stopping leaves
everything in the kernel: connections go on and new ones are balanced over the
backends known last. "lbproxy cleanup" removes it.`,
	}, nil, func(cmd *cobra.Command, cfg config.Config, loader *config.Loader) error {
		log := newLogger(a.stderr, cfg)
		for _, name := range loader.Unknown() {
			log.Warn("variable of the environment names no field", "variable", name)
		}
		if os.Getenv("GOGC") == "" {
			debug.SetGCPercent(gcPercent)
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		context.AfterFunc(ctx, stop) // a second signal ends the process at once
		return a.serve(ctx, cfg, loader, log)
	})
}

// serve runs the agent until ctx ends.
func (a *app) serve(ctx context.Context, cfg config.Config, loader *config.Loader, log *slog.Logger) (err error) {
	if cfg.NodeName == "" {
		if cfg.NodeName, err = hostName(); err != nil {
			return err
		}
	}
	src, err := newSource(cfg, log)
	if err != nil {
		return err
	}
	dp, err := a.kernel.open(cfg, log)
	if err != nil {
		return fmt.Errorf("dataplane: %w", err)
	}
	defer func() { err = errors.Join(err, dp.Close()) }()
	n, err := newNode(cfg, loader, src, dp, log)
	if err != nil {
		return err
	}
	log.Info("starting", "version", version, "node", cfg.NodeName, "dataplane", config.EBPF,
		"algorithm", cfg.Algorithm, "services", sourceName(cfg))
	if err := n.run(ctx); err != nil {
		return err
	}
	log.Info("stopped; the rules stay in place and go on serving", "remove", "lbproxy cleanup")
	return nil
}

func hostName() (string, error) {
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("node name: %w", err)
	}
	return strings.ToLower(name), nil
}

// node is a running lbproxy: everything that has a Run.
type node struct {
	cfg     config.Config
	dp      plane
	src     *source
	agent   *agent.Agent
	servers []*server.Server
}

func newNode(cfg config.Config, loader *config.Loader, src *source, dp plane, log *slog.Logger) (*node, error) {
	n := &node{cfg: cfg, dp: dp, src: src}
	metrics := server.NewMetrics(version, server.Sources{
		Stats:    dp.Stats,
		Writes:   dp.Writes,
		Status:   n.status,
		Problems: func() map[server.Problem]int { return countProblems(src.store.Problems()) },
	})
	opts := agent.Options{
		Source:    src.store,
		Dataplane: timed{dp, metrics.ObserveSync},
		Loads:     dp,
		Log:       log,
		Algorithm: cfg.Algorithm,
		SlowStart: cfg.SlowStart,
		Observe:   metrics.ObserveProgramming,
	}
	if src.events != nil {
		opts.Reporter = src.events
	}
	var err error
	if n.agent, err = agent.New(opts); err != nil {
		return nil, err
	}
	configz := func() any { return map[string]any{"lbproxy": loader.Fields(), "sources": loader.Sources()} }
	n.serve("health", cfg.HealthzBindAddress, server.HealthHandler(n.health, metrics.Answered), log)
	n.serve("metrics", cfg.MetricsBindAddress, server.MetricsHandler(metrics.Gatherer(), config.EBPF, configz, log), log)
	return n, nil
}

// serve adds a server, unless it is to have no address.
func (n *node) serve(name string, addr netip.AddrPort, h http.Handler, log *slog.Logger) {
	if addr.IsValid() {
		n.servers = append(n.servers, &server.Server{
			Name: name, Addr: addr, Handler: h, HardFail: n.cfg.BindAddressHardFail, Log: log,
		})
	}
}

// run runs every part until ctx ends or one of them fails.
func (n *node) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.dp.Run(ctx) })
	g.Go(func() error { return n.agent.Run(ctx) })
	g.Go(func() error { return n.src.run(ctx) })
	g.Go(func() error { return trim(ctx) })
	for _, s := range n.servers {
		g.Go(func() error { return s.Run(ctx) })
	}
	return g.Wait()
}

// health tells how the agent is. Whether the node is about to be removed is not
// known in this version.
func (n *node) health() server.Health {
	st := n.agent.Status()
	return server.Health{
		Live:         st.Healthy(time.Now(), 2*n.cfg.SyncPeriod),
		Synced:       st.Synced,
		NodeEligible: true,
		LastUpdated:  st.LastSuccess,
	}
}

func (n *node) status() server.Status {
	st := n.agent.Status()
	return server.Status{
		Synced:       st.Synced,
		LastSuccess:  st.LastSuccess,
		Services:     st.Services,
		Failed:       len(st.Failed),
		Backends:     st.Backends,
		Syncs:        st.Syncs,
		SyncFailures: st.Errors,
	}
}

// countProblems counts problems by kind of object and reason.
func countProblems(ps []endpoints.Problem) map[server.Problem]int {
	counts := map[server.Problem]int{}
	for _, p := range ps {
		counts[server.Problem{Kind: p.Kind, Reason: p.Reason}]++
	}
	return counts
}

// timed is a dataplane that tells how long each Sync took.
type timed struct {
	dataplane.Dataplane
	observe func(time.Duration)
}

// Sync applies d.
func (t timed) Sync(ctx context.Context, d dataplane.Delta) error {
	begin := time.Now()
	defer func() { t.observe(time.Since(begin)) }()
	return t.Dataplane.Sync(ctx, d)
}
