// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// posted is something that an Agent told.
type posted struct {
	at   time.Duration
	what string
}

// posts is what an Agent told since the last take. The clock of a bubble orders no
// memory, so that it has a lock.
type posts struct {
	mu  sync.Mutex
	all []posted
}

func (p *posts) add(one posted) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, one)
}

func (p *posts) take() []posted {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.all
	p.all = nil
	return all
}

// inPostRig runs f with an Agent whose health checks and trigger times are noted.
func inPostRig(t *testing.T, f func(r *rig, got *posts), svcs ...*lb.Service) {
	t.Helper()
	var got posts
	inBubbleWith(t, func(r *rig, o *Options) {
		note := func(what string) { got.add(posted{time.Since(r.began), what}) }
		o.Health = func(checks map[lb.Object]lb.HealthCheck) {
			var texts []string
			for obj, hc := range checks {
				texts = append(texts, fmt.Sprint(obj.Name, " ", hc.Port, " ", hc.Ready))
			}
			slices.Sort(texts)
			note(strings.Join(texts, ", "))
		}
		o.Triggered = func(f lb.Family, d time.Duration) { note(fmt.Sprint(f, " ", d)) }
	}, func(r *rig) { f(r, &got) }, svcs...)
}

// change makes ch what the source has, and marks it dirty.
func (s *source) change(ch lb.Change) {
	s.mu.Lock()
	s.state[ch.Object] = ch
	s.dirty[ch.Object] = true
	s.mu.Unlock()
	s.nudge()
}

// expect fails unless exactly want was told since the last time.
func expect(t *testing.T, got *posts, want ...posted) {
	t.Helper()
	if told := got.take(); !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}

func TestHealthChecksComeAfterTheSync(t *testing.T) {
	inPostRig(t, func(r *rig, got *posts) {
		obj := lb.Object{Namespace: "ns", Name: "a"}
		hc := lb.HealthCheck{Port: 30001, Ready: [2]int{1, 0}}
		one, two := service("a", "10.244.0.1:80"), service("a", "10.244.0.1:81")
		two.Name.Port, two.Frontends[0].Addr = "q", service("other").Frontends[0].Addr
		r.setDuration(time.Second)
		r.source.change(lb.Change{Object: obj, Services: []*lb.Service{one, two}, Health: hc})
		synctest.Wait()
		expect(t, got)
		r.pass(time.Second)
		expect(t, got, posted{time.Second, "a 30001 [1 0]"})

		r.setDuration(0)
		hc.Ready[0] = 2 // without another Service
		r.source.change(lb.Change{Object: obj, Services: []*lb.Service{one, two}, Health: hc})
		expect(t, got, posted{time.Second, "a 30001 [2 0]"})

		r.source.change(lb.Change{Object: obj, Services: []*lb.Service{service("a", "10.244.0.2:80"), two}, Health: hc})
		expect(t, got) // the same check

		r.FailService(two.Name, errFault)
		again := *two
		again.Cluster = service("a", "10.244.0.2:81").Cluster
		hc.Ready[0] = 3
		r.source.change(lb.Change{Object: obj, Services: []*lb.Service{one, &again}, Health: hc})
		expect(t, got, posted{time.Second, "a 30001 [3 0]"}) // one port of it may fail for good
		r.FailService(two.Name, nil)
		r.pass(minBackoff)
		expect(t, got) // it was told

		r.source.change(lb.Change{Object: obj}) // deleted
		expect(t, got, posted{time.Second + minBackoff, "a 0 [0 0]"})
	})
}

// TestHealthCheckWaitsForTheDataplane: what fails as a whole tells nothing.
func TestHealthCheckWaitsForTheDataplane(t *testing.T) {
	inPostRig(t, func(r *rig, got *posts) {
		obj := lb.Object{Namespace: "ns", Name: "a"}
		r.SetDown(errFault)
		r.source.change(lb.Change{Object: obj, Services: []*lb.Service{service("a", "10.244.0.1:80")}, Health: lb.HealthCheck{Port: 30001}})
		expect(t, got)
		r.SetDown(nil)
		r.pass(minBackoff)
		expect(t, got, posted{minBackoff, "a 30001 [0 0]"})
	}, service("b", "10.244.0.1:80"))
}

// TestFailingPortHoldsNoHealthCheckBack: also not those that come while it fails.
func TestFailingPortHoldsNoHealthCheckBack(t *testing.T) {
	inPostRig(t, func(r *rig, got *posts) {
		obj := lb.Object{Namespace: "ns", Name: "a"}
		bad := service("a", "10.244.0.1:81")
		bad.Name.Port, bad.Frontends[0].Addr = "q", service("other").Frontends[0].Addr
		r.FailService(bad.Name, errFault)
		r.pass(time.Minute)
		for i := range 3 {
			now := time.Since(r.began)
			hc := lb.HealthCheck{Port: 30001, Ready: [2]int{i, 0}}
			good := service("a", fmt.Sprintf("10.244.0.%d:80", i+1))
			r.source.change(lb.Change{Object: obj, Services: []*lb.Service{good, bad}, Health: hc, Triggered: time.Now()})
			expect(t, got, posted{now, fmt.Sprint("a 30001 ", hc.Ready)})
			hc.Ready[1] = i + 1 // and no other Service
			r.source.change(lb.Change{Object: obj, Services: []*lb.Service{good, bad}, Health: hc})
			expect(t, got, posted{now, fmt.Sprint("a 30001 ", hc.Ready)})
			r.pass(time.Minute)
			expect(t, got)
		}
		r.FailService(bad.Name, nil)
		r.pass(time.Minute)
		if told := got.take(); len(told) != 1 || !strings.HasPrefix(told[0].what, "IPv4 3m") {
			t.Errorf("told %v, want the time since the first trigger", told)
		}
	})
}

// TestHealthChecksOfOneTakeComeTogether: a port may go from one to the other.
func TestHealthChecksOfOneTakeComeTogether(t *testing.T) {
	inPostRig(t, func(r *rig, got *posts) {
		one, two := service("a", "10.244.0.1:80"), service("b", "10.244.0.1:80")
		a := lb.Change{Object: one.Name.Object, Services: []*lb.Service{one}, Health: lb.HealthCheck{Port: 30001}}
		b := lb.Change{Object: two.Name.Object, Services: []*lb.Service{two}, Health: lb.HealthCheck{Port: 30002}}
		r.setDuration(time.Second)
		r.source.set("c", service("c", "10.244.0.1:80"))
		r.pass(time.Millisecond) // what comes now shares a Take
		r.source.change(a)
		r.source.change(b)
		r.pass(3 * time.Second)
		expect(t, got, posted{2 * time.Second, "a 30001 [0 0], b 30002 [0 0]"})
		a.Health, b.Health = b.Health, a.Health
		a.Services = []*lb.Service{service("a", "10.244.0.2:80")}
		r.FailService(one.Name, errFault)
		r.source.set("c", service("c", "10.244.0.2:80"))
		r.pass(time.Millisecond)
		r.source.change(a)
		r.source.change(b)
		r.pass(3 * time.Second)
		expect(t, got, posted{5*time.Second + time.Millisecond, "a 30002 [0 0], b 30001 [0 0]"})
	})
}

// TestFailingServiceCostsNoMemory: however often it changes.
func TestFailingServiceCostsNoMemory(t *testing.T) {
	const changes, limit = 20000, 256 << 10
	l := newLedger(Defaults{Algorithm: "random"})
	now, applied := time.Unix(1e9, 0), map[lb.ServiceName]*dataplane.Service{}
	name := serviceName("a")
	l.note([]lb.Change{{Object: name.Object, Services: []*lb.Service{service("a", "10.244.0.1:80")}}}, true, now)
	l.settle(l.plan(now, applied), nil, nil, now)
	used := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before, told := used(), 0
	for i := range changes {
		now = now.Add(time.Second)
		svc := service("a", fmt.Sprintf("10.244.%d.%d:80", i/200, i%200+1))
		hc := lb.HealthCheck{Port: 30001, Ready: [2]int{i, 0}}
		l.note([]lb.Change{{Object: name.Object, Services: []*lb.Service{svc}, Health: hc, Triggered: now}}, false, now)
		l.settle(l.plan(now, applied), map[lb.ServiceName]error{name: errFault}, nil, now)
		told += len(l.outbox.ready(l.dirty, l.waiting).checks)
	}
	if grown := used() - before; grown > limit {
		t.Errorf("%d changes of a Service that fails take %d bytes, want at most %d", changes, grown, limit)
	}
	if told != changes || len(l.outbox.letters) != 1 {
		t.Errorf("told %d health checks, %d letters left, want %d and 1", told, len(l.outbox.letters), changes)
	}
	runtime.KeepAlive(l)
}

