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
	"github.com/lbproxy/lbproxy/internal/health"
	"github.com/lbproxy/lbproxy/internal/server"
)

func (a *app) runVerb() *cobra.Command {
	var initOnly bool
	var writeTo string
	cmd := a.verb(&cobra.Command{
		Use:   "run",
		Short: "Serve the cluster's Services on this node",
		Long: `Serve the cluster's Services on this node until SIGTERM or SIGINT. Stopping leaves
everything in the kernel: connections go on and new ones are balanced over the
backends known last. "lbproxy cleanup" removes it.`,
		Example: `  lbproxy run --config /etc/lbproxy/config.yaml
  lbproxy run --kubeconfig /etc/lbproxy/kubeconfig --cluster-cidr 10.244.0.0/16
  lbproxy run --manifests demo/manifests --node-name node --dataplane ebpf`,
	}, nil, func(cmd *cobra.Command, cfg config.Config, loader *config.Loader) error {
		if writeTo != "" {
			return writeConfig(loader, writeTo)
		}
		log, level := newLogger(a.stderr, cfg)
		warnOf(loader, log)
		if initOnly {
			a.initNode(cfg, log)
			log.Info("the node is prepared; as init-only says, nothing is served")
			return nil
		}
		if os.Getenv("GOGC") == "" {
			debug.SetGCPercent(gcPercent)
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		context.AfterFunc(ctx, stop) // a second signal ends the process at once
		return a.serve(ctx, cfg, loader, log, level)
	})
	cmd.Flags().BoolVar(&initOnly, "init-only", false, "mount the bpffs if there is none, set the node's sysctls as kube-proxy does, and exit")
	cmd.Flags().StringVar(&writeTo, "write-config-to", "", "write the configuration to this file, as a ProxyConfiguration, and exit")
	return cmd
}

// warnOf tells what was given and has no effect.
func warnOf(loader *config.Loader, log *slog.Logger) {
	for _, name := range loader.Unknown() {
		log.Warn("variable of the environment names no field", "variable", name)
	}
	if idle := loader.Idle(); len(idle) > 0 {
		log.Warn("fields of kube-proxy's configuration have no effect", "fields", idle)
	}
	for _, flag := range loader.IdleFlags() {
		log.Warn("a flag of kube-proxy has no effect", "flag", flag[0], "because", flag[1])
	}
	if mode := loader.ForeignMode(); mode != "" {
		log.Warn("a mode of kube-proxy that lbproxy has not; auto is used", "mode", mode)
	}
}

// writeConfig writes what was read from everywhere into one file.
func writeConfig(loader *config.Loader, path string) error {
	text, err := loader.File()
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return os.WriteFile(path, text, 0o644)
}

// serve runs the agent until ctx ends.
func (a *app) serve(ctx context.Context, cfg config.Config, loader *config.Loader, log *slog.Logger, level *verbosity) (err error) {
	if cfg.NodeName == "" {
		if cfg.NodeName, err = hostName(); err != nil {
			return err
		}
	}
	own := &ownNode{}
	src, err := newSource(cfg, own.set, log)
	if err != nil {
		return err
	}
	approx := newApproximations(log)
	if src.events != nil {
		approx.event = src.events.ServiceEvent
	}
	dp, chosen, err := a.open(cfg, approx.announce, log)
	if err != nil {
		return fmt.Errorf("dataplane: %w", err)
	}
	defer func() { err = errors.Join(err, dp.Close()) }()
	a.prepareNode(cfg, log) // not before it is certain that this agent may serve
	n, err := a.newNode(newConfigured(cfg, loader, a.environ, log), own, src, dp, chosen, approx, log, level)
	if err != nil {
		return err
	}
	n.tellStart(log)
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
	cfg      config.Config // at the start: what conf has is as new
	conf     *configured
	metrics  *server.Metrics
	dp       plane
	chosen   choice
	approx   *approximations
	other    *switchover
	src      *source
	agent    *agent.Agent
	monitor  *health.Monitor
	filter   *health.Filter // what the agent takes
	servers  []*server.Server
	control  *server.Control // nil: there is no state directory
	checks   *server.ServiceHealth
	eligible server.Eligibility
	told     <-chan struct{} // closed when everybody has heard of the own Node

	verbosity   *verbosity
	verdicts    func() []health.Verdict
	healthStats func() server.HealthStats
}

func (a *app) newNode(
	conf *configured, own *ownNode, src *source, dp plane, chosen choice, approx *approximations, log *slog.Logger, level *verbosity,
) (*node, error) {
	cfg := conf.cfg
	_, other := a.kernel.access(chosen.dataplane)
	n := &node{cfg: cfg, conf: conf, verbosity: level, dp: dp, chosen: chosen, approx: approx, src: src, told: own.told(), other: newSwitchover(cfg, dp, other, log)}
	n.eligible.NeedsNode = cfg.Manifests == "" // a directory need not have one
	n.metrics = server.NewMetrics(version, n.sources())
	countRequests(n.metrics)
	checks := server.ServiceHealthOptions{
		Healthy: func() bool { return n.health().Live() },
		Addrs:   cfg.NodePortAddresses,
		Log:     log,
		Listen:  a.kernel.listen,
	}
	if src.events != nil {
		checks.Reporter = src.events
	}
	n.checks = server.NewServiceHealth(checks)
	n.watch(a.prober(cfg), n.metrics, log)
	var err error
	if n.agent, err = agent.New(n.agentOptions(n.metrics, log)); err != nil {
		return nil, err
	}
	answers := server.HealthHandler(n.health, n.metrics.Answered)
	n.serve("health", "FailedToStartProxierHealthcheck", cfg.HealthzBindAddress, answers, log)
	pages := n.pages(log)
	pages.Metrics, pages.SetVerbosity = n.metrics.Gatherer(), level.set
	if cfg.Web {
		pages.Web = a.webData(n)
	}
	n.serve("metrics", "FailedToStartMetricServer", cfg.MetricsBindAddress, server.MetricsHandler(pages), log)
	if cfg.StateDir != "" {
		n.control = &server.Control{
			Dir: cfg.StateDir, Verdicts: n.tell, Resting: n.resting, Config: conf.tell, Log: log,
		}
	}
	own.tell(n.eligible.SetNode)
	own.tell(n.checks.SetNode)
	if dp, ok := dp.(dataplane.NodeSetter); ok {
		own.tell(dp.SetNode)
	}
	conf.apply = func(old, cfg config.Config) { n.reconfigure(a, old, cfg, log) }
	if src.events != nil {
		conf.event = src.events.NodeEvent
	}
	return n, nil
}

// sources are what metrics are read from.
func (n *node) sources() server.Sources {
	src := server.Sources{
		Dataplane:    n.chosen.dataplane,
		Stats:        n.dp.Stats,
		Writes:       n.dp.Writes,
		Status:       n.status,
		Problems:     func() map[server.Problem]int { return countProblems(n.src.store.Problems()) },
		Changes:      func() server.Changes { return countChanges(n.src.store.Tallies()) },
		Approximated: n.approx.count,
		Health:       n.healthNumbers,
		Config:       n.conf.tell,
		Detail:       n.cfg.MetricsDetail,
		MaxServices:  int(n.cfg.MetricsMaxServices),
	}
	if n.chosen.fallback {
		src.Fallback = n.chosen.reason
	}
	return src
}

// pages are what the metrics server shows besides numbers.
func (n *node) pages(log *slog.Logger) server.Pages {
	return server.Pages{
		Mode: n.chosen.dataplane,
		Configz: func() any {
			told := n.conf.tell()
			return map[string]any{"lbproxy": told.Fields, "sources": told.Sources}
		},
		Flags:     n.conf.flagz,
		Version:   version,
		Node:      n.cfg.NodeName,
		Started:   time.Now(),
		Profiling: func() bool { return n.conf.now().Profiling },
		Log:       log,
	}
}

// tellStart tells what begins to run, and why it is not what it could be.
func (n *node) tellStart(log *slog.Logger) {
	log.Info("starting", "version", version, "node", n.cfg.NodeName, "dataplane", n.chosen.dataplane, "because", n.chosen.reason,
		"algorithm", n.cfg.Algorithm, "services", sourceName(n.cfg))
	if n.chosen.fallback {
		log.Warn("fell back to another dataplane", "dataplane", n.chosen.dataplane, "because", n.chosen.reason)
	}
	if n.src.events == nil {
		return
	}
	n.src.events.NodeEvent("Normal", "Starting", "lbproxy "+version+" serves Services on this node, by "+n.chosen.dataplane)
	if n.chosen.fallback {
		n.src.events.NodeEvent("Warning", "DataplaneFallback", fmt.Sprintf("%s is used: %s", n.chosen.dataplane, n.chosen.reason))
	}
}

func (n *node) agentOptions(metrics *server.Metrics, log *slog.Logger) agent.Options {
	opts := agent.Options{
		Source:      n.filter,
		Dataplane:   observed(n.dp, observer{n.told, n.approx.note, n.other.synced, metrics.ObserveSync}),
		Loads:       n.dp,
		Log:         log,
		Algorithm:   n.cfg.Algorithm,
		SlowStart:   n.cfg.SlowStart,
		Observe:     metrics.ObserveProgramming,
		AuditPeriod: n.cfg.AuditPeriod,
		Health:      n.checks.Set,
		Triggered:   metrics.ObserveNetworkProgramming,
	}
	if n.src.events != nil {
		opts.Reporter = n.src.events
	}
	return opts
}

// serve adds a server, unless it is to have no address. reason is kube-proxy's for the
// Event on the Node when the address cannot be bound.
func (n *node) serve(name, reason string, addr netip.AddrPort, h http.Handler, log *slog.Logger) {
	if !addr.IsValid() {
		return
	}
	s := &server.Server{Name: name, Addr: addr, Handler: h, HardFail: n.cfg.BindAddressHardFail, Log: log}
	if events := n.src.events; events != nil {
		s.Failed = func(err error) { events.NodeEvent("Warning", reason, fmt.Sprintf("%s server: %v", name, err)) }
	}
	n.servers = append(n.servers, s)
}

// run runs every part until ctx ends or one of them fails.
func (n *node) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.dp.Run(ctx) })
	g.Go(func() error { return n.other.run(ctx) })
	g.Go(func() error { return n.agent.Run(ctx) })
	g.Go(func() error { return n.monitor.Run(ctx) })
	g.Go(func() error { return n.src.run(ctx) })
	g.Go(func() error { return n.checks.Run(ctx) })
	g.Go(func() error { return trim(ctx) })
	g.Go(func() error { return n.conf.run(ctx) })
	for _, s := range n.servers {
		g.Go(func() error { return s.Run(ctx) })
	}
	if n.control != nil {
		g.Go(func() error { return n.control.Run(ctx) })
	}
	return g.Wait()
}

