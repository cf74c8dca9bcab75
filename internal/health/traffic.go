// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// answerTime is how long after a connection was begun it has been answered, has failed or
// has become a symptom: SYNs are sent again after 1 s.
const answerTime = 1500 * time.Millisecond

// firstLook is for how long it is too early to say that a backend has no connections which no
// probe ever reached: a dataplane may know of new ones by readings, one a second, of which
// it takes two.
const firstLook = 2500 * time.Millisecond

// unreached tells whether a probe failed because it could not connect: refused, or not
// answered. That is what a network does that forbids it. A TCP probe does nothing but
// connect.
func unreached(kind lb.ProbeKind, err error) bool {
	var op *net.OpError
	if err == nil || errors.Is(err, ErrCannot) || errors.Is(err, context.Canceled) {
		return false
	}
	return kind == lb.ProbeTCP || errors.Is(err, ErrUnreached) || errors.As(err, &op) && op.Op == "dial" ||
		errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}

// window is what became of a backend's connections since probes began to fail.
type window struct {
	open   bool      // the following is known
	since  time.Time // when it was opened
	opened uint64    // by then
	failed uint64    // by then
	grew   time.Time // when it was first seen that there are new ones; zero: there are none
}

// look takes note of how many connections were opened and have failed, and tells how they
// fare. proven: probes succeeded before, so that what was before does not count. A
// symptom closes the window.
func (w *window) look(opened, failed uint64, proven bool, now time.Time) traffic {
	if !w.open {
		*w = window{open: true, since: now, opened: opened, failed: failed}
		if !proven {
			w.opened, w.failed = 0, 0
		}
	}
	if failed != w.failed || opened < w.opened { // also if they were counted anew
		return trafficUnknown
	}
	if opened == w.opened {
		if !proven && now.Sub(w.since) < firstLook {
			return trafficOpen
		}
		return trafficUnknown
	}
	if w.grew.IsZero() {
		w.grew = now
	}
	if now.Sub(w.grew) < answerTime {
		return trafficOpen
	}
	return trafficAnswered
}

// counts is what Options.Served said.
type counts struct {
	opened, failed uint64
	ok             bool
}

// question names a backend of a Service port.
type question struct {
	service lb.ServiceName
	backend netip.AddrPort
}

// result turns what a probe found into an event, as far as it does not depend on the
// backend.
func result(t *aimed, r Result) event {
	e := event{kind: passed, began: t.began}
	switch {
	case r.Err == nil:
		return e
	case errors.Is(r.Err, ErrCannot), errors.Is(r.Err, context.Canceled):
		e.kind = mute
	default:
		e.kind, e.unreached = failed, unreached(t.probe.Kind, r.Err)
	}
	e.reason = r.Err.Error()
	return e
}
