// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/fake"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// source is a Source that holds the present state of objects.
type source struct {
	mu    sync.Mutex
	wake  chan struct{}
	state map[lb.Object]lb.Change
	dirty map[lb.Object]bool
	since time.Time
	taken bool
	takes int
}

func newSource() *source {
	return &source{
		wake:  make(chan struct{}, 1),
		state: map[lb.Object]lb.Change{},
		dirty: map[lb.Object]bool{},
	}
}

func (s *source) Dirty() <-chan struct{} { return s.wake }

func (s *source) Since() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.since
}

func (s *source) Take() (changes []lb.Change, full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	full, s.taken, s.since = !s.taken, true, time.Time{}
	s.takes++
	for obj := range s.dirty {
		changes = append(changes, s.state[obj])
	}
	clear(s.dirty)
	return changes, full
}

// set makes svcs everything that object name has, and marks the source dirty.
func (s *source) set(name string, svcs ...*lb.Service) {
	s.mu.Lock()
	obj := lb.Object{Namespace: "ns", Name: name}
	s.state[obj] = lb.Change{Object: obj, Services: svcs}
	s.dirty[obj] = true
	s.mu.Unlock()
	s.nudge()
}

// relist makes the next Take everything there is.
func (s *source) relist() {
	s.mu.Lock()
	s.taken = false
	for obj := range s.state {
		s.dirty[obj] = true
	}
	s.mu.Unlock()
	s.nudge()
}

func (s *source) nudge() {
	s.mu.Lock()
	s.since = earlier(s.since, time.Now())
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// wakeups returns how often the loop has looked for something to do.
func (s *source) wakeups() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takes
}

// services returns every Service of the present state.
func (s *source) services() []*lb.Service {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*lb.Service
	for _, ch := range s.state {
		out = append(out, ch.Services...)
	}
	return out
}

// event is a reported event.
type event struct {
	obj                   string
	kind, reason, message string
}

// call is a call of Sync.
type call struct {
	at    time.Duration // since the rig was made
	delta dataplane.Delta
}

// rig is an Agent with everything around it, inside a synctest bubble.
type rig struct {
	*fake.Dataplane
	t      *testing.T
	agent  *Agent
	source *source
	began  time.Time
	cancel context.CancelFunc
	done   chan error

	mu       sync.Mutex
	calls    []call
	events   []event
	latency  []float64
	duration time.Duration // of a Sync
	live     map[netip.AddrPort]uint64
}

// Live says the same of every Service.
func (r *rig) Live(lb.ServiceName) map[netip.AddrPort]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.live
}

// setLive makes so many connections live.
func (r *rig) setLive(live map[string]uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live = map[netip.AddrPort]uint64{}
	for addr, n := range live {
		r.live[netip.MustParseAddrPort(addr)] = n
	}
}

// Sync records the call and takes as long as it is told to.
func (r *rig) Sync(ctx context.Context, d dataplane.Delta) error {
	r.mu.Lock()
	r.calls = append(r.calls, call{time.Since(r.began), d})
	duration := r.duration
	r.mu.Unlock()
	if duration > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(duration):
		}
	}
	return r.Dataplane.Sync(ctx, d)
}

func (r *rig) ServiceEvent(obj lb.Object, eventtype, reason, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, event{obj.Name, eventtype, reason, message})
}

// inBubble runs f with a rig whose Agent is running and idle; the first full Sync
// has the given Services, one per object.
func inBubble(t *testing.T, f func(r *rig), svcs ...*lb.Service) {
	t.Helper()
	inBubbleWith(t, func(*rig, *Options) {}, f, svcs...)
}

// inBubbleWith is inBubble for an Agent with other Options.
func inBubbleWith(t *testing.T, set func(*rig, *Options), f func(r *rig), svcs ...*lb.Service) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{Dataplane: fake.New(fake.Options{}), t: t, source: newSource(), began: time.Now(), done: make(chan error, 1)}
		o := Options{
			Source: r.source, Dataplane: r, Loads: r, Log: slog.New(slog.DiscardHandler), Algorithm: "random", Reporter: r,
			Observe: func(s float64) {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.latency = append(r.latency, s)
			},
		}
		set(r, &o)
		a, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		r.agent = a
		for _, svc := range svcs {
			r.source.set(svc.Name.Name, svc)
		}
		var ctx context.Context
		ctx, r.cancel = context.WithCancel(t.Context())
		go func() { r.done <- a.Run(ctx) }()
		r.source.nudge()
		synctest.Wait()
		f(r)
		r.stop()
	})
}

// stop ends the Agent, whatever it is doing.
func (r *rig) stop() {
	r.t.Helper()
	r.cancel()
	synctest.Wait()
	select {
	case err := <-r.done:
		if err != nil {
			r.t.Errorf("Run returned %v, want nil", err)
		}
		r.done <- nil
	default:
		r.t.Error("Run goes on after its context ended")
	}
}

// restart ends the Agent and runs another one, which hears of everything there is.
func (r *rig) restart() {
	r.t.Helper()
	r.stop()
	<-r.done
	var err error
	if r.agent, err = New(r.agent.opts); err != nil {
		r.t.Fatal(err)
	}
	r.source.relist()
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(r.t.Context())
	go func(a *Agent) { r.done <- a.Run(ctx) }(r.agent)
	synctest.Wait()
}

// pass lets virtual time pass.
func (r *rig) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// since returns the calls of Sync after the first n.
func (r *rig) since(n int) []call {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.calls[n:])
}

func (r *rig) takeEvents() []event {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.events
	r.events = nil
	return out
}

func (r *rig) setDuration(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.duration = d
}

// converged fails unless the dataplane does what the source says.
func (r *rig) converged(algorithm string) {
	r.t.Helper()
	got := r.Dataplane.Services()
	for _, svc := range r.source.services() {
		want, err := Compile(svc, Defaults{Algorithm: algorithm}, nil)
		if err != nil {
			r.t.Fatal(err)
		}
		if !reflect.DeepEqual(got[svc.Name], want) {
			r.t.Errorf("%s:\n got %+v\nwant %+v", svc.Name, got[svc.Name], want)
		}
		delete(got, svc.Name)
	}
	for name := range got {
		r.t.Errorf("%s should be gone", name)
	}
}

// puts returns what a call asks for, as "+name -name", sorted.
func (c call) puts() string {
	words := map[string]bool{}
	for _, svc := range c.delta.Put {
		words["+"+svc.Name.Name] = true
	}
	for _, name := range c.delta.Delete {
		words["-"+name.Name] = true
	}
	if c.delta.Full {
		words["full"] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(words)), " ")
}

func serviceName(name string) lb.ServiceName {
	return lb.ServiceName{Object: lb.Object{Namespace: "ns", Name: name}, Port: "p", Proto: lb.TCP, Family: lb.IPv4}
}

// service returns a Service at a cluster IP that depends on its name.
func service(name string, backends ...string) *lb.Service {
	sum := byte(0)
	for _, c := range []byte(name) {
		sum = sum*31 + c
	}
	vip := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(len(name)), sum}), 80)
	svc := &lb.Service{Name: serviceName(name), Frontends: []lb.Frontend{{
		FrontendKey: lb.FrontendKey{Addr: vip, Proto: lb.TCP}, Type: lb.ClusterIP,
	}}}
	for _, be := range backends {
		svc.Cluster.Backends = append(svc.Cluster.Backends, lb.Backend{
			Addr: netip.MustParseAddrPort(be), Weight: lb.DefaultWeight,
		})
	}
	return svc
}
