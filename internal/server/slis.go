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

func newSLIs(started time.Time) *slis {
	s := &slis{
		last: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kubernetes_healthcheck", Help: "Result of a health check: 1 is healthy.",
		}, []string{"name", "type"}),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kubernetes_healthchecks_total", Help: "Results of health checks.",
		}, []string{"name", "status", "type"}),
	}
	begun := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "process_start_time_seconds", Help: "Start time of the process since unix epoch in seconds.",
	})
	begun.Set(seconds(started))
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