// TestOnlyLettersOfWhatWasTriedAreOpened: those that wait cost a Sync nothing.
func TestOnlyLettersOfWhatWasTriedAreOpened(t *testing.T) {
	o, now := newOutbox(), time.Unix(1e9, 0)
	dirty, waiting := map[lb.ServiceName]time.Time{}, map[lb.ServiceName]setback{}
	for i := range 100 {
		name := serviceName(fmt.Sprint("s", i))
		dirty[name], waiting[name] = now, setback{errFault, true}
		o.note(lb.Change{Object: name.Object, Triggered: now}, []lb.ServiceName{name})
	}
	if p := o.ready(dirty, waiting); len(p.triggered) > 0 || len(o.letters) != 100 || len(o.look) != 0 {
		t.Fatalf("%d told, %d letters, %d to look at; want 0, 100, 0", len(p.triggered), len(o.letters), len(o.look))
	}
	o.tried(serviceName("s7"))
	o.tried(serviceName("nobody waits for it"))
	if len(o.look) != 1 {
		t.Errorf("%d to look at, want 1", len(o.look))
	}
	delete(dirty, serviceName("s7"))
	delete(dirty, serviceName("s8")) // which nobody noted
	if p := o.ready(dirty, waiting); len(p.triggered) != 1 || len(o.letters) != 99 {
		t.Errorf("%d told, %d letters left, want 1 and 99", len(p.triggered), len(o.letters))
	}
}

func TestHealthChecksEndWithARelist(t *testing.T) {
	inPostRig(t, func(r *rig, got *posts) {
		obj := lb.Object{Namespace: "ns", Name: "a"}
		r.source.change(lb.Change{Object: obj, Health: lb.HealthCheck{Port: 30001}})
		expect(t, got, posted{0, "a 30001 [0 0]"})
		r.source.mu.Lock()
		delete(r.source.state, obj)
		r.source.mu.Unlock()
		r.source.relist()
		expect(t, got, posted{0, "a 0 [0 0]"})
	})
}

func TestTriggerTimes(t *testing.T) {
	inPostRig(t, func(r *rig, got *posts) {
		r.pass(time.Minute)
		obj := lb.Object{Namespace: "ns", Name: "a"}
		six := service("a", "10.244.0.1:80")
		six.Name.Family, six.Frontends[0].Addr = lb.IPv6, service("other").Frontends[0].Addr
		at := func(d time.Duration) time.Time { return r.began.Add(d) }
		r.setDuration(time.Second)
		r.source.change(lb.Change{Object: obj, Services: []*lb.Service{service("a", "10.244.0.2:80")}, Triggered: at(50 * time.Second)})
		r.pass(time.Second)
		expect(t, got, posted{61 * time.Second, "IPv4 11s"})
		r.source.change(lb.Change{Object: obj, Services: []*lb.Service{service("a", "10.244.0.3:80"), six}, Triggered: at(61 * time.Second)})
		r.pass(time.Second)
		expect(t, got, posted{62 * time.Second, "IPv4 1s"}, posted{62 * time.Second, "IPv6 1s"})
		r.source.change(lb.Change{Object: obj, Services: []*lb.Service{service("a", "10.244.0.4:80"), six}})
		r.pass(time.Second)
		expect(t, got) // nobody says when
		r.source.change(lb.Change{Object: obj, Services: []*lb.Service{service("a", "10.244.0.5:80"), six}, Triggered: r.began.Add(-time.Second)})
		r.pass(time.Second)
		expect(t, got) // before this process was there
		r.source.change(lb.Change{Object: obj, Services: []*lb.Service{service("a", "10.244.0.6:80"), six}, Triggered: at(time.Hour)})
		r.pass(time.Second)
		expect(t, got, posted{65 * time.Second, "IPv4 0s"}) // another machine's clock
	})
}

func TestStatusOfFamilies(t *testing.T) {
	six := service("b", "10.244.0.1:80")
	six.Name.Family = lb.IPv6
	inBubble(t, func(r *rig) {
		r.pass(time.Hour)
		r.source.set("b", service("b", "10.244.0.2:80")) // IPv4 comes, IPv6 goes
		synctest.Wait()
		hour, start := r.began.Add(time.Hour), r.began
		if f := r.agent.Status().Families; f[0].LastSuccess != hour || f[1].LastSuccess != hour || f[0].LastQueued != hour || f[1].LastQueued != hour {
			t.Errorf("got %+v, want all at %v", f, hour)
		}
		r.FailService(serviceName("b"), errFault)
		r.SetDown(errFault)
		r.pass(time.Hour)
		r.source.set("a", service("a", "10.244.0.2:80"))
		r.pass(time.Hour)
		s := r.agent.Status()
		if f := s.Families; f[0].LastSuccess != hour || f[0].QueuedSince != start.Add(2*time.Hour) || !f[1].QueuedSince.IsZero() || f[1].LastQueued != hour {
			t.Errorf("got %+v, want IPv4 to wait", f)
		}
		if now := time.Now(); s.Families[0].Healthy(now, time.Minute) || !s.Families[1].Healthy(now, time.Minute) || s.Healthy(now, time.Minute) {
			t.Errorf("healthy: %t, %t, together %t; want false, true, false",
				s.Families[0].Healthy(now, time.Minute), s.Families[1].Healthy(now, time.Minute), s.Healthy(now, time.Minute))
		}
		other := service("c", "10.244.0.1:80")
		other.Name.Family = lb.IPv6
		r.source.set("c", other)
		r.pass(time.Hour)
		if f := r.agent.Status().Families; f[0].QueuedSince != start.Add(2*time.Hour) || f[1].QueuedSince != start.Add(3*time.Hour) {
			t.Errorf("got %+v, want IPv6 to wait too", f)
		}
	}, service("a", "10.244.0.1:80"), six)
}

