// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/server"
)

// lookPeriod is the time between two looks at the configuration's file.
const lookPeriod = time.Second

// The reasons of Events on the Node about its configuration.
const (
	reasonReloaded = "ConfigReloaded"
	reasonWaits    = "ConfigNeedsRestart" // for some of its fields
	reasonRejected = "ConfigRejected"     // what was read before goes on
)

// configured is the configuration of a node that runs. Its methods may be called from any
// goroutine; run is called once.
type configured struct {
	environ []string
	apply   func(old, cfg config.Config)            // hands live fields to what runs
	event   func(eventtype, reason, message string) // on the Node; nil: nobody wants to know
	log     *slog.Logger

	mu     sync.Mutex
	loader *config.Loader
	cfg    config.Config
	status server.Config
}

func newConfigured(cfg config.Config, loader *config.Loader, environ []string, log *slog.Logger) *configured {
	return &configured{
		environ: environ, loader: loader, cfg: cfg, log: log,
		status: server.Config{File: loader.Path(), Hash: loader.Hash(), Applied: time.Now()},
	}
}

// now returns the configuration that is in force.
func (c *configured) now() config.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cfg
}

// flagz returns every flag with its value.
func (c *configured) flagz() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.loader.Flagz()
}

// tell returns the configuration for those who ask.
func (c *configured) tell() server.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	told := c.status
	told.Fields, told.Sources = c.loader.Fields(), c.loader.Sources()
	return told
}

// run reads the configuration again when its file changes, and at SIGHUP, until ctx is
// done.
func (c *configured) run(ctx context.Context) error {
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGHUP)
	defer signal.Stop(again)
	first := c.loader
	var watch sync.WaitGroup
	defer watch.Wait()
	if first.Path() != "" {
		watch.Go(func() {
			first.Watch(ctx, lookPeriod, func() {
				select {
				case again <- nil:
				default: // it will be read anyway
				}
			})
		})
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again:
			c.reload()
		}
	}
}

// reload reads everything again. What cannot be used changes nothing.
func (c *configured) reload() {
	next, cfg, changes, err := c.loader.Reload(c.environ)
	if err != nil {
		c.log.Error("configuration rejected; what was read before goes on", "file", c.loader.Path(), "error", err)
		c.tellNode("Warning", reasonRejected, "what was read before goes on: "+oneLine(err))
		c.mu.Lock()
		c.status.Rejected = oneLine(err)
		c.status.Rejections++
		c.mu.Unlock()
		return
	}
	c.mu.Lock()
	old := c.cfg
	cfg.NodeName = old.NodeName // which may be the host's
	c.loader, c.cfg = next, cfg
	c.mu.Unlock()
	c.apply(old, cfg)
	live, waiting := split(changes)
	c.mu.Lock()
	c.status.Hash, c.status.Applied, c.status.Waiting, c.status.Rejected = next.Hash(), time.Now(), waiting, ""
	c.status.Reloads++
	c.mu.Unlock()
	c.log.Info("configuration read again", "file", next.Path(), "hash", next.Hash(), "changed", words(live))
	if len(live) > 0 {
		c.tellNode("Normal", reasonReloaded, words(live))
	}
	if len(waiting) > 0 {
		c.log.Warn("fields of the configuration need a restart", "fields", words(waiting))
		c.tellNode("Warning", reasonWaits, "a restart would apply "+words(waiting))
	}
}

func (c *configured) tellNode(eventtype, reason, message string) {
	if c.event != nil {
		c.event(eventtype, reason, message)
	}
}

// split tells apart what is in force and what waits for a restart.
func split(changes []config.Change) (live, waiting []server.ConfigChange) {
	for _, change := range changes {
		told := server.ConfigChange{Field: change.Field, From: change.From, To: change.To}
		if change.Live {
			live = append(live, told)
		} else {
			waiting = append(waiting, told)
		}
	}
	return live, waiting
}

// words tells changes to people.
func words(changes []server.ConfigChange) string {
	all := make([]string, len(changes))
	for i, c := range changes {
		all[i] = fmt.Sprintf("%s: %q was %q", c.Field, c.To, c.From)
	}
	return strings.Join(all, ", ")
}

// reconfigure hands what a reload changed to everything that runs: each live field of the
// configuration has its place here, and none of them interrupts connections.
func (n *node) reconfigure(a *app, old, cfg config.Config, log *slog.Logger) {
	n.verbosity.configure(cfg.LogLevel)
	n.src.store.SetSettings(endpointOptions(cfg).Settings())
	if err := n.agent.SetDefaultAlgorithm(cfg.Algorithm); err != nil {
		log.Error("default algorithm stays as it was", "error", err)
	}
	n.agent.SetDefaultSlowStart(cfg.SlowStart)
	n.agent.SetAuditPeriod(cfg.AuditPeriod)
	n.monitor.SetDefaults(healthDefaults(cfg))
	n.checks.SetAddrs(cfg.NodePortAddresses)
	if dp, ok := n.dp.(dataplane.AddressSetter); ok {
		dp.SetAddresses(cfg.ClusterCIDR, cfg.NodePortAddresses)
	}
	n.metrics.SetDetail(cfg.MetricsDetail, int(cfg.MetricsMaxServices))
	if old.OOMScoreAdj != cfg.OOMScoreAdj {
		a.setOOMScore(cfg, log)
	}
}
