// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// scrapes is how many scrapes may run at once.
const scrapes = 3

// Pages is what the metrics server shows. The paths are kube-proxy's.
type Pages struct {
	Metrics prometheus.Gatherer      // /metrics
	Mode    string                   // /proxyMode: the dataplane's name
	Configz func() any               // /configz, as JSON
	Flags   func() map[string]string // /flagz: every flag and its value
	Version string                   // /statusz: of the program
	Started time.Time                // /statusz, /metrics/slis

	// Profiling tells whether there are /debug/pprof/ and, unless SetVerbosity is nil, PUT
	// /debug/flags/v, whose body is handed to it. It is asked for each request.
	Profiling    func() bool // nil: never
	SetVerbosity func(string) error

	// Web, unless nil, adds pages for people below /web/, which show what it returns.
	Web  func(context.Context) (any, error)
	Node string // this node's name

	Log *slog.Logger
}

// MetricsHandler serves p, /healthz, which always says ok, and /metrics/slis, which
// tells of it.
func MetricsHandler(p Pages) http.Handler {
	m := &listing{mux: http.NewServeMux()}
	m.handle("GET /metrics", promhttp.HandlerFor(p.Metrics, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(p.Log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError, // some numbers are better than none
		MaxRequestsInFlight: scrapes,
		CoalesceGather:      true, // at 100,000 backends one takes 180 MB for a moment
	}))
	slis := newSLIs(p.Started)
	m.handle("/healthz", slis.ping(text("ok")))
	m.handle(pageSLIs, slis)
	m.handle("GET /proxyMode", text(p.Mode))
	m.handle("GET /configz", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, p.Configz())
	}))
	if p.Profiling != nil {
		m.profiling(p.Profiling, p.SetVerbosity, p.Log)
	}
	if p.Web != nil {
		m.web(p.Web, p.Node)
	}
	m.handle("GET /flagz", flagz(p))
	m.handle("GET /statusz", statusz(p, m.paths))
	return m.mux
}

func text(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		writeText(w, s)
	}
}

func writeText(w http.ResponseWriter, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = io.WriteString(w, s) // whom it cannot be sent to is gone
}
