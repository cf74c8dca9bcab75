// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// symptomsWaiting is how many symptoms wait for whoever takes them; others are lost.
const symptomsWaiting = 1024

// witness finds connections that nobody answers among those that conntrack knows, and hears
// of those that are refused, which the kernel forgets when the reset passes.
type witness struct {
	any      func() bool // whether some Service suspects
	list     func() []suspecting
	flows    func(lb.Family, lb.Proto, func(flow)) error
	symptoms chan lb.Symptom
	answers  answers
	refusals *refusals            // nil: the kernel cannot tell of them
	spent    func() time.Duration // time of the processor, of the calling thread

	// Only tick uses these.
	next    time.Time        // not before then again
	waiting map[waiting]bool // at the reading before

	mu    sync.Mutex
	quiet map[suspectKey]time.Time // nothing is told of these before then
	lost  uint64
}

// suspecting is a pool of a Service that suspects, and for how long.
type suspecting struct {
	loaded
	suspect time.Duration
}

// waiting is a connection that nobody has answered.
type waiting struct {
	client, frontend netip.AddrPort
	id               uint32
}

// suspectKey is a backend of a Service.
type suspectKey struct {
	service lb.ServiceName
	backend netip.AddrPort
}

func newWitness(
	any func() bool, list func() []suspecting, flows func(lb.Family, lb.Proto, func(flow)) error,
) *witness {
	return &witness{
		any: any, list: list, flows: flows, symptoms: make(chan lb.Symptom, symptomsWaiting), quiet: map[suspectKey]time.Time{},
		spent: threadTime,
	}
}

// tick reads connections. It is called each second: who has not been answered at two
// readings waits for as long at least. It does nothing while it would take more than its
// part of the processor's time, or if no Service suspects. The processor's, as on a busy
// machine a reading takes long, and probes need to know who is answered there, too.
func (w *witness) tick(now time.Time) error {
	if now.Before(w.next) {
		return nil
	}
	wanted := w.any()
	if w.refusals != nil {
		if err := w.refusals.listen(wanted); err != nil {
			return err
		}
	}
	if !wanted {
		w.waiting = nil
		w.answers.stop(false)
		return nil
	}
	runtime.LockOSThread() // whose time counts
	defer runtime.UnlockOSThread()
	began := w.spent()
	before := w.waiting
	w.waiting = make(map[waiting]bool, len(before))
	var again []flow
	note := w.answers.read(now)
	for _, f := range families {
		err := w.flows(f, lb.TCP, func(fl flow) {
			unanswered := fl.state == tcpSynSent && !fl.replied
			id := waiting{fl.client, fl.frontend, fl.id}
			note(&fl, unanswered && before[id])
			if !unanswered {
				return
			}
			w.waiting[id] = true
			if before[id] {
				again = append(again, fl)
			}
		})
		if err != nil {
			w.answers.stop(true)
			return err
		}
	}
	w.answers.done(now)
	if len(again) > 0 {
		w.tellAll(lb.Unanswered, again)
	}
	w.next = now.Add(time.Duration(float64(w.spent()-began) / busy))
	return nil
}

// hear takes note of connections that are refused, until ctx is done.
func (w *witness) hear(ctx context.Context, log *slog.Logger) {
	if w.refusals == nil {
		return
	}
	err := w.refusals.listen(true) // until tick knows better: nothing is missed before
	if err == nil {
		err = w.refusals.hear(ctx, w.answers.refuse, func(list []flow) { w.tellAll(lb.Refused, list) }, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.lost++
		})
	}
	if err != nil {
		w.refusals.hears.Store(false)
		log.Warn("connections that are refused are not seen any more", "error", err)
	}
}

// tellAll finds out whom connections were for that failed.
func (w *witness) tellAll(kind lb.SymptomKind, failed []flow) {
	now := time.Now()
	w.forget(now)
	list := w.list()
	pools := make([]loaded, len(list))
	suspect := make(map[lb.ServiceName]time.Duration, len(list))
	for i, s := range list {
		pools[i], suspect[s.name] = s.loaded, s.suspect
	}
	c := newCounter(pools)
	owner := make(map[*count]suspectKey)
	for name, backends := range c.counts {
		for addr, n := range backends {
			owner[n] = suspectKey{name, addr}
		}
	}
	for i := range failed {
		fl := &failed[i]
		backends, _ := c.backendsOf(lb.FamilyOf(fl.frontend.Addr()), fl)
		if key, known := owner[backends[fl.backend]]; known {
			w.tell(lb.Symptom{Service: key.service, Backend: key.backend, Kind: kind}, now, suspect[key.service])
		}
	}
}

// tell puts a symptom where it waits, one of each backend in as much time as its Service
// suspects for.
func (w *witness) tell(s lb.Symptom, now time.Time, suspect time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := suspectKey{s.Service, s.Backend}
	if now.Before(w.quiet[key]) {
		return
	}
	w.quiet[key] = now.Add(suspect)
	select {
	case w.symptoms <- s:
	default:
		w.lost++
	}
}

// forget drops what is over.
func (w *witness) forget(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.quiet, func(_ suspectKey, until time.Time) bool { return !now.Before(until) })
}

// calm makes nothing be told of a backend for d; 0 or less ends that.
func (w *witness) calm(key suspectKey, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.quiet[key] = time.Now().Add(d)
}

func (w *witness) lostSymptoms() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost
}

// Symptoms implements dataplane.Witness. Connections that are refused are seen at once, as
// far as the kernel tells, unanswered ones after one to two seconds, and resets never.
func (d *Dataplane) Symptoms() <-chan lb.Symptom { return d.witness.symptoms }

// Suspect implements dataplane.Witness, as far as calm goes. Rules give a backend a fixed
// share, and to write them takes as long as it takes the agent to give it weight 0, which
// it does once a probe has confirmed the symptom: until then the backend keeps its share.
func (d *Dataplane) Suspect(name lb.ServiceName, backend netip.AddrPort, _ time.Time, calm time.Duration) error {
	d.witness.calm(suspectKey{name, backend}, calm)
	return nil
}

// suspects tells whether a Service's symptoms are wanted.
func (s *service) suspects() bool { return s.Name.Proto == lb.TCP && s.Terms.Suspect > 0 }

// anySuspects tells whether those of any Service are.
func (d *Dataplane) anySuspects() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, svc := range d.services {
		if svc.suspects() {
			return true
		}
	}
	return false
}

// suspecting returns the pools of Services whose symptoms are wanted.
func (d *Dataplane) suspecting() []suspecting {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []suspecting
	for name, svc := range d.services {
		if !svc.suspects() {
			continue
		}
		for _, sc := range scopes {
			if p := svc.Pool(sc); svc.uses(sc) {
				list = append(list, suspecting{loaded{name, sc, keys(svc.Frontends), p.Backends, p.Table}, svc.Terms.Suspect})
			}
		}
	}
	return list
}

var _ dataplane.Witness = (*Dataplane)(nil)
