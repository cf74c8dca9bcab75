// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestEventLimit: a Service has 10 Events at once and then one a minute.
func TestEventLimit(t *testing.T) {
	l, now := budgets{}, epoch
	allowed := 0
	for range 600 { // 10 minutes
		for range 3 {
			if l.allow(lb.Object{Name: "web"}, now) {
				allowed++
			}
		}
		now = now.Add(time.Second)
	}
	if allowed != 19 {
		t.Errorf("%d Events in 10 minutes, want 10 + 9", allowed)
	}
	if !l.allow(lb.Object{Name: "other"}, now) {
		t.Error("another Service has none")
	}
}

// TestStagger: probes of many backends do not begin at the same time, and stay apart.
func TestStagger(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		r.src.put(change(service("web", 1000, probeTCP())))
		r.wait(5 * time.Second)
		at := map[time.Duration]int{}
		began := time.Now().Add(-5 * time.Second)
		for _, starts := range r.prober.starts {
			if len(starts) != 1 {
				t.Fatalf("%d probes in the first interval", len(starts))
			}
			at[starts[0].Sub(began)/(100*time.Millisecond)]++
		}
		for when, n := range at {
			if n > 60 { // 20 on average
				t.Errorf("%d of 1000 probes between %d00 and %d00 ms", n, when, when+1)
			}
		}
	})
}

// TestJitter: the time between two probes is an interval and up to a tenth more, and differs,
// so that nodes which begin together do not stay together.
func TestJitter(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		r.src.put(change(service("web", 1, probeTCP())))
		r.wait(10 * time.Minute)
		starts := r.prober.starts[addr(0)]
		pauses := map[time.Duration]int{}
		for i := 1; i < len(starts); i++ {
			pause := starts[i].Sub(starts[i-1])
			pauses[pause.Truncate(100*time.Millisecond)]++
			if pause < 5*time.Second || pause > 5500*time.Millisecond {
				t.Errorf("%v between two probes", pause)
			}
		}
		if len(starts) < 100 || len(pauses) < 3 {
			t.Errorf("%d probes in 10 minutes, pauses %v", len(starts), pauses)
		}
	})
}

// TestSetDefaults: Services that say nothing are watched as the new defaults say, others
// as before.
func TestSetDefaults(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		own := probeTCP()
		own.Passive = lb.SwitchOn
		r.src.put(change(service("web", 2, lb.Health{})), change(service("own", 1, own)))
		r.wait(10 * time.Second)
		before := r.out("own")
		d := testDefaults()
		d.Probe.Kind, d.Passive = lb.ProbeTCP, lb.SwitchOff
		r.m.SetDefaults(d)
		r.wait(10 * time.Second)
		r.wantState("web", addr(1), "healthy")
		if r.out("web").Terms.Suspect != 0 || r.out("own") != before {
			t.Errorf("%+v", r.out("web"))
		}
		r.m.SetDefaults(testDefaults())
		r.wait(10 * time.Second)
		r.wantState("web", addr(1), "")
		if r.out("web").Terms.Suspect != suspectTime {
			t.Errorf("%+v", r.out("web"))
		}
	})
}

// TestPorts: ports of an object come and go, and those that stay keep what is known.
func TestPorts(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		port := func(name string) *lb.Service {
			svc := service("web", 2, probeTCP())
			svc.Name.Port = name
			svc.Health.Probe.Path = "/" + name // a target of its own
			return svc
		}
		a, b, c := port("a"), port("b"), port("c")
		r.src.put(change(b))
		r.prober.set(errStatus, addr(0))
		r.wait(30 * time.Second)
		r.wantWeights("web", 0, 100)
		r.src.put(change(a, b, c))
		r.wait(time.Millisecond)
		r.mu.Lock()
		got := r.objects[b.Name.Object].Services
		r.mu.Unlock()
		if len(got) != 3 || got[0].Cluster.Backends[0].Weight != 100 || got[1].Cluster.Backends[0].Weight != 0 {
			t.Errorf("%+v", got)
		}
		r.wait(30 * time.Second)
		r.src.put(change(c))
		r.wait(2 * time.Second)
		r.wantWeights("web", 0, 100)
		if got := r.m.Stats(); got.Targets != 2 || got.Backends[Ejected] != 1 {
			t.Errorf("%+v", got)
		}
	})
}

