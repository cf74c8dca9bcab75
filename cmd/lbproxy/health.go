// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/health"
	"github.com/lbproxy/lbproxy/internal/lb"
	"github.com/lbproxy/lbproxy/internal/server"
)

// healthDefaults returns how the backends of Services are watched that do not say it.
func healthDefaults(cfg config.Config) lb.Health { return cmp.Or(cfg.Health, lb.DefaultHealth()) }

// proberOptions picks what concerns probes.
func proberOptions(cfg config.Config) health.ProberOptions {
	return health.ProberOptions{
		UserAgent:   "lbproxy/" + version,
		ScriptDir:   cfg.Scripts.Dir,
		ScriptUser:  cfg.Scripts.User.UID,
		ScriptGroup: cfg.Scripts.User.GID,
	}
}

// prober returns what probes.
func (a *app) prober(cfg config.Config) health.Prober {
	if a.newProber == nil {
		return health.NewProber(proberOptions(cfg))
	}
	return a.newProber(proberOptions(cfg))
}

// watch makes what watches the backends that n serves, and what the agent takes from it.
func (n *node) watch(prober health.Prober, metrics *server.Metrics, log *slog.Logger) {
	opts := health.Options{
		Prober:   prober,
		Defaults: healthDefaults(n.cfg),
		Served:   servedBy(n.dp),
		Observe:  probeObserver(metrics),
		Log:      log,
	}
	if witness, ok := n.dp.(dataplane.Witness); ok {
		opts.Kernel = witness
	}
	if n.src.events != nil {
		opts.Reporter = n.src.events
	}
	n.monitor = health.NewMonitor(opts)
	n.filter = n.monitor.Filter(n.src.store)
	n.verdicts = n.monitor.Verdicts
	n.healthStats = func() server.HealthStats { return statsOf(n.monitor.Stats()) }
}

// statsOf returns s as metrics have it.
func statsOf(s health.Stats) server.HealthStats {
	out := server.HealthStats{
		Backends: map[string]int{}, Transitions: map[[2]string]uint64{}, Ejections: s.Ejections, Ignored: s.Ignored,
	}
	for state, n := range s.Backends {
		out.Backends[state.String()] = n
	}
	for change, n := range s.Transitions {
		out.Transitions[[2]string{change[0].String(), change[1].String()}] = n
	}
	return out
}

// servedBy returns what tells how connections of dp to a backend fare: what it counts or, if
// it does not count, what it sees.
func servedBy(dp plane) func(lb.ServiceName, netip.AddrPort) (lb.Outcomes, bool) {
	if seen, ok := dp.(dataplane.Answers); ok {
		return func(_ lb.ServiceName, backend netip.AddrPort) (lb.Outcomes, bool) { return seen.Answered(backend) }
	}
	return newServed(dp.Stats).of
}

// servedFor is how old what served tells may be: reading all counters takes time where
// there are many.
const servedFor = 500 * time.Millisecond

// served tells what became of connections to backends. Its methods may be called from any
// goroutine.
type served struct {
	stats func() (dataplane.Stats, error)

	mu     sync.Mutex
	at     time.Time // when counts were read
	counts map[servedKey]lb.Outcomes
}

type servedKey struct {
	service lb.ServiceName
	backend netip.AddrPort
}

func newServed(stats func() (dataplane.Stats, error)) *served { return &served{stats: stats} }

// of returns what became of connections to a backend; false: that is not known.
func (s *served) of(name lb.ServiceName, backend netip.AddrPort) (o lb.Outcomes, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); s.at.IsZero() || now.Sub(s.at) >= servedFor {
		s.at, s.counts = now, map[servedKey]lb.Outcomes{}
		stats, err := s.stats()
		if err != nil {
			return lb.Outcomes{}, false
		}
		for _, b := range stats.Backends {
			if !b.Counted {
				continue
			}
			key := servedKey{b.Service, b.Backend}
			had := s.counts[key] // of one that left, or of a removed Service of the same name
			s.counts[key] = lb.Outcomes{Answered: had.Answered + b.Answered, Failed: had.Failed + b.Failed, At: now}
		}
	}
	o, ok = s.counts[servedKey{name, backend}]
	return o, ok
}
