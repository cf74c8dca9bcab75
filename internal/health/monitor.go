// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// Kernel is the part of a dataplane.Witness that a Monitor needs.
type Kernel interface {
	Symptoms() <-chan lb.Symptom
	Suspect(name lb.ServiceName, backend netip.AddrPort, until time.Time, calm time.Duration) error
}

// Reporter tells the owner of a Service about it. It must not block; eventtype is Normal
// or Warning, reason a CamelCase word.
type Reporter interface {
	ServiceEvent(obj lb.Object, eventtype, reason, message string)
}

// Options describe a Monitor.
type Options struct {
	Prober   Prober
	Defaults lb.Health // of Services that do not say it; complete
	Kernel   Kernel    // may be nil: then nothing is known of connections

	// Served returns what became of connections to a backend. It is asked when probes
	// cannot reach the backend; !ok: not known. May be nil.
	Served func(name lb.ServiceName, backend netip.AddrPort) (o lb.Outcomes, ok bool)

	Reporter Reporter                                               // may be nil
	Observe  func(kind lb.ProbeKind, took time.Duration, err error) // is told each probe; may be nil
	Log      *slog.Logger
}

// Monitor watches the backends of Services and decides which of them get no new
// connections. Its methods may be called from any goroutine; Run does the work and is
// called once.
type Monitor struct {
	o      Options
	log    *slog.Logger
	filter *Filter
	wake   chan struct{} // capacity 1: something is due earlier, or a probe has ended

	ended struct { // probes that have
		sync.Mutex
		list  []ending
		bad   bool     // one of them failed
		spare []ending // for the next ones
	}
	due     []*aimed // for start
	targets []Target

	mu       sync.Mutex
	defaults lb.Health
	objects  map[lb.Object]*object
	schedule schedule
	touched  map[*watch]bool // to be ruled anew
	news     []news          // to be told when the lock is released
	budgets  budgets
	stats    Stats

	dirtyObjects []*object // whose dirty is set, and maybe others
}

// ending is the end of a probe.
type ending struct {
	aimed  *aimed
	result Result
}

// Stats counts what a Monitor knows and did.
type Stats struct {
	Backends    map[State]int       // that are watched
	Transitions map[[2]State]uint64 // from, to
	Ejections   map[string]uint64   // by cause: probe, refused, unanswered, reset
	Ignored     int                 // backends that are ejected and take connections all the same
	Targets     int                 // different probes
}

// object is a Service object as the source has it and as it is handed on.
type object struct {
	name   lb.Object
	health lb.HealthCheck
	ports  []port
	dirty  bool // what is handed on is another one
}

// port is one balanced port of an object.
type port struct {
	svc   *lb.Service // the source's
	out   *lb.Service // what is handed on; nil: to be made
	watch *watch      // nil: nothing is known of its backends, and nobody asks
}

// watch is what is known of the backends of a port.
type watch struct {
	object   *object
	name     lb.ServiceName
	health   lb.Health // complete
	backends map[netip.AddrPort]*backend
	rulings  [2]ruling // of the pools, by lb.Scope
	local    bool      // the local pool has backends
	ignored  int       // backends that are ejected in vain
	muted    bool      // it was told that probes cannot be made
}

// backend is one that is watched.
type backend struct {
	watch  *watch
	addr   netip.AddrPort
	mark   mark
	wish   wish
	aimed  *aimed    // nil: there is no wish
	sick   time.Time // when the last symptom came
	window window
}

// pace is how long results that are good, and probes that are due, wait for others.
const pace = 5 * time.Millisecond

// NewMonitor returns a Monitor that watches what its Filter sees.
func NewMonitor(o Options) *Monitor {
	return &Monitor{
		o:        o,
		log:      o.Log,
		wake:     make(chan struct{}, 1),
		defaults: o.Defaults,
		objects:  map[lb.Object]*object{},
		schedule: newSchedule(),
		touched:  map[*watch]bool{},
		budgets:  budgets{},
		stats: Stats{
			Backends:    map[State]int{},
			Transitions: map[[2]State]uint64{},
			Ejections:   map[string]uint64{},
		},
	}
}

// Run probes and decides until ctx ends. It runs the Prober, too, and returns nil when no
// probe is under way any more.
func (m *Monitor) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.o.Prober.Run(ctx) })
	g.Go(func() error { return m.loop(ctx) })
	return g.Wait()
}

