// SPDX-License-Identifier: Apache-2.0

package server

import (
	"io"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// scrapes is how many scrapes may run at once.
const scrapes = 3

// MetricsHandler serves /metrics, /healthz, /proxyMode with the dataplane's name,
// and /configz with what configz returns, as JSON.
func MetricsHandler(reg prometheus.Gatherer, mode string, configz func() any, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError, // some numbers are better than none
		MaxRequestsInFlight: scrapes,
		CoalesceGather:      true, // at 100,000 backends one takes 180 MB for a moment
	}))
	mux.HandleFunc("/healthz", text("ok"))
	mux.HandleFunc("GET /proxyMode", text(mode))
	mux.HandleFunc("GET /configz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, configz())
	})
	return mux
}

func text(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = io.WriteString(w, s)
	}
}
