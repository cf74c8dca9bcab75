// SPDX-License-Identifier: Apache-2.0

package server

import (
	"path"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Status is how far the agent is.
type Status struct {
	Synced       bool            // everything there was at start was written once
	LastSuccess  time.Time       // zero: never
	Families     [2]FamilyStatus // IPv4, IPv6
	Services     int             // Service ports in the kernel
	Failed       int             // Service ports that are not what they should be
	Backends     int             // of all Service ports
	Syncs        uint64
	SyncFailures uint64

	Audits           uint64 // comparisons of everything with the kernel
	AuditDifferences uint64 // what they found and repaired
	AuditFailures    uint64 // parts of them that could not be done
}

// FamilyStatus is what concerns one IP family.
type FamilyStatus struct {
	LastSuccess     time.Time // zero: never
	LastQueued      time.Time // when its last change came in; zero: never
	NoLocalInternal int       // Service ports with internalTrafficPolicy Local whose endpoints are all elsewhere
	NoLocalExternal int       // those with externalTrafficPolicy Local
}

// Problem is what several problems have in common.
type Problem struct {
	Kind   string // of the object: Service, Pod ...
	Reason string
}

// Changes counts what came in from the API server, or from a directory.
type Changes struct {
	Services  Tally
	Endpoints Tally // EndpointSlices
}

// Tally counts events of objects.
type Tally struct {
	Total   uint64
	Pending uint64 // that no sync has taken up; events that change nothing do not count
}

// Sources are what a Metrics reads when it is scraped. What is nil is left out.
// All are called from any goroutine.
type Sources struct {
	Stats    func() (dataplane.Stats, error) // the result is the caller's to change
	Writes   func() uint64                   // to kernel tables
	Status   func() Status
	Problems func() map[Problem]int // how much objects ask for in vain
	Changes  func() Changes

	Health func() HealthStats // of backends
	Config func() Config

	Dataplane    string                // its name; empty: not told
	Fallback     string                // why it is not the better one; empty: it is, or was asked for
	Approximated func() map[string]int // Service ports whose balancing is not exact, by algorithm

	Detail      string // DetailNode, DetailService or DetailBackend; empty: DetailService
	MaxServices int    // Service ports that have metrics of their own; 0: all
}

// HealthStats is what is known of the health of backends, and what was done about it.
// States are unknown, healthy, suspect and ejected.
type HealthStats struct {
	Backends    map[string]int       // that are watched, by state
	Transitions map[[2]string]uint64 // from one state to another
	Ejections   map[string]uint64    // by reason
	Ignored     int                  // backends that are ejected and take new connections all the same
}

// The results of probes.
const (
	ProbeHealthy   = "healthy"
	ProbeUnhealthy = "unhealthy"
	ProbeCannot    = "cannot" // it says nothing of the backend
)

// Metrics is everything that is measured. The kernel's numbers are read at each
// scrape; only durations and HTTP answers are kept here.
type Metrics struct {
	registry    *prometheus.Registry
	syncs       prometheus.Observer
	programming prometheus.Observer
	answers     *prometheus.CounterVec
	probes      *prometheus.HistogramVec
	kubeProxy   kubeProxyMetrics
	collector   *collector
}

// NewMetrics returns the metrics of an agent of the given version.
func NewMetrics(version string, src Sources) *Metrics {
	syncs := descSyncTime.histograms(prometheus.ExponentialBuckets(50e-6, 2, 18))           // 50 µs to 6.6 s
	programming := descProgramming.histograms(prometheus.ExponentialBuckets(100e-6, 2, 20)) // 100 µs to 52 s
	m := &Metrics{
		registry:    prometheus.NewRegistry(),
		syncs:       syncs.WithLabelValues(),
		programming: programming.WithLabelValues(),
		answers:     descAnswers.counters(),
		probes:      descProbes.histograms(prometheus.ExponentialBuckets(250e-6, 2, 19)), // 250 µs to 66 s
		kubeProxy:   newKubeProxyMetrics(),
		collector:   newCollector(src),
	}
	build := descBuild.gauges()
	build.WithLabelValues(runtime.Version(), version).Set(1)
	m.registry.MustRegister(m.kubeProxy.all()...)
	if src.Dataplane != "" {
		dp := descDataplane.gauges()
		dp.WithLabelValues(src.Dataplane).Set(1)
		fallback := descFallback.gauges()
		fallback.WithLabelValues(src.Fallback).Set(0)
		if src.Fallback != "" {
			fallback.WithLabelValues(src.Fallback).Set(1)
		}
		m.registry.MustRegister(dp, fallback)
	}
	m.registry.MustRegister(build, syncs, programming, m.answers, m.probes, m.collector,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// SetDetail changes what numbers of connections tell apart, as Sources has it.
func (m *Metrics) SetDetail(detail string, maxServices int) {
	m.collector.setDetail(detail, maxServices)
}

// Gatherer returns what MetricsHandler needs.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }

// ObserveSync records how long one Sync of the dataplane took, and which families
// (IPv4, IPv6) it changed; full says that it was of everything.
func (m *Metrics) ObserveSync(d time.Duration, changed [2]bool, full bool) {
	m.syncs.Observe(d.Seconds())
	m.kubeProxy.observeSync(d, changed, full)
}

// ObserveProgramming records how many seconds a change took from its event to
// the kernel.
func (m *Metrics) ObserveProgramming(seconds float64) { m.programming.Observe(seconds) }

// ObserveNetworkProgramming records how long endpoints of a family took from what
// made them change, by the clock of the control plane, to the kernel.
func (m *Metrics) ObserveNetworkProgramming(f lb.Family, d time.Duration) {
	m.kubeProxy.network.WithLabelValues(f.String()).Observe(d.Seconds())
}

// ObserveProbe records how long one probe of a backend took; result is one of
// ProbeHealthy, ProbeUnhealthy and ProbeCannot.
func (m *Metrics) ObserveProbe(kind lb.ProbeKind, took time.Duration, result string) {
	m.probes.WithLabelValues(kind.String(), result).Observe(took.Seconds())
}

// Answered records an answer of the health server.
func (m *Metrics) Answered(urlPath string, code int) {
	endpoint, text := path.Base(urlPath), strconv.Itoa(code)
	m.answers.WithLabelValues(text, endpoint).Inc()
	if c := m.kubeProxy.answers[endpoint]; c != nil {
		c.WithLabelValues(text).Inc()
	}
}