// health tells how the agent is.
func (n *node) health() server.Health {
	st, now := n.agent.Status(), time.Now()
	h := server.Health{Synced: st.Synced, NodeEligible: n.eligible.Eligible()}
	for i, f := range st.Families {
		h.Families[i] = server.FamilyHealth{Live: f.Healthy(now, 2*n.conf.now().SyncPeriod), LastUpdated: f.LastSuccess}
	}
	return h
}

func (n *node) status() server.Status {
	st := n.agent.Status()
	out := server.Status{
		Synced:           st.Synced,
		LastSuccess:      st.LastSuccess,
		Services:         st.Services,
		Failed:           len(st.Failed),
		Backends:         st.Backends,
		Syncs:            st.Syncs,
		SyncFailures:     st.Errors,
		Audits:           st.Audits,
		AuditDifferences: st.AuditDifferences,
		AuditFailures:    st.AuditFailures,
	}
	for i, f := range st.Families {
		out.Families[i] = server.FamilyStatus{
			LastSuccess:     f.LastSuccess,
			LastQueued:      f.LastQueued,
			NoLocalInternal: f.NoLocal.Internal,
			NoLocalExternal: f.NoLocal.External,
		}
	}
	return out
}

// countChanges hands on what came in.
func countChanges(t endpoints.Tallies) server.Changes {
	return server.Changes{Services: server.Tally(t.Services), Endpoints: server.Tally(t.Slices)}
}

// countProblems counts problems by kind of object and reason.
func countProblems(ps []endpoints.Problem) map[server.Problem]int {
	counts := map[server.Problem]int{}
	for _, p := range ps {
		counts[server.Problem{Kind: p.Kind, Reason: p.Reason}]++
	}
	return counts
}
