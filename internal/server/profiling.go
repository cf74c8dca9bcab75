// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
)

// verbosityMax is how many bytes of a new verbosity are read.
const verbosityMax = 64

// listing is a mux that knows what it serves.
type listing struct {
	mux    *http.ServeMux
	served []string

	profiled []string    // is served, too, while enabled says so
	enabled  func() bool // nil: never
}

// handle adds h for pattern.
func (l *listing) handle(pattern string, h http.Handler) {
	l.mux.Handle(pattern, h)
	l.served = append(l.served, pathOf(pattern))
}

// pathOf returns a pattern without its method.
func pathOf(pattern string) string {
	if _, path, ok := strings.Cut(pattern, " "); ok {
		return path
	}
	return pattern
}

// paths returns what is served, sorted.
func (l *listing) paths() []string {
	if l.enabled != nil && l.enabled() {
		return slices.Compact(slices.Sorted(slices.Values(slices.Concat(l.served, l.profiled))))
	}
	return slices.Compact(slices.Sorted(slices.Values(l.served)))
}

// handleProfile adds h for pattern while profiling is enabled.
func (l *listing) handleProfile(pattern string, h http.Handler) {
	l.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if !l.enabled() {
			http.NotFound(w, r)
			return
		}
		h.ServeHTTP(w, r)
	})
	l.profiled = append(l.profiled, pathOf(pattern))
}

// profiling adds the Go profiles, and PUT /debug/flags/v for setVerbosity, while enabled
// says so.
func (l *listing) profiling(enabled func() bool, setVerbosity func(string) error, log *slog.Logger) {
	l.enabled = enabled
	l.handleProfile("/debug/pprof", http.RedirectHandler("/debug/pprof/", http.StatusMovedPermanently))
	l.handleProfile("/debug/pprof/", http.HandlerFunc(pprof.Index))
	l.handleProfile("/debug/pprof/profile", http.HandlerFunc(pprof.Profile))
	l.handleProfile("/debug/pprof/symbol", http.HandlerFunc(pprof.Symbol))
	l.handleProfile("/debug/pprof/trace", http.HandlerFunc(pprof.Trace))
	if setVerbosity == nil {
		return
	}
	l.handleProfile("PUT /debug/flags/v", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, verbosityMax))
		if err == nil {
			err = setVerbosity(strings.TrimSpace(string(body)))
		}
		if err != nil {
			http.Error(w, fmt.Sprintf("v: %v", err), http.StatusBadRequest)
			return
		}
		log.Info("verbosity changed", "v", strings.TrimSpace(string(body)))
		writeText(w, fmt.Sprintf("successfully set v to %s", body))
	}))
}
