// SPDX-License-Identifier: Apache-2.0

// Package agent is the loop: it takes what changed from a Source, compiles it and
// hands it to a dataplane, until the kernel does what was described.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Source says what should be. It is level-triggered: events mark it dirty, and
// Take returns the present state of what differs since the last Take.
type Source interface {
	// Dirty has a value when Take may have something. Its capacity is 1.
	Dirty() <-chan struct{}
	// Since returns when the oldest event came in that no Take has taken up; zero: there is
	// none.
	Since() time.Time
	// Take returns the objects that changed. full says that they are everything
	// there is; the first result that has anything is full.
	Take() (changes []lb.Change, full bool)
}

// Reporter tells the owner of a Service about it. It must not block; eventtype
// is Normal or Warning, reason a CamelCase word.
type Reporter interface {
	ServiceEvent(obj lb.Object, eventtype, reason, message string)
}

// The reasons of the events that an Agent reports, all of type Warning.
const (
	ReasonInvalid = "InvalidService"   // it cannot be compiled: what worked before stays
	ReasonFailed  = "ProgrammingError" // the dataplane refused it; it is tried again
)

// Options describe an Agent.
type Options struct {
	Source    Source
	Dataplane dataplane.Dataplane
	Loads     dataplane.LoadReader // may be nil: then slow starts end without catching up
	Log       *slog.Logger
	Algorithm string                // of Services that name none
	SlowStart time.Duration         // of Services that do not say it; 0: none
	Reporter  Reporter              // may be nil
	Observe   func(seconds float64) // from a change's event until it is in the kernel; may be nil

	// AuditPeriod is how long a comparison of everything with the kernel takes, and
	// there is always one under way if the Dataplane is an Auditor; 0: there is none.
	AuditPeriod time.Duration

	// Health is told the health checks that are others than before, when what came with
	// them is in the kernel or failed for reasons of its own. Those that came together are
	// told together: a port may go from one object to another. It must not block; may be
	// nil.
	Health func(map[lb.Object]lb.HealthCheck)
	// Triggered is told how long ago what is now in the kernel was triggered, as
	// lb.Change has it, for each family that it changed; of what waited for the same
	// attempt, the oldest. It must not block; may be nil.
	Triggered func(lb.Family, time.Duration)
}

// Agent makes a dataplane do what a Source says. Its methods may be called from
// any goroutine; Run does the work and is called once.
type Agent struct {
	opts Options
	log  *slog.Logger
	wake chan struct{} // capacity 1: what was asked for has changed

	began time.Time

	// Owned by Run.
	ledger ledger
	pacer  pacer
	told   map[lb.ServiceName]string // the last failure that was reported
	broken string                    // the last failure of a whole Sync that was logged
	audits auditor

	mu          sync.Mutex
	auditPeriod time.Duration // that was asked for
	defaults    Defaults      // that were asked for
	asked       time.Time     // when those were that are not used yet; zero: they are
	status      Status
	applied     map[lb.ServiceName]*dataplane.Service
}

// New returns an Agent. It fails if the default algorithm is unknown.
func New(o Options) (*Agent, error) {
	if err := algo.Check(o.Algorithm); err != nil {
		return nil, fmt.Errorf("default algorithm: %w", err)
	}
	defaults := Defaults{Algorithm: o.Algorithm, SlowStart: o.SlowStart}
	a := &Agent{
		opts:   o,
		log:    o.Log,
		began:  time.Now(),
		audits: newAuditor(o.Dataplane, o.AuditPeriod),

		auditPeriod: o.AuditPeriod,

		wake:     make(chan struct{}, 1),
		ledger:   newLedger(defaults),
		told:     map[lb.ServiceName]string{},
		defaults: defaults,
		applied:  map[lb.ServiceName]*dataplane.Service{},
	}
	a.ledger.outbox.began = a.began
	if o.Loads != nil {
		a.ledger.live = o.Loads.Live
	}
	return a, nil
}

// Defaults returns what Services do that do not say it.
func (a *Agent) Defaults() Defaults {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.defaults
}

// SetDefaultAlgorithm changes the algorithm of Services that name none, and
// compiles those anew.
func (a *Agent) SetDefaultAlgorithm(name string) error {
	if err := algo.Check(name); err != nil {
		return fmt.Errorf("default algorithm: %w", err)
	}
	a.setDefaults(func(d *Defaults) { d.Algorithm = name })
	return nil
}

// SetDefaultSlowStart changes the slow start of Services that do not say it; 0 is
// none. It ends those that are under way, or changes how long they take.
func (a *Agent) SetDefaultSlowStart(d time.Duration) {
	a.setDefaults(func(ds *Defaults) { ds.SlowStart = d })
}

// setDefaults compiles the Services anew that set changes.
func (a *Agent) setDefaults(set func(*Defaults)) {
	a.mu.Lock()
	set(&a.defaults)
	a.asked = earlier(a.asked, time.Now())
	a.mu.Unlock()
	a.nudge()
}

