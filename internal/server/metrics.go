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
)

// Status is how far the agent is.
type Status struct {
	Synced       bool      // everything there was at start was written once
	LastSuccess  time.Time // zero: never
	Services     int       // Service ports in the kernel
	Failed       int       // Service ports that are not what they should be
	Backends     int       // of all Service ports
	Syncs        uint64
	SyncFailures uint64
}

// Problem is what several problems have in common.
type Problem struct {
	Kind   string // of the object: Service, Pod ...
	Reason string
}

// Sources are what a Metrics reads when it is scraped. What is nil is left out.
// All are called from any goroutine.
type Sources struct {
	Stats    func() (dataplane.Stats, error) // the result is the caller's to change
	Writes   func() uint64                   // to kernel tables
	Status   func() Status
	Problems func() map[Problem]int // how much objects ask for in vain
}

// Metrics is everything that is measured. The kernel's numbers are read at each
// scrape; only durations and HTTP answers are kept here.
type Metrics struct {
	registry    *prometheus.Registry
	syncs       prometheus.Histogram
	programming prometheus.Histogram
	answers     *prometheus.CounterVec
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
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "lbproxy_build_info",
		Help:        "Always 1; the labels tell what runs.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(build, m.syncs, m.programming, m.answers, newCollector(src),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Gatherer returns what MetricsHandler needs.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }

// ObserveSync records how long one Sync of the dataplane took.
func (m *Metrics) ObserveSync(d time.Duration) { m.syncs.Observe(d.Seconds()) }

// ObserveProgramming records how many seconds a change took from its event to
// the kernel.
func (m *Metrics) ObserveProgramming(seconds float64) { m.programming.Observe(seconds) }

// Answered records an answer of the health server.
func (m *Metrics) Answered(urlPath string, code int) {
	m.answers.WithLabelValues(path.Base(urlPath), strconv.Itoa(code)).Inc()
}