// loop starts what is due and takes note of what ended and what was seen.
func (m *Monitor) loop(ctx context.Context) error {
	var symptoms <-chan lb.Symptom
	if m.o.Kernel != nil {
		symptoms = m.o.Kernel.Symptoms()
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last time.Time // when it was looked
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
			if wait := m.pause() - time.Since(last); wait > 0 {
				timer.Reset(wait) // what ends meanwhile is settled with it
				continue
			}
		case <-timer.C:
		case s := <-symptoms:
			m.see(s, time.Now())
		}
		last = time.Now()
		m.settle(last)
		next, ok := m.start(last)
		if !ok {
			timer.Stop()
			continue
		}
		timer.Reset(max(time.Until(next), pace))
	}
}

// nudge makes loop look.
func (m *Monitor) nudge() {
	select {
	case m.wake <- struct{}{}:
	default: // it has not yet looked
	}
}

// start starts the probes that are due, and returns when the next one is.
func (m *Monitor) start(now time.Time) (next time.Time, ok bool) {
	due, targets := m.due[:0], m.targets[:0]
	m.locked(func() {
		for t := m.schedule.pop(now); t != nil; t = m.schedule.pop(now) {
			t.busy = true // what a tick changes does not put it back into the queue
			if !m.wantsProbe(t, now) {
				t.busy = false
				m.schedule.plan(t)
				continue
			}
			t.began = now
			if t.done == nil {
				t.done = func(r Result) { m.end(t, r) }
			}
			due = append(due, t)
			targets = append(targets, Target{Addr: t.addr, Probe: t.probe, Service: t.backends[0].watch.name})
		}
		next, ok = m.schedule.next()
	})
	for i, t := range due {
		m.o.Prober.Start(targets[i], t.done)
	}
	m.due, m.targets = due, targets
	clear(m.due)
	clear(m.targets)
	return next, ok
}

// wantsProbe tells whether a backend of t waits for a probe now. Those for which only time
// had to pass are told that it has.
func (m *Monitor) wantsProbe(t *aimed, now time.Time) bool {
	wants := false
	for _, b := range t.each() {
		switch {
		case b.wish.at.After(now):
		case b.wish.probe:
			wants = true
		default:
			m.tell(b, event{kind: ticked}, now)
		}
	}
	return wants
}

// end takes note that a probe has ended.
func (m *Monitor) end(t *aimed, r Result) {
	m.ended.Lock()
	nudge := len(m.ended.list) == 0 || r.Err != nil && !m.ended.bad
	m.ended.list = append(m.ended.list, ending{t, r})
	m.ended.bad = m.ended.bad || r.Err != nil
	m.ended.Unlock()
	if nudge {
		m.nudge()
	}
}

// pause returns how long to wait between two looks at what has ended and what is due, so that
// many probes cost one look. Symptoms are looked at at once.
func (m *Monitor) pause() time.Duration {
	m.ended.Lock()
	defer m.ended.Unlock()
	if m.ended.bad {
		return time.Millisecond
	}
	return pace
}

// settle tells backends what probes found that have ended.
func (m *Monitor) settle(now time.Time) {
	m.ended.Lock()
	list := m.ended.list
	m.ended.bad = false
	m.ended.list, m.ended.spare = m.ended.spare[:0], nil
	m.ended.Unlock()
	defer func() {
		clear(list)
		m.ended.Lock()
		m.ended.spare = list
		m.ended.Unlock()
	}()
	if len(list) == 0 {
		return
	}
	served := m.ask(list)
	m.locked(func() {
		for _, e := range list {
			m.settleOne(e, served, now)
		}
	})
	if m.o.Observe == nil {
		return
	}
	for _, e := range list {
		m.o.Observe(e.aimed.probe.Kind, e.result.Took, e.result.Err)
	}
}

// settleOne tells the backends of one probe.
func (m *Monitor) settleOne(e ending, served map[question]lb.Outcomes, now time.Time) {
	t, ev := e.aimed, result(e.aimed, e.result)
	for _, b := range t.each() {
		if ev.kind == passed && b.mark.Symptom != 0 && b.sick.After(t.began) {
			continue // it tells of the time before the symptom
		}
		one := ev
		if ev.unreached {
			o, ok := served[question{b.watch.name, b.addr}]
			one.traffic = b.fares(o, ok, e.result.Err, now)
		}
		m.tell(b, one, now)
	}
	t.busy = false
	m.schedule.plan(t)
}

