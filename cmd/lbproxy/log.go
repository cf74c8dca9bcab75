// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"k8s.io/klog/v2"

	"github.com/lbproxy/lbproxy/internal/config"
)

// newLogger returns the agent's logger, and its level, which may be changed. What
// client-go logs goes there too, from now on.
func newLogger(w io.Writer, cfg config.Config) (*slog.Logger, *verbosity) {
	level := &verbosity{}
	level.configure(cfg.LogLevel)
	opts := &slog.HandlerOptions{Level: &level.level}
	var h slog.Handler = slog.NewTextHandler(w, opts)
	if cfg.LogFormat == config.JSON {
		h = slog.NewJSONHandler(w, opts)
	}
	clientLog.Store(&h)
	takeClientLog()
	return slog.New(h), level
}

// verboseFrom is the verbosity of Kubernetes' components from which on they tell what is
// for who looks for a fault.
const verboseFrom = 4

// verbosity is how much is logged. Its methods may be called from any goroutine.
type verbosity struct {
	level      slog.LevelVar
	configured atomic.Int64
}

// configure sets the level that the configuration has, if that is another one than before:
// what set has set stays else.
func (v *verbosity) configure(l slog.Level) {
	if v.configured.Swap(int64(l)) != int64(l) {
		v.level.Set(l)
	}
}

// set sets the level as a verbosity of Kubernetes' components does: from verboseFrom on
// everything is logged, below it what was configured.
func (v *verbosity) set(s string) error {
	n, err := strconv.ParseUint(s, 10, 31)
	switch {
	case err != nil:
		return fmt.Errorf("%q: want a number, %d or more for debug messages", s, verboseFrom)
	case n >= verboseFrom:
		v.level.Set(slog.LevelDebug)
	default:
		v.level.Set(slog.Level(v.configured.Load()))
	}
	return nil
}

// clientLog is where client-go's log goes.
var clientLog atomic.Pointer[slog.Handler]

// takeClientLog makes client-go log to clientLog. klog has one logger for the process,
// which goroutines read without a lock: it is set once, before there are any.
var takeClientLog = sync.OnceFunc(func() {
	klog.SetSlogLogger(slog.New(quiet{forward{to: &clientLog}}).With("component", "client-go"))
})

// forward is a handler that hands everything to another one, which may be exchanged.
type forward struct {
	to   *atomic.Pointer[slog.Handler]
	with []func(slog.Handler) slog.Handler // attributes and groups, in order
}

// Enabled tells whether a record of level l would be written.
func (f forward) Enabled(ctx context.Context, l slog.Level) bool {
	return (*f.to.Load()).Enabled(ctx, l)
}

// Handle writes r.
func (f forward) Handle(ctx context.Context, r slog.Record) error {
	h := *f.to.Load()
	for _, add := range f.with {
		h = add(h)
	}
	return h.Handle(ctx, r)
}

// WithAttrs returns a handler that adds as.
func (f forward) WithAttrs(as []slog.Attr) slog.Handler {
	return f.adding(func(h slog.Handler) slog.Handler { return h.WithAttrs(as) })
}

// WithGroup returns a handler that puts attributes into a group.
func (f forward) WithGroup(name string) slog.Handler {
	return f.adding(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}

func (f forward) adding(add func(slog.Handler) slog.Handler) forward {
	return forward{f.to, append(slices.Clip(f.with), add)}
}

// quiet lowers Info to Debug: what client-go finds worth telling calls for nobody
// to act.
type quiet struct{ slog.Handler }

func lowered(l slog.Level) slog.Level {
	if l < slog.LevelWarn {
		return min(l, slog.LevelDebug)
	}
	return l
}

// Enabled tells whether a record of level l would be written.
func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return q.Handler.Enabled(ctx, lowered(l))
}

// Handle writes r.
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level = lowered(r.Level)
	return q.Handler.Handle(ctx, r)
}

// WithAttrs returns a handler that adds as.
func (q quiet) WithAttrs(as []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(as)} }

// WithGroup returns a handler that puts attributes into a group.
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }
