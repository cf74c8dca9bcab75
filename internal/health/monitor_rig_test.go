// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// fakeProber finds what a test says. Its probes take time, and never more than their
// timeout.
type fakeProber struct {
	mu     sync.Mutex
	errs   map[netip.AddrPort]error // nil: healthy
	takes  func() time.Duration     // nil: 1 ms
	starts map[netip.AddrPort][]time.Time
	last   map[netip.AddrPort]Target
	going  map[Target]bool
	twice  int // two probes of one target at once
	all    sync.WaitGroup
	ended  chan struct{}
}

func newFakeProber() *fakeProber {
	return &fakeProber{
		errs: map[netip.AddrPort]error{}, starts: map[netip.AddrPort][]time.Time{}, last: map[netip.AddrPort]Target{},
		going: map[Target]bool{}, ended: make(chan struct{}),
	}
}

func (f *fakeProber) Start(t Target, done func(Result)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.starts[t.Addr] = append(f.starts[t.Addr], time.Now())
	f.last[t.Addr] = t
	key := Target{Addr: t.Addr, Probe: t.Probe}
	if f.going[key] {
		f.twice++
	}
	f.going[key] = true
	err, takes := f.errs[t.Addr], time.Millisecond
	if f.takes != nil {
		takes = f.takes()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		takes = t.Probe.Timeout
	}
	f.all.Go(func() {
		select {
		case <-time.After(takes):
		case <-f.ended:
			err = context.Canceled
		}
		f.mu.Lock()
		delete(f.going, key)
		f.mu.Unlock()
		done(Result{Err: err, Took: takes})
	})
}

func (f *fakeProber) Run(ctx context.Context) error {
	<-ctx.Done()
	close(f.ended)
	f.all.Wait()
	return nil
}

func (f *fakeProber) set(err error, addrs ...netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range addrs {
		f.errs[a] = err
	}
}

func (f *fakeProber) count(a netip.AddrPort) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.starts[a])
}

// fakeSource is a store of changes.
type fakeSource struct {
	wake chan struct{}

	mu      sync.Mutex
	changes []lb.Change
	started bool
}

func (s *fakeSource) Dirty() <-chan struct{} { return s.wake }

func (s *fakeSource) Since() time.Time { return time.Time{} }

func (s *fakeSource) Take() ([]lb.Change, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changes, full := s.changes, !s.started
	s.changes, s.started = nil, true
	return changes, full
}

func (s *fakeSource) put(changes ...lb.Change) {
	s.mu.Lock()
	s.changes = append(s.changes, changes...)
	s.mu.Unlock()
	s.Nudge()
}

func (s *fakeSource) Nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// fakeKernel has what a Monitor told it.
type fakeKernel struct {
	symptoms chan lb.Symptom
	mu       sync.Mutex
	calms    []time.Duration
	calm     time.Time // it suspects nothing before
	served   lb.Outcomes
	unknown  bool
	stale    time.Duration // how old what is served may be: it is read anew then
	read     lb.Outcomes
	asked    int
}

func (k *fakeKernel) Symptoms() <-chan lb.Symptom { return k.symptoms }

func (k *fakeKernel) Suspect(_ lb.ServiceName, _ netip.AddrPort, until time.Time, calm time.Duration) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if until.After(time.Now()) {
		return errors.New("it suspects by itself")
	}
	k.calms = append(k.calms, calm)
	return nil
}

func (k *fakeKernel) serve(lb.ServiceName, netip.AddrPort) (lb.Outcomes, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	if now := time.Now(); k.read.At.IsZero() || now.Sub(k.read.At) >= k.stale {
		k.read, k.read.At = k.served, now
	}
	return k.read, !k.unknown
}

// hide makes what is served unknown, or known again.
func (k *fakeKernel) hide(yes bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.unknown = yes
}

// freeze makes what was read last all that is ever served.
func (k *fakeKernel) freeze() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stale = 1000 * time.Hour
}

// count makes connections fare.
func (k *fakeKernel) count(answered, failed uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.served.Answered += answered
	k.served.Failed += failed
}

type fakeReporter struct {
	mu     sync.Mutex
	events []string
}

func (r *fakeReporter) ServiceEvent(obj lb.Object, eventtype, reason, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf("%s %s %s: %s", obj, eventtype, reason, message))
}

// take returns the events with a reason since the last call.
func (r *fakeReporter) take(reason string) (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = slices.DeleteFunc(r.events, func(e string) bool {
		if !strings.Contains(e, " "+reason+": ") {
			return false
		}
		list = append(list, e)
		return true
	})
	return list
}

// monitorRig is a Monitor with fakes around it, and an agent that takes what it hands on.
type monitorRig struct {
	t      *testing.T
	m      *Monitor
	f      *Filter
	src    *fakeSource
	prober *fakeProber
	kernel *fakeKernel
	events *fakeReporter

	mu      sync.Mutex
	objects map[lb.Object]lb.Change
	takes   int // with something in it
}

// testDefaults is what Services do that do not say it.
func testDefaults() lb.Health {
	return testHealth(lb.ProbeNone, func(h *lb.Health) { h.Rise = 1 })
}

func newMonitorRig(t *testing.T) *monitorRig {
	r := &monitorRig{
		t: t, src: &fakeSource{wake: make(chan struct{}, 1)}, prober: newFakeProber(),
		kernel: &fakeKernel{symptoms: make(chan lb.Symptom, 100)}, events: &fakeReporter{}, objects: map[lb.Object]lb.Change{},
	}
	r.m = NewMonitor(Options{
		Prober: r.prober, Defaults: testDefaults(), Kernel: r.kernel, Served: r.kernel.serve, Reporter: r.events,
		Log: slog.New(slog.DiscardHandler),
	})
	r.f = r.m.Filter(r.src)
	return r
}

// bubble runs f while a Monitor and its agent run.
func bubble(t *testing.T, f func(r *monitorRig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newMonitorRig(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.m.Run(ctx) }()
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-r.f.Dirty():
					r.collect()
				}
			}
		}()
		f(r)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if r.prober.twice > 0 {
			t.Errorf("%d times two probes of one target at once", r.prober.twice)
		}
	})
}

// collect is what an agent does.
func (r *monitorRig) collect() {
	changes, full := r.f.Take()
	r.mu.Lock()
	defer r.mu.Unlock()
	if full {
		clear(r.objects)
	}
	if len(changes) > 0 {
		r.takes++
	}
	for _, ch := range changes {
		r.objects[ch.Object] = ch
		if len(ch.Services) == 0 {
			delete(r.objects, ch.Object)
		}
	}
}

// wait lets time pass.
func (r *monitorRig) wait(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// out returns what was handed on of the only port of an object.
func (r *monitorRig) out(name string) *lb.Service {
	r.mu.Lock()
	defer r.mu.Unlock()
	ch := r.objects[lb.Object{Namespace: "shop", Name: name}]
	if len(ch.Services) != 1 {
		r.t.Helper()
		r.t.Fatalf("%s: %d ports", name, len(ch.Services))
	}
	return ch.Services[0]
}

// wantWeights checks the weights of a Service's cluster pool.
func (r *monitorRig) wantWeights(name string, want ...uint16) {
	r.t.Helper()
	var got []uint16
	for _, be := range r.out(name).Cluster.Backends {
		got = append(got, be.Weight)
	}
	if !slices.Equal(got, want) {
		r.t.Fatalf("%s: weights %v, want %v; %+v", name, got, want, r.m.Verdicts())
	}
}

// state returns the state of a Service's backend, or "".
func (r *monitorRig) state(name string, a netip.AddrPort) string {
	for _, v := range r.m.Verdicts() {
		if v.Service.Name == name && v.Backend == a {
			return v.State.String()
		}
	}
	return ""
}

func (r *monitorRig) wantState(name string, a netip.AddrPort, want string) {
	r.t.Helper()
	if got := r.state(name, a); got != want {
		r.t.Fatalf("%s, %s: state %q, want %q; %+v", name, a, got, want, r.m.Verdicts())
	}
}

// shopName is the name of the port of shop/name.
func shopName(name string, proto lb.Proto) lb.ServiceName {
	return lb.ServiceName{Object: lb.Object{Namespace: "shop", Name: name}, Proto: proto, Family: lb.IPv4}
}

// service returns a TCP Service of the backends addr(0) to addr(n-1).
func service(name string, n int, h lb.Health) *lb.Service {
	return &lb.Service{Name: shopName(name, lb.TCP), Cluster: lb.Pool{Backends: pool(n)}, Health: h}
}

// change returns the Change of one object.
func change(svcs ...*lb.Service) lb.Change {
	return lb.Change{Object: svcs[0].Name.Object, Services: svcs}
}

var (
	errRefused = fmt.Errorf("tcp: %w", syscall.ECONNREFUSED)
	errStatus  = errors.New("http: status 503, want 200-399")
	errSilent  = fmt.Errorf("tcp: %w: %w", ErrUnreached, context.DeadlineExceeded)
)

// probeTCP is a Service that asks for TCP probes.
func probeTCP() lb.Health { return lb.Health{Probe: lb.Probe{Kind: lb.ProbeTCP}} }

func (r *monitorRig) symptom(name string, a netip.AddrPort, k lb.SymptomKind) {
	r.kernel.symptoms <- lb.Symptom{Service: shopName(name, lb.TCP), Backend: a, Kind: k}
	synctest.Wait()
}
