// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// The first and the longest time between two attempts for what failed.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 30 * time.Second
)

// ledger is what the loop knows: what should be, and how much of it may not be in
// the kernel yet. It reads no clock.
type ledger struct {
	defaults Defaults
	desired  map[lb.ServiceName]*lb.Service
	objects  map[lb.Object][]*lb.Service // those in desired
	starting map[lb.ServiceName]*starts  // those that have backends in slow start
	outbox   outbox                      // what is told to others when it is in the kernel
	queued   [2]time.Time                // when the last change of a family came in: IPv4, IPv6

	// live returns the connections of a Service's backends; nil if nobody counts them.
	live func(lb.ServiceName) map[netip.AddrPort]uint64

	// dirty is what may differ from the kernel, since when. A name that is not in
	// desired is to be deleted.
	dirty map[lb.ServiceName]time.Time
	// waiting are those of dirty that failed: they wait for retryAt.
	waiting map[lb.ServiceName]setback
	// invalid are Services that cannot be compiled. They are not dirty: only a
	// change helps.
	invalid map[lb.ServiceName]error

	full    bool // everything is to be put, and the rest to go
	retryAt time.Time
	backoff time.Duration // 0 when nothing is waiting

	most struct{ dirty, waiting, starting int } // see shrunk
}

// familyIndex returns where f is in arrays of two: IPv4, IPv6.
func familyIndex(f lb.Family) int {
	if f == lb.IPv6 {
		return 1
	}
	return 0
}

// setback is a failed attempt.
type setback struct {
	err error
	own bool // concerns this Service only
}

func newLedger(d Defaults) ledger {
	return ledger{
		defaults: d,
		desired:  map[lb.ServiceName]*lb.Service{},
		objects:  map[lb.Object][]*lb.Service{},
		starting: map[lb.ServiceName]*starts{},
		outbox:   newOutbox(),
		dirty:    map[lb.ServiceName]time.Time{},
		waiting:  map[lb.ServiceName]setback{},
		invalid:  map[lb.ServiceName]error{},
	}
}

// note enters changes that came in at since. full says that they are everything.
func (l *ledger) note(changes []lb.Change, full bool, since time.Time) {
	if full {
		l.full = true
		l.retryAt = time.Time{}
		named := map[lb.Object]bool{}
		for _, ch := range changes {
			named[ch.Object] = true
		}
		gone := slices.AppendSeq(slices.Collect(maps.Keys(l.objects)), maps.Keys(l.outbox.checks))
		for _, obj := range gone {
			if !named[obj] {
				l.noteOne(lb.Change{Object: obj}, since)
			}
		}
	}
	for _, ch := range changes {
		l.noteOne(ch, since)
	}
	l.most.dirty, l.most.starting = max(l.most.dirty, len(l.dirty)), max(l.most.starting, len(l.starting))
}

// noteOne enters the present state of one object.
func (l *ledger) noteOne(ch lb.Change, since time.Time) {
	var differ []lb.ServiceName
	for _, svc := range ch.Services {
		if old := l.desired[svc.Name]; old != svc { // a Service never changes after it was published
			l.noteStarts(old, svc, since)
			l.desired[svc.Name] = svc
			l.mark(svc.Name, since)
			differ = append(differ, svc.Name)
		}
	}
	for _, old := range l.objects[ch.Object] {
		if !slices.ContainsFunc(ch.Services, func(svc *lb.Service) bool { return svc.Name == old.Name }) {
			delete(l.desired, old.Name)
			delete(l.starting, old.Name)
			l.mark(old.Name, since)
			differ = append(differ, old.Name)
		}
	}
	l.objects[ch.Object] = ch.Services
	if len(ch.Services) == 0 {
		delete(l.objects, ch.Object)
	}
	l.outbox.note(ch, differ)
}

// mark makes name due at once.
func (l *ledger) mark(name lb.ServiceName, since time.Time) {
	if _, ok := l.dirty[name]; !ok {
		l.dirty[name] = since
	}
	l.queued[familyIndex(name.Family)] = since
	delete(l.waiting, name)
	delete(l.invalid, name)
}

