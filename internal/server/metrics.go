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

	Dataplane    string                // its name; empty: not told
	Fallback     string                // why it is not the better one; empty: it is, or was asked for
	Approximated func() map[string]int // Service ports whose balancing is not exact, by algorithm
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
	syncs       prometheus.Histogram
	programming prometheus.Histogram
	answers     *prometheus.CounterVec
	probes      *prometheus.HistogramVec
	kubeProxy   kubeProxyMetrics
}

// NewMetrics returns the metrics of an agent of the given version.
func NewMetrics(version string, src Sources) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		syncs: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "lbproxy_sync_duration_seconds",
			Help:    "Time the dataplane took to apply a set of changes.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18), // 50 µs to 6.6 s
		}),
		programming: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "lbproxy_programming_latency_seconds",
			Help:    "Time from the event of a change until the change was in the kernel.",
			Buckets: prometheus.ExponentialBuckets(100e-6, 2, 20), // 100 µs to 52 s
		}),
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lbproxy_health_answers_total",
			Help: "Answers of the health server by endpoint, healthz or livez, and HTTP code.",
		}, []string{"endpoint", "code"}),
		probes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "lbproxy_health_probe_duration_seconds",
			Help:    "Time that probes of backends took, by kind and by result: healthy, unhealthy, or cannot, which says nothing of the backend.",
			Buckets: prometheus.ExponentialBuckets(250e-6, 2, 19), // 250 µs to 66 s
		}, []string{"kind", "result"}),
		kubeProxy: newKubeProxyMetrics(),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "lbproxy_build_info",
		Help:        "Always 1; the labels tell what runs.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(m.kubeProxy.all()...)
	if src.Dataplane != "" {
		dp := prometheus.NewGauge(prometheus.GaugeOpts{
			Name:        "lbproxy_dataplane_info",
			Help:        "Always 1; the label tells which dataplane serves.",
			ConstLabels: prometheus.Labels{"dataplane": src.Dataplane},
		})
		dp.Set(1)
		m.registry.MustRegister(dp, newFallback(src.Fallback))
	}
	m.registry.MustRegister(build, m.syncs, m.programming, m.answers, m.probes, newCollector(src),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// newFallback returns the gauge that says whether the agent runs with the lesser dataplane.
func newFallback(because string) prometheus.Gauge {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "lbproxy_dataplane_fallback",
		Help:        "1 if the dataplane serves because the better one cannot, which the label tells; else 0.",
		ConstLabels: prometheus.Labels{"because": because},
	})
	if because != "" {
		g.Set(1)
	}
	return g
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
	m.answers.WithLabelValues(endpoint, text).Inc()
	if c := m.kubeProxy.answers[endpoint]; c != nil {
		c.WithLabelValues(text).Inc()
	}
}