// ask asks how connections fare to those backends of which it matters.
func (m *Monitor) ask(list []ending) map[question]lb.Outcomes {
	if m.o.Served == nil || m.o.Kernel == nil {
		return nil
	}
	var questions []question
	m.mu.Lock()
	for _, e := range list {
		if !unreached(e.aimed.probe.Kind, e.result.Err) {
			continue
		}
		for _, b := range e.aimed.backends {
			if w := b.watch; w.name.Proto == lb.TCP && w.health.Passive == lb.SwitchOn {
				questions = append(questions, question{w.name, b.addr})
			}
		}
	}
	m.mu.Unlock()
	answers := make(map[question]lb.Outcomes, len(questions))
	for _, q := range questions {
		if o, ok := m.o.Served(q.service, q.backend); ok {
			answers[q] = o
		}
	}
	return answers
}

// see takes note of a symptom.
func (m *Monitor) see(s lb.Symptom, now time.Time) {
	m.locked(func() {
		p := m.port(s.Service)
		if p == nil || !hasBackend(p.svc, s.Backend) {
			return
		}
		h := m.health(p.svc)
		if h.Passive != lb.SwitchOn {
			return
		}
		if p.watch == nil {
			p.watch = newWatch(m.objects[s.Service.Object], p.svc.Name, h)
		}
		b := p.watch.backends[s.Backend]
		if b == nil {
			b = m.watchOne(p.watch, s.Backend)
		}
		if b.mark.Symptom == 0 {
			b.sick = now
		}
		m.tell(b, event{kind: symptom, symptom: s.Kind}, now)
	})
}

// tell tells a backend's mark of an event, and does what follows.
func (m *Monitor) tell(b *backend, e event, now time.Time) {
	w, old := b.watch, b.mark
	b.mark, b.wish = step(old, e, now, &w.health)
	if wait := b.wish.at.Sub(now); b.wish.probe && wait > 0 {
		b.wish.at = b.wish.at.Add(rand.N(wait/10 + 1)) // so that nodes and backends do not keep in step
	}
	b.follow(&old, e, now)
	m.moved(b, &old)
	m.follow(b, &old, e)
	if b.wish == (wish{}) {
		m.drop(b)
		return
	}
	if b.aimed != nil {
		m.schedule.plan(b.aimed)
		return
	}
	m.schedule.join(b, aimAt(b.addr, &w.health))
}

// moved counts a change of state.
func (m *Monitor) moved(b *backend, old *mark) {
	from, to := old.State, b.mark.State
	if from == to {
		return
	}
	m.stats.Backends[from]--
	m.stats.Backends[to]++
	m.stats.Transitions[[2]State{from, to}]++
	if from == Ejected || to == Ejected {
		m.touched[b.watch] = true
	}
	if to == Ejected {
		m.stats.Ejections[b.mark.Cause]++
	}
}

// watchOne begins to watch a backend.
func (m *Monitor) watchOne(w *watch, addr netip.AddrPort) *backend {
	b := &backend{watch: w, addr: addr}
	w.backends[addr] = b
	m.stats.Backends[Unknown]++
	return b
}

// drop forgets a backend.
func (m *Monitor) drop(b *backend) {
	w := b.watch
	if w.backends[b.addr] != b {
		return
	}
	m.schedule.leave(b)
	delete(w.backends, b.addr)
	m.stats.Backends[b.mark.State]--
	if b.mark.State == Ejected {
		m.touched[w] = true
	}
	if len(w.backends) == 0 {
		m.touched[w] = true // it may be forgotten
	}
}

// locked runs f under the lock, rules what it touched, and tells what came out.
func (m *Monitor) locked(f func()) {
	m.mu.Lock()
	f()
	m.ruleTouched()
	fresh := m.news
	m.news = nil
	dirty := len(m.dirtyObjects) > 0 && m.filter != nil && m.filter.full
	if dirty && m.filter.since.IsZero() {
		m.filter.since = time.Now()
	}
	m.mu.Unlock()
	if dirty {
		m.filter.src.Nudge()
	}
	m.deliver(fresh)
}