func TestNoLocalEndpointsAreCounted(t *testing.T) {
	lonely := func(name string, family lb.Family, edit func(*lb.Service)) *lb.Service {
		svc := service(name, "10.244.0.1:80")
		svc.Name.Family = family
		svc.Local.Empty = lb.Drop
		svc.Frontends[0].Inside = lb.ScopeLocal
		edit(svc)
		return svc
	}
	external := func(svc *lb.Service) {
		svc.Frontends[0].Inside, svc.Frontends[0].Outside, svc.Frontends[0].Type = lb.ScopeCluster, lb.ScopeLocal, lb.LoadBalancer
	}
	counts := func(r *rig, v4, v6 NoLocal) {
		t.Helper()
		synctest.Wait()
		if f := r.agent.Status().Families; f[0].NoLocal != v4 || f[1].NoLocal != v6 {
			t.Errorf("counted %+v, %+v, want %+v, %+v", f[0].NoLocal, f[1].NoLocal, v4, v6)
		}
	}
	inBubble(t, func(r *rig) {
		counts(r, NoLocal{Internal: 1}, NoLocal{External: 1})
		r.source.set("c", lonely("c", lb.IPv4, external))
		counts(r, NoLocal{1, 1}, NoLocal{External: 1})
		r.source.set("c", lonely("c", lb.IPv4, func(svc *lb.Service) { // somebody is here
			external(svc)
			svc.Local.Backends = svc.Cluster.Backends
		}))
		counts(r, NoLocal{Internal: 1}, NoLocal{External: 1})
		r.source.set("a", lonely("a", lb.IPv4, func(svc *lb.Service) { svc.Local.Empty = lb.Reject })) // nobody is anywhere
		r.source.set("b")
		counts(r, NoLocal{}, NoLocal{})
	}, lonely("a", lb.IPv4, func(*lb.Service) {}), lonely("b", lb.IPv6, external), service("plain", "10.244.0.1:80"))
}

func TestFamilies(t *testing.T) {
	four, six := serviceName("a"), serviceName("a")
	six.Family = lb.IPv6
	for _, tc := range []struct {
		d    dataplane.Delta
		want [2]bool
	}{
		{dataplane.Delta{Full: true}, [2]bool{true, true}},
		{dataplane.Delta{Put: []*dataplane.Service{{Name: four}}}, [2]bool{true, false}},
		{dataplane.Delta{Delete: []lb.ServiceName{six}}, [2]bool{false, true}},
		{dataplane.Delta{Put: []*dataplane.Service{{Name: six}}, Delete: []lb.ServiceName{four}}, [2]bool{true, true}},
	} {
		if got := Families(tc.d); got != tc.want {
			t.Errorf("%+v: %v, want %v", tc.d, got, tc.want)
		}
	}
}

func TestShrunk(t *testing.T) {
	m, most := map[int]int{}, 0
	for i := range 1000 {
		m[i] = i
	}
	same := func(a, b map[int]int) bool { // whether they are one map
		a[-1] = 1
		_, ok := b[-1]
		delete(a, -1)
		return ok
	}
	if got := shrunk(m, &most); !same(got, m) || most != 1000 {
		t.Errorf("a full map was copied, or most is %d", most)
	}
	for i := 10; i < 1000; i++ {
		delete(m, i)
	}
	got := shrunk(m, &most)
	if same(got, m) || len(got) != 10 || most != 10 || got[9] != 9 {
		t.Errorf("got %v, most %d, want a copy of %v", got, most, m)
	}
	if again := shrunk(got, &most); !same(again, got) {
		t.Error("a small map was copied")
	}
}
