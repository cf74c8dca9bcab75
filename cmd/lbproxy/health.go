// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/health"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// healthDefaults returns how the backends of Services are watched that do not say it.
func healthDefaults(config.Config) lb.Health {
	return lb.Health{
		Probe:        lb.Probe{Kind: lb.ProbeNone, Timeout: time.Second, Path: "/", Expect: "200-399"},
		Interval:     5 * time.Second,
		FastInterval: time.Second,
		Grace:        -1,
		Rise:         1,
		Fall:         3,
		Passive:      lb.SwitchOn,
		MaxEjected:   30,
		Panic:        25,
		Drain:        lb.SwitchOff,
	}
}

// proberOptions picks what concerns probes.
func proberOptions(config.Config) health.ProberOptions {
	return health.ProberOptions{UserAgent: "lbproxy/" + version}
}

// prober returns what probes.
func (a *app) prober(cfg config.Config) health.Prober {
	if a.newProber == nil {
		return health.NewProber(proberOptions(cfg))
	}
	return a.newProber(proberOptions(cfg))
}

// newMonitor returns what watches the backends that dp serves, and makes it the agent's
// source.
func newMonitor(cfg config.Config, prober health.Prober, src *source, dp plane, log *slog.Logger) (*health.Monitor, *health.Filter) {
	opts := health.Options{
		Prober:   prober,
		Defaults: healthDefaults(cfg),
		Served:   newServed(dp.Stats).of,
		Log:      log,
	}
	if witness, ok := dp.(dataplane.Witness); ok {
		opts.Kernel = witness
	}
	if src.events != nil {
		opts.Reporter = src.events
	}
	m := health.NewMonitor(opts)
	return m, m.Filter(src.store)
}

// servedFor is how old what served tells may be: reading all counters takes time where
// there are many.
const servedFor = 500 * time.Millisecond

// served tells how many connections backends were given. Its methods may be called from
// any goroutine.
type served struct {
	stats func() (dataplane.Stats, error)

	mu     sync.Mutex
	at     time.Time // when counts were read
	counts map[servedKey]servedCounts
}

type servedKey struct {
	service lb.ServiceName
	backend netip.AddrPort
}

type servedCounts struct{ opened, failed uint64 }

func newServed(stats func() (dataplane.Stats, error)) *served { return &served{stats: stats} }

// of returns how many connections a backend was given, and how many of those have failed
// to be established; false: that is not known.
func (s *served) of(name lb.ServiceName, backend netip.AddrPort) (opened, failed uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); s.at.IsZero() || now.Sub(s.at) >= servedFor {
		s.at, s.counts = now, map[servedKey]servedCounts{}
		stats, err := s.stats()
		if err != nil {
			return 0, 0, false
		}
		for _, b := range stats.Backends {
			if b.Counted {
				s.counts[servedKey{b.Service, b.Backend}] = servedCounts{b.Opened, b.Failed}
			}
		}
	}
	c, ok := s.counts[servedKey{name, backend}]
	return c.opened, c.failed, ok
}
