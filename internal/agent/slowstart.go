// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// A slow start goes from minRamp to fullRamp, in 1/65536, and changes every
// 1/rampSteps of its duration. Steps of all Services are at multiples of rampStep,
// so that the loop wakes up at most ten times a second for any number of them.
const (
	minRamp   = (fullRamp + 9) / 10
	fullRamp  = 1 << 16
	rampSteps = 50
	rampStep  = 100 * time.Millisecond
)

// catchUp is how many times as long as its slow start a backend may stay at its end,
// if it has fewer connections than its peers by then. An algorithm that compares
// connections would give it every new one until it has as many.
const catchUp = 10

// starts are the slow starts of one Service.
type starts struct {
	since map[netip.AddrPort]time.Time // when each backend that is starting appeared
	next  time.Time                    // when the Service is to be compiled again
}

// noteStarts enters what changed from old to svc at the time given. A backend that
// appears, or whose weight was 0, starts. Where all are starting, those that came
// first have to do all the work at once. old is nil for a new Service, where nothing
// starts.
func (l *ledger) noteStarts(old, svc *lb.Service, at time.Time) {
	st := l.starting[svc.Name]
	if l.defaults.fill(svc.Balance).SlowStart <= 0 {
		delete(l.starting, svc.Name)
		return
	}
	if old == nil {
		return
	}
	was, is := serving(old), serving(svc)
	for _, addr := range is {
		if _, served := slices.BinarySearchFunc(was, addr, netip.AddrPort.Compare); served {
			continue
		}
		if st == nil {
			st = &starts{since: map[netip.AddrPort]time.Time{}}
			l.starting[svc.Name] = st
		}
		st.since[addr] = at
	}
	if st == nil {
		return
	}
	for addr := range st.since {
		if _, serves := slices.BinarySearchFunc(is, addr, netip.AddrPort.Compare); !serves {
			delete(st.since, addr)
		}
	}
	if len(st.since) == len(is) {
		st.establishFirst()
	}
	if len(st.since) == 0 {
		delete(l.starting, svc.Name)
	}
}

// establishFirst ends the slow start of the backends that appeared first.
func (st *starts) establishFirst() {
	var first time.Time
	for _, since := range st.since {
		if first.IsZero() || since.Before(first) {
			first = since
		}
	}
	maps.DeleteFunc(st.since, func(_ netip.AddrPort, since time.Time) bool { return since.Equal(first) })
}

// serving returns the backends of either pool that take new connections, sorted.
func serving(svc *lb.Service) []netip.AddrPort {
	out := make([]netip.AddrPort, 0, len(svc.Cluster.Backends))
	for _, sc := range []lb.Scope{lb.ScopeCluster, lb.ScopeLocal} {
		for _, be := range svc.Pool(sc).Backends {
			if be.Weight > 0 {
				out = append(out, be.Addr)
			}
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// ramps returns how far the backends of svc are at now, as Compile wants it, and
// forgets those that have arrived.
func (l *ledger) ramps(svc *lb.Service, now time.Time) map[netip.AddrPort]uint16 {
	st := l.starting[svc.Name]
	if st == nil {
		return nil
	}
	duration := l.defaults.fill(svc.Balance).SlowStart
	ramps := make(map[netip.AddrPort]uint16, len(st.since))
	behind := sync.OnceValue(func() map[netip.AddrPort]bool { return l.behind(svc, st) })
	var arrived []netip.AddrPort
	for addr, since := range st.since {
		switch passed := max(now.Sub(since), 0); {
		case passed < duration:
			ramps[addr] = ramp(passed, duration)
		case passed < catchUp*duration && behind()[addr]:
			ramps[addr] = fullRamp - 1
		default:
			arrived = append(arrived, addr)
		}
	}
	for _, addr := range arrived {
		delete(st.since, addr)
	}
	if len(ramps) == 0 {
		delete(l.starting, svc.Name)
	}
	return ramps
}

// behind returns the starting backends that have fewer connections for their weight
// than their established peers on average, where that decides who gets the next. One
// pool in which that is so is enough: each is balanced on its own.
func (l *ledger) behind(svc *lb.Service, st *starts) map[netip.AddrPort]bool {
	if l.live == nil || !algo.ByLoad(l.defaults.fill(svc.Balance).Algorithm) {
		return nil
	}
	live, behind := l.live(svc.Name), map[netip.AddrPort]bool{}
	for _, sc := range []lb.Scope{lb.ScopeCluster, lb.ScopeLocal} {
		backends := svc.Pool(sc).Backends
		var connections, weight uint64 // of those that are not starting
		for _, be := range backends {
			if _, starts := st.since[be.Addr]; !starts && be.Weight > 0 {
				connections += live[be.Addr]
				weight += uint64(be.Weight)
			}
		}
		for _, be := range backends {
			_, starts := st.since[be.Addr]
			if starts && live[be.Addr]*weight < connections*uint64(be.Weight) {
				behind[be.Addr] = true
			}
		}
	}
	return behind
}

// ramp is linear from minRamp at 0 to just below fullRamp before duration.
func ramp(passed, duration time.Duration) uint16 {
	return uint16(minRamp + (fullRamp-minRamp)*int64(passed)/int64(duration))
}

// scheduleStep sets when svc is compiled next, after it was at now: at the next step,
// or when the first of its backends arrives. Where its algorithm knows no slow
// start, that is when the last one does.
func (l *ledger) scheduleStep(svc *dataplane.Service, now time.Time) {
	st := l.starting[svc.Name]
	if st == nil {
		return
	}
	duration := svc.Balance.SlowStart
	var first, last time.Time
	for _, since := range st.since {
		end := since.Add(duration)
		if end.After(now) && (first.IsZero() || end.Before(first)) {
			first = end
		}
		if end.After(last) {
			last = end
		}
	}
	st.next = last
	if usesRamps(svc) {
		st.next = now.Add(max(duration/rampSteps, rampStep))
		if !first.IsZero() && first.Before(st.next) {
			st.next = first
		}
	}
	st.next = onStep(st.next)
}

// usesRamps tells whether a step would change something.
func usesRamps(svc *dataplane.Service) bool {
	return slices.ContainsFunc([]algo.Kind{svc.Cluster.Table.Kind, svc.Local.Table.Kind}, func(k algo.Kind) bool {
		return k != algo.None && k != algo.Hash
	})
}

// onStep returns t or the first multiple of rampStep after it.
func onStep(t time.Time) time.Time {
	if over := t.UnixNano() % int64(rampStep); over > 0 {
		return t.Add(rampStep - time.Duration(over))
	}
	return t
}

// held tells whether name waits for its next attempt or for a change. Its ramps are
// brought up to date then, so its steps need no wake-up.
func (l *ledger) held(name lb.ServiceName) bool {
	_, waits := l.waiting[name]
	return waits || l.invalid[name] != nil
}

// dueSteps returns the Services whose next step has come.
func (l *ledger) dueSteps(now time.Time) []lb.ServiceName {
	var due []lb.ServiceName
	for name, st := range l.starting {
		if st.next.After(now) || l.held(name) {
			continue
		}
		due = append(due, name)
	}
	return due
}

// stepTime returns when the next step is due, if there is one.
func (l *ledger) stepTime() (at time.Time, ok bool) {
	if l.full { // which brings everything up to date
		return at, false
	}
	for name, st := range l.starting {
		if l.held(name) {
			continue
		}
		if !ok || st.next.Before(at) {
			at, ok = st.next, true
		}
	}
	return at, ok
}
