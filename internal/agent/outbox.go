// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// outbox holds what is to be told of an object when what came with it is in the
// kernel. However long that takes, it holds one letter for an object.
type outbox struct {
	began   time.Time                    // what was triggered before is no change
	checks  map[lb.Object]lb.HealthCheck // those with a port
	letters map[lb.Object]*letter
	look    map[lb.Object]bool // whose letters may be ready: something came or was tried
}

// letter is what waits for the Services of one object.
type letter struct {
	awaits    map[lb.ServiceName]bool
	check     bool      // the object's health check is another one
	triggered time.Time // the oldest; zero: none
	families  [2]bool   // of what is awaited: IPv4, IPv6
}

func newOutbox() outbox {
	return outbox{checks: map[lb.Object]lb.HealthCheck{}, letters: map[lb.Object]*letter{}, look: map[lb.Object]bool{}}
}

// note enters ch, of whose object the Services named by differ are others than before.
func (o *outbox) note(ch lb.Change, differ []lb.ServiceName) {
	check := o.checks[ch.Object] != ch.Health
	triggered := ch.Triggered.After(o.began) && len(differ) > 0
	waiting := o.letters[ch.Object]
	if waiting == nil {
		if !check && !triggered {
			return
		}
		waiting = &letter{awaits: map[lb.ServiceName]bool{}}
		o.letters[ch.Object] = waiting
	}
	if check {
		waiting.check = true
		o.checks[ch.Object] = ch.Health
		if ch.Health == (lb.HealthCheck{}) {
			delete(o.checks, ch.Object)
		}
	}
	if triggered {
		waiting.triggered = earlier(waiting.triggered, ch.Triggered)
	}
	for _, name := range differ {
		waiting.awaits[name] = true
		waiting.families[familyIndex(name.Family)] = true
	}
	o.look[ch.Object] = true
}

// tried notes that there was an attempt for name.
func (o *outbox) tried(name lb.ServiceName) {
	if o.letters[name.Object] != nil {
		o.look[name.Object] = true
	}
}

// mail is what is to be told now.
type mail struct {
	checks    map[lb.Object]lb.HealthCheck // nil: none
	triggered []*letter
}

// ready takes out what can be told. A health check waits until there was an attempt
// for everything that came with it: a port that fails does not hold it back, for it may
// fail for good. The time of a trigger waits until everything is in the kernel.
func (o *outbox) ready(dirty map[lb.ServiceName]time.Time, waiting map[lb.ServiceName]setback) (p mail) {
	for obj := range o.look {
		l := o.letters[obj]
		if l == nil {
			continue
		}
		pending := false
		for name := range l.awaits {
			if _, still := dirty[name]; !still {
				delete(l.awaits, name)
			} else if !waiting[name].own {
				pending = true
			}
		}
		if l.check && !pending {
			l.check = false
			if p.checks == nil {
				p.checks = map[lb.Object]lb.HealthCheck{}
			}
			p.checks[obj] = o.checks[obj]
		}
		if len(l.awaits) > 0 && (l.check || !l.triggered.IsZero()) {
			continue
		}
		if !l.triggered.IsZero() {
			p.triggered = append(p.triggered, l)
		}
		delete(o.letters, obj)
	}
	if len(o.look) > 0 {
		o.look = map[lb.Object]bool{} // and not cleared, see shrunk
	}
	if len(o.letters) == 0 {
		o.letters = map[lb.Object]*letter{}
	}
	return p
}

// post tells what is to be told now. Nothing is sure before the first full Sync.
func (a *Agent) post(now time.Time) {
	if a.ledger.full {
		return
	}
	p := a.ledger.outbox.ready(a.ledger.dirty, a.ledger.waiting)
	if len(p.checks) > 0 && a.opts.Health != nil {
		a.opts.Health(p.checks)
	}
	if a.opts.Triggered == nil {
		return
	}
	for _, l := range p.triggered {
		for i, f := range [2]lb.Family{lb.IPv4, lb.IPv6} {
			if l.families[i] {
				a.opts.Triggered(f, max(now.Sub(l.triggered), 0))
			}
		}
	}
}
