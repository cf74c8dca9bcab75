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

// How long connections are waited for that tell of a backend which no probe ever reached,
// from the first failure on, and if nothing can be read of them.
const (
	firstLook = 2500 * time.Millisecond
	lastLook  = 4 * firstLook
)

// fewAnswered is how many connections fail for one that is answered, at most, where
// something is wrong with those who fail and not with the backend.
const fewAnswered = 9

// How many connections have to fail, while none is answered, for a backend on trial to be
// out; the second is for one of which symptoms were false alarms.
const (
	fewFailed  = 3
	manyFailed = fewAnswered + 1
)

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

// window is what became of connections to a backend after a time: since probes began to
// fail, or while it is on trial.
type window struct {
	since    time.Time   // zero: it is closed
	base     lb.Outcomes // read after that; its At is zero as long as there is none
	last     lb.Outcomes // that was read after that
	symptoms uint64      // since base
}

// open opens w: what was read before does not count.
func (w *window) open(now time.Time) { *w = window{since: now} }

// read takes note of a reading, and returns how many connections were answered, and failed,
// after base. !ok: the reading was made before the window was opened. Then it tells
// nothing: what the next one has more may have been there before, too.
func (w *window) read(o lb.Outcomes) (answered, failed uint64, ok bool) {
	if o.At.Before(w.since) {
		return 0, 0, false
	}
	if w.base.At.IsZero() || o.Answered < w.base.Answered || o.Failed < w.base.Failed { // or counted anew
		w.base = o
	}
	w.last = o
	return o.Answered - w.base.Answered, max(o.Failed-w.base.Failed, w.symptoms), true
}

// some tells whether connections are answered, although some fail.
func some(answered, failed uint64) bool { return answered > 0 && answered*fewAnswered >= failed }

// look takes note of what was read while a probe cannot connect, and tells how connections
// fare. It opens a window that is closed. proven: probes reached the backend before, so
// that they decide; otherwise connections are waited for.
func (w *window) look(o lb.Outcomes, proven bool, now time.Time) traffic {
	if w.since.IsZero() {
		w.open(now)
	}
	answered, failed, ok := w.read(o)
	switch {
	case some(answered, failed):
		return trafficAnswered
	case proven:
	case ok && o.At.Sub(w.since) < firstLook, !ok && now.Sub(w.since) < lastLook:
		return trafficOpen
	}
	return trafficNone
}

// try is look of a backend on trial. enough is how many connections have to fail. Those that
// were answered count once.
func (w *window) try(o lb.Outcomes, enough uint64) traffic {
	answered, failed, _ := w.read(o)
	switch {
	case some(answered, failed):
		w.base, w.symptoms = o, 0
		return trafficAnswered
	case failed >= enough:
		return trafficFails
	}
	return trafficOpen
}

// look takes note of what was read of b's connections while a probe cannot connect, and
// tells how they fare. The first symptom of one on trial only begins to count: that it
// was well before tells nothing.
func (b *backend) look(o lb.Outcomes, now time.Time) traffic {
	m := &b.mark
	switch {
	case !m.Trial:
		return b.window.look(o, m.Proven, now)
	case m.Alarms > 0:
		return b.window.try(o, manyFailed)
	case m.Symptom != 0 && b.window.symptoms == 1:
		b.window.base = o
	}
	return b.window.try(o, fewFailed)
}

// fares tells how connections to b fare after a probe could not connect by err. !ok: nothing
// could be read of them now.
func (b *backend) fares(o lb.Outcomes, ok bool, err error, now time.Time) traffic {
	is := trafficNone
	if ok {
		is = b.look(o, now)
	}
	seen := later(b.window.since, b.window.last.At)
	late := now.Sub(seen) >= deafIntervals*b.watch.health.Interval
	switch {
	case ok && o.NoRefusals && errors.Is(err, syscall.ECONNREFUSED):
		return trafficUnseen
	case late && (is == trafficNone || is == trafficAnswered):
		return trafficUnknown
	}
	return is
}

// follow makes the window of b that of its mark, which was old.
func (b *backend) follow(old *mark, e event, now time.Time) {
	switch {
	case e.kind == passed:
		b.window = window{}
	case old.State != Ejected && b.mark.State == Ejected:
		b.window.open(now)
	case b.mark.Trial && !old.Trial: // nothing new was begun while it was out
		b.window = window{since: now, base: b.window.last, last: b.window.last}
	case b.mark.Trial && b.mark.Symptom != 0 && old.Symptom == 0:
		b.window.symptoms++
	case b.mark.Trial:
	case e.kind == symptom && b.mark.State != Ejected:
		b.window = window{}
	}
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