// nudge wakes Run.
func (a *Agent) nudge() {
	select {
	case a.wake <- struct{}{}:
	default: // it has not yet looked
	}
}

// Run applies what the Source says until ctx ends; then it returns nil and leaves
// the kernel as it is. A lone event is applied at once. Events that arrive while
// a Sync runs, or too soon after many others (see pacer), share the next one.
func (a *Agent) Run(ctx context.Context) error {
	defer a.audits.end()
	dirty := a.opts.Source.Dirty()
	var timer <-chan time.Time // for what failed, and for slow starts
	var audit <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, open := <-dirty:
			if !open { // there will be no more events
				dirty = nil
				continue
			}
		case <-a.wake:
		case <-timer:
		case <-audit:
			if !a.woken(dirty) { // changes go first
				a.audit(ctx)
				audit = a.auditTimer()
				continue
			}
		}
		if !pause(ctx, a.pacer.wait(time.Now())) {
			return nil
		}
		a.collect()
		a.takePeriod()
		a.sync(ctx)
		timer = nil
		if at, ok := a.ledger.wakeTime(); ok {
			timer = time.After(time.Until(at))
		}
		audit = a.auditTimer()
	}
}

// woken tells whether an event came in.
func (a *Agent) woken(dirty <-chan struct{}) bool {
	select {
	case _, open := <-dirty:
		return open
	case <-a.wake:
		return true
	default:
		return false
	}
}

// pause waits for d. It returns false if ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// collect writes what changed into the ledger.
func (a *Agent) collect() {
	a.mu.Lock()
	since, defaults := earlier(a.asked, a.opts.Source.Since()), a.defaults
	a.asked = time.Time{}
	a.mu.Unlock()
	if since.IsZero() {
		since = time.Now()
	}
	changes, full := a.opts.Source.Take()
	a.ledger.setDefaults(defaults, since)
	a.ledger.note(changes, full, since)
	a.publish(func(*Status) {})
}

// sync applies what is due.
func (a *Agent) sync(ctx context.Context) {
	now := time.Now()
	plan := a.ledger.plan(now, a.applied)
	for name, err := range plan.invalid {
		a.tell(name, ReasonInvalid, err)
	}
	if !plan.work {
		a.publish(func(*Status) {})
		a.post(now)
		return
	}
	a.pacer.mark(now)
	err := a.opts.Dataplane.Sync(ctx, plan.delta)
	if ctx.Err() != nil {
		return
	}
	a.settle(plan, err)
}

// settle takes note of what a Sync did.
func (a *Agent) settle(p plan, err error) {
	now := time.Now()
	failed, whole := split(err)
	done := a.ledger.settle(p, failed, whole, now)
	a.mu.Lock()
	for _, svc := range done.put {
		a.count(a.applied[svc.Name], -1)
		a.count(svc, 1)
		a.applied[svc.Name] = svc
	}
	for _, name := range done.gone {
		a.count(a.applied[name], -1)
		delete(a.applied, name)
	}
	a.mu.Unlock()
	if a.opts.Observe != nil && !p.delta.Full { // what was there at start is no change
		for _, since := range done.since {
			a.opts.Observe(now.Sub(since).Seconds())
		}
	}
	for name, err := range failed {
		a.tell(name, ReasonFailed, err)
	}
	a.ledger.forget(a.told)
	a.logWhole(whole)
	a.publish(func(s *Status) {
		s.Syncs++
		if err != nil {
			s.Errors++
		}
		if whole == nil {
			s.LastSuccess = now
			s.Synced = s.Synced || p.delta.Full
			for i, changed := range Families(p.delta) {
				if changed {
					s.Families[i].LastSuccess = now
				}
			}
		}
	})
	a.post(now)
	a.log.Debug("synced", "put", len(p.delta.Put), "deleted", len(p.delta.Delete), "full", p.delta.Full,
		"failed", len(failed), "took", now.Sub(p.at))
}

// split tells apart what failed for single Services and what failed for all.
func split(err error) (failed map[lb.ServiceName]error, whole error) {
	var se *dataplane.SyncError
	switch {
	case err == nil:
		return nil, nil
	case !errors.As(err, &se):
		return nil, err
	}
	return se.Failed, se.Other
}

// tell reports a failure of one Service, once for each distinct one.
func (a *Agent) tell(name lb.ServiceName, reason string, err error) {
	msg := err.Error()
	if a.told[name] == msg {
		return
	}
	a.told[name] = msg
	a.log.Warn("service not programmed", "service", name, "reason", reason, "error", err)
	if a.opts.Reporter != nil {
		a.opts.Reporter.ServiceEvent(name.Object, "Warning", reason, fmt.Sprintf("%s: %v", name, err))
	}
}

// logWhole logs a failure that concerns all Services, once for each distinct one.
func (a *Agent) logWhole(err error) {
	switch {
	case err == nil && a.broken != "":
		a.broken = ""
		a.log.Info("dataplane works again")
	case err != nil && a.broken != err.Error():
		a.broken = err.Error()
		a.log.Error("dataplane failed; will retry", "error", err)
	}
}
