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
}

// handle adds h for pattern.
func (l *listing) handle(pattern string, h http.Handler) {
	l.mux.Handle(pattern, h)
	_, path, ok := strings.Cut(pattern, " ")
	if !ok {
		path = pattern
	}
	l.served = append(l.served, path)
}

// paths returns what is served, sorted.
func (l *listing) paths() []string {
	return slices.Compact(slices.Sorted(slices.Values(l.served)))
}

// profiling adds the Go profiles, and PUT /debug/flags/v for setVerbosity.
func (l *listing) profiling(setVerbosity func(string) error, log *slog.Logger) {
	l.handle("/debug/pprof", http.RedirectHandler("/debug/pprof/", http.StatusMovedPermanently))
	l.handle("/debug/pprof/", http.HandlerFunc(pprof.Index))
	l.handle("/debug/pprof/profile", http.HandlerFunc(pprof.Profile))
	l.handle("/debug/pprof/symbol", http.HandlerFunc(pprof.Symbol))
	l.handle("/debug/pprof/trace", http.HandlerFunc(pprof.Trace))
	if setVerbosity == nil {
		return
	}
	l.handle("PUT /debug/flags/v", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
