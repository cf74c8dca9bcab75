// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// slis counts answers of the metrics server's /healthz, as /metrics/slis of every
// component of Kubernetes does. They have a registry of their own, for they are scraped
// more often than /metrics. DELETE forgets them.
// Source: Kubernetes 1.37 staging/src/k8s.io/component-base/metrics/prometheus/slis.
type slis struct {
	http.Handler
	last  *prometheus.GaugeVec
	total *prometheus.CounterVec
}

const pageSLIs = "/metrics/slis"

var (
	descCheck = describe(Metric{Name: "kubernetes_healthcheck", Kind: Gauge, Labels: []Label{labelName, labelType}, Page: pageSLIs,
		Help: "Result of a health check: 1 is healthy."})
	descChecks = describe(Metric{Name: "kubernetes_healthchecks_total", Kind: Counter, Labels: []Label{labelName, labelStatus, labelType}, Page: pageSLIs,
		Help: "Results of health checks."})
	descBegun = describe(Metric{Name: "process_start_time_seconds", Kind: Gauge, Page: pageSLIs,
		Help: "Start time of the process since unix epoch in seconds."})
)

func newSLIs(started time.Time) *slis {
	s := &slis{last: descCheck.gauges(), total: descChecks.counters()}
	begun := descBegun.gauges()
	begun.WithLabelValues().Set(seconds(started))
	registry := prometheus.NewRegistry()
	registry.MustRegister(s.last, s.total, begun)
	s.Handler = promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: scrapes})
	return s
}

// ServeHTTP answers a scrape, or forgets.
func (s *slis) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodDelete {
		s.last.Reset()
		s.total.Reset()
		writeText(w, "metrics reset\n")
		return
	}
	s.Handler.ServeHTTP(w, r)
}

// ping counts answers of h, which is always healthy.
func (s *slis) ping(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.last.WithLabelValues("ping", "healthz").Set(1)
		s.total.WithLabelValues("ping", "success", "healthz").Inc()
		h.ServeHTTP(w, r)
	})
}