// setDefaults makes every Service due that d makes another one.
func (l *ledger) setDefaults(d Defaults, since time.Time) {
	old := l.defaults
	if old == d {
		return
	}
	l.defaults = d
	for name, svc := range l.desired {
		if old.fill(svc.Balance) != d.fill(svc.Balance) {
			l.mark(name, since)
		}
	}
}

// retryTime returns when the next attempt is due, if anything waits for one.
func (l *ledger) retryTime() (time.Time, bool) {
	return l.retryAt, len(l.waiting) > 0 || l.full && !l.retryAt.IsZero()
}

// wakeTime returns when there is something to do without an event, if ever.
func (l *ledger) wakeTime() (time.Time, bool) {
	retry, retries := l.retryTime()
	step, steps := l.stepTime()
	if steps && (!retries || step.Before(retry)) {
		return step, true
	}
	return retry, retries
}

// plan is one attempt.
type plan struct {
	at      time.Time
	delta   dataplane.Delta
	retries bool // has names that failed before
	work    bool // there is something to do
	invalid map[lb.ServiceName]error
}

// plan returns what is due at now. applied is what the dataplane has: in a full
// delta it stands in for Services that cannot be compiled.
func (l *ledger) plan(now time.Time, applied map[lb.ServiceName]*dataplane.Service) plan {
	p := plan{at: now, invalid: map[lb.ServiceName]error{}}
	due := !now.Before(l.retryAt)
	if l.full {
		// Nothing is sure before the first full Sync, so changes wait with it.
		if due {
			l.planFull(&p, applied)
		}
		return p
	}
	names := slices.AppendSeq(l.dueSteps(now), maps.Keys(l.dirty))
	slices.SortFunc(names, lb.ServiceName.Compare)
	for _, name := range slices.Compact(names) {
		if _, waits := l.waiting[name]; waits {
			if !due {
				continue
			}
			p.retries = true
		}
		if l.desired[name] == nil {
			p.delta.Delete = append(p.delta.Delete, name)
		} else if svc := l.compile(&p, name); svc != nil {
			p.delta.Put = append(p.delta.Put, svc)
		}
	}
	p.work = len(p.delta.Put)+len(p.delta.Delete) > 0
	return p
}

func (l *ledger) planFull(p *plan, applied map[lb.ServiceName]*dataplane.Service) {
	p.work, p.delta.Full, p.retries = true, true, len(l.waiting) > 0
	for _, name := range slices.SortedFunc(maps.Keys(l.desired), lb.ServiceName.Compare) {
		svc := l.compile(p, name)
		if svc == nil {
			svc = applied[name]
		}
		if svc != nil {
			p.delta.Put = append(p.delta.Put, svc)
		}
	}
}

// compile returns nil for a Service that cannot be compiled, and notes why.
func (l *ledger) compile(p *plan, name lb.ServiceName) *dataplane.Service {
	want := l.desired[name]
	svc, err := Compile(want, l.defaults, l.ramps(want, p.at))
	if err != nil {
		delete(l.dirty, name)
		delete(l.waiting, name)
		l.invalid[name], p.invalid[name] = err, err
		l.outbox.tried(name)
		return nil
	}
	l.scheduleStep(svc, p.at)
	return svc
}

// outcome is what an attempt achieved.
type outcome struct {
	put   []*dataplane.Service
	gone  []lb.ServiceName
	since []time.Time // when the changes came in that are now in the kernel
}

// settle enters the result of p: failed for single Services, whole for all.
func (l *ledger) settle(p plan, failed map[lb.ServiceName]error, whole error, now time.Time) outcome {
	var out outcome
	gone := p.delta.Delete
	if p.delta.Full {
		for name := range l.dirty {
			if l.desired[name] == nil {
				gone = append(gone, name)
			}
		}
	}
	for _, svc := range p.delta.Put {
		if l.settleOne(svc.Name, failed, whole, now, &out) {
			out.put = append(out.put, svc)
		}
	}
	for _, name := range gone {
		if l.settleOne(name, failed, whole, now, &out) {
			out.gone = append(out.gone, name)
		}
	}
	for name, err := range failed { // what a full Sync found and could not remove
		if _, known := l.dirty[name]; !known && l.invalid[name] == nil {
			l.dirty[name], l.waiting[name] = now, setback{err, true}
		}
	}
	l.most.dirty, l.most.waiting = max(l.most.dirty, len(l.dirty)), max(l.most.waiting, len(l.waiting))
	l.full = l.full && whole != nil
	l.schedule(p.retries, len(out.gone) > 0, now)
	l.tidy()
	return out
}