// TestProtocols: ports that are not TCP are not probed unless it is said where.
func TestProtocols(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		plain := &lb.Service{Name: shopName("plain", lb.UDP), Cluster: lb.Pool{Backends: pool(1)}, Health: probeTCP()}
		ported := &lb.Service{Name: shopName("ported", lb.UDP), Cluster: lb.Pool{Backends: pool(1)}, Health: probeTCP()}
		ported.Health.Probe.Port = 9000
		r.src.put(change(plain), change(ported))
		r.wait(10 * time.Second)
		if v := r.m.Verdicts(); len(v) != 1 || v[0].Service.Name != "ported" || v[0].State != Healthy {
			t.Errorf("%+v", v)
		}
	})
}

// TestBeforeFull: nothing is handed on before the first full result, and no wake-up lost.
func TestBeforeFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newMonitorRig(t)
		if changes, full := r.f.Take(); len(changes) != 0 || !full {
			t.Errorf("%v, %t", changes, full)
		}
		select {
		case <-r.f.Dirty():
			t.Error("dirty without a reason")
		default:
		}
	})
}

// TestSince: a verdict waits from when it was made until a Take.
func TestSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newMonitorRig(t)
		r.f.Take()
		made := time.Now()
		r.m.locked(func() { r.m.markDirty(&object{}) })
		<-time.After(time.Second)
		r.m.locked(func() { r.m.markDirty(&object{}) })
		if at := r.f.Since(); !at.Equal(made) {
			t.Errorf("got %s, want %s", at, made)
		}
		r.f.Take()
		if at := r.f.Since(); !at.IsZero() {
			t.Errorf("after a Take: %s", at)
		}
	})
}

// TestMillion: 1,000,000 probes that take anything below their timeout, while the agent
// takes changes all the time, and not one false ejection.
func TestMillion(t *testing.T) {
	const backends, wanted = 2000, 1_000_000
	bubble(t, func(r *monitorRig) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		rnd := rand.New(rand.NewPCG(seed, 0)) // guarded by the prober's lock
		probes := 0
		r.prober.takes = func() time.Duration {
			probes++
			return time.Duration(rnd.Int64N(int64(time.Second - time.Microsecond)))
		}
		h := probeTCP()
		h.Interval, h.FastInterval, h.Fall = time.Second, 100*time.Millisecond, 1
		for i := range backends / 100 {
			svc := service(fmt.Sprint("s", i), 100, h)
			for j := range svc.Cluster.Backends {
				svc.Cluster.Backends[j].Addr = addr(100*i + j)
			}
			r.src.put(change(svc))
		}
		for done := false; !done; {
			r.wait(10 * time.Second)
			r.src.put(change(service("other", 1+rnd.IntN(5), lb.Health{})))
			r.prober.mu.Lock()
			done = probes >= wanted
			r.prober.mu.Unlock()
		}
		s := r.m.Stats()
		if len(s.Ejections) != 0 || s.Backends[Healthy] != backends || s.Transitions[[2]State{Healthy, Suspect}] != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestFull: what a full result does not name is gone.
func TestFull(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		r.src.put(change(service("web", 2, probeTCP())), change(service("other", 2, probeTCP())))
		r.wait(10 * time.Second)
		r.src.mu.Lock()
		r.src.started = false // the next one is full
		r.src.mu.Unlock()
		r.src.put(change(service("web", 2, probeTCP())))
		r.wait(time.Second)
		if v := r.m.Verdicts(); len(v) != 2 || v[0].Service.Name != "web" || len(r.m.objects) != 1 {
			t.Errorf("%+v", v)
		}
	})
}

// TestGone: a backend that leaves is forgotten, with what was known of it.
func TestGone(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		r.prober.set(errStatus, addr(2))
		r.src.put(change(service("web", 3, probeTCP())))
		r.wait(30 * time.Second)
		r.wantState("web", addr(2), "ejected")
		r.src.put(change(service("web", 2, probeTCP())))
		r.wait(time.Second)
		r.wantState("web", addr(2), "")
		r.src.put(change(service("web", 3, probeTCP())))
		r.wait(time.Millisecond)
		r.wantState("web", addr(2), "unknown")
		r.wantWeights("web", 100, 100, 100)
	})
}

// silentProber never calls done, against its contract.
type silentProber struct{ idleProber }

func (*silentProber) Start(Target, func(Result)) {}

// TestMonitorEnds although a prober loses probes.
func TestMonitorEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &fakeSource{wake: make(chan struct{}, 1)}
		m := NewMonitor(Options{Prober: &silentProber{}, Defaults: testDefaults(), Log: slog.New(slog.DiscardHandler)})
		f := m.Filter(src)
		src.put(change(service("web", 2, probeTCP())))
		f.Take()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		<-time.After(time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