// tidy makes maps small that were large.
func (l *ledger) tidy() {
	l.dirty = shrunk(l.dirty, &l.most.dirty)
	l.waiting = shrunk(l.waiting, &l.most.waiting)
	l.starting = shrunk(l.starting, &l.most.starting)
}

// shrunk returns m, or a copy if it had many times as many entries as it has. To walk
// a map takes as long as if it were as full as it ever was, and some are walked with
// each change. most is the largest number of entries m had.
func shrunk[K comparable, V any](m map[K]V, most *int) map[K]V {
	const large, times = 64, 8
	*most = max(*most, len(m))
	if *most < large || len(m) > *most/times {
		return m
	}
	*most = len(m)
	small := make(map[K]V, len(m))
	maps.Copy(small, m)
	return small
}

// settleOne enters the result for one name and tells whether it was applied.
func (l *ledger) settleOne(
	name lb.ServiceName, failed map[lb.ServiceName]error, whole error, now time.Time, out *outcome,
) bool {
	l.outbox.tried(name)
	since, dirty := l.dirty[name]
	own, ok := failed[name]
	if ok || whole != nil {
		if l.invalid[name] == nil {
			if !dirty {
				l.dirty[name] = now
			}
			l.waiting[name] = setback{err: cmp.Or(own, whole), own: ok}
		}
		return false
	}
	if dirty {
		out.since = append(out.since, since)
	}
	delete(l.dirty, name)
	delete(l.waiting, name)
	return true
}

// schedule sets the time of the next attempt. What a deleted Service left behind
// may be what another one waits for, so then that is tried at once.
func (l *ledger) schedule(retried, freed bool, now time.Time) {
	switch {
	case len(l.waiting) == 0 && !l.full:
		l.backoff, l.retryAt = 0, time.Time{}
	case l.backoff == 0 || retried || l.full || !l.retryAt.After(now):
		l.backoff = min(max(2*l.backoff, minBackoff), maxBackoff)
		l.retryAt = now.Add(l.backoff)
	}
	if freed && !l.full && len(l.waiting) > 0 {
		l.retryAt = now
	}
}

// forget drops from told every name that is neither waiting nor invalid, so that
// its next failure is reported again.
func (l *ledger) forget(told map[lb.ServiceName]string) {
	for name := range told {
		if _, waits := l.waiting[name]; !waits && l.invalid[name] == nil {
			delete(told, name)
		}
	}
}

// failures returns why Services are not what they should be.
func (l *ledger) failures() map[lb.ServiceName]error {
	if len(l.waiting)+len(l.invalid) == 0 {
		return nil
	}
	out := maps.Clone(l.invalid)
	for name, s := range l.waiting {
		out[name] = s.err
	}
	return out
}

// queuedSince returns when the oldest change of each family came in (IPv4, IPv6) that
// is not applied for a reason other than itself, or zero. If every Service fails, the
// reason is not the Services.
func (l *ledger) queuedSince() (oldest [2]time.Time) {
	own := 0
	for _, s := range l.waiting {
		if s.own {
			own++
		}
	}
	all := own > 0 && own >= len(l.desired)
	for name, since := range l.dirty {
		if !all && l.waiting[name].own {
			continue
		}
		i := familyIndex(name.Family)
		oldest[i] = earlier(oldest[i], since)
	}
	return oldest
}

// earlier returns the earlier of two times; the zero Time is none.
func earlier(t, o time.Time) time.Time {
	if t.IsZero() || !o.IsZero() && o.Before(t) {
		return o
	}
	return t
}
