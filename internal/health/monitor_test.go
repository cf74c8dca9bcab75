// SPDX-License-Identifier: Apache-2.0

package health

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestProbesTakeOut: a backend that probes find ill has weight 0 after fall failures, and
// is back after rise successes; it is told.
func TestProbesTakeOut(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		r.src.put(change(service("web", 3, probeTCP())))
		r.wait(10 * time.Second)
		r.wantWeights("web", 100, 100, 100)
		r.wantState("web", addr(1), "healthy")
		r.prober.set(errStatus, addr(1))
		r.wait(9 * time.Second) // an interval with its jitter, and two fast ones
		r.wantWeights("web", 100, 0, 100)
		r.wantState("web", addr(1), "ejected")
		want := "shop/web Warning BackendEjected: shop/web/TCP/IPv4: backend 10.0.0.1:80: " + errStatus.Error()
		if got := r.events.take(ReasonEjected); !slices.Equal(got, []string{want}) {
			t.Errorf("events %q, want %q", got, want)
		}
		r.prober.set(nil, addr(1))
		r.wait(6 * time.Second)
		r.wantWeights("web", 100, 100, 100)
		if got := r.events.take(ReasonRestored); len(got) != 1 || !strings.Contains(got[0], "Normal") {
			t.Errorf("events %q", got)
		}
		s := r.m.Stats()
		if s.Backends[Healthy] != 3 || s.Targets != 3 || s.Ejections["probe"] != 1 ||
			s.Transitions[[2]State{Suspect, Ejected}] != 1 || s.Transitions[[2]State{Ejected, Healthy}] != 1 || s.Transitions[[2]State{Unknown, Healthy}] != 3 {
			t.Errorf("stats %+v", s)
		}
	})
}

// TestSharedTarget: Services that have a backend and a probe in common probe it once, at
// the pace of the fastest; each decides by its own rules. Other probes are other targets.
func TestSharedTarget(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		slow, fast, path := probeTCP(), probeTCP(), probeTCP()
		slow.Interval, slow.Fall = 20*time.Second, 1
		fast.Interval, fast.Fall = 2*time.Second, 5
		path.Probe.Port = 9000
		r.src.put(change(service("slow", 2, slow)), change(service("fast", 2, fast)), change(service("path", 2, path)))
		r.wait(200 * time.Second)
		if got := r.m.Stats().Targets; got != 4 {
			t.Errorf("%d targets, want 4", got)
		}
		if got := r.prober.count(addr(0)); got < 90 || got > 100 {
			t.Errorf("%d probes in 200 s, want one in 2 s to 2.2 s", got)
		}
		if got := r.prober.count(netip.AddrPortFrom(addr(0).Addr(), 9000)); got < 36 || got > 40 {
			t.Errorf("%d probes of the other port in 200 s, want one in 5 s to 5.5 s", got)
		}
		r.prober.set(errStatus, addr(0))
		r.wait(2500 * time.Millisecond)
		r.wantState("slow", addr(0), "ejected")
		r.wantState("fast", addr(0), "suspect")
		r.wantState("path", addr(0), "healthy")
		r.src.put(lb.Change{Object: shopName("slow", 0).Object}, lb.Change{Object: shopName("fast", 0).Object}, lb.Change{Object: shopName("path", 0).Object})
		r.wait(time.Second)
		before := r.prober.count(addr(1))
		r.wait(time.Minute)
		if got := r.prober.count(addr(1)); got != before {
			t.Errorf("%d probes after the Services went", got-before)
		}
	})
}

// TestNothingKept: a Service that goes away frees everything, also in the middle of a
// probe, and so does one that asks for nothing any more.
func TestNothingKept(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		check := func(when string) {
			t.Helper()
			s := r.m.Stats()
			if len(r.m.Verdicts()) != 0 || s.Targets != 0 || s.Ignored != 0 || s.Backends[Unknown]+s.Backends[Healthy]+s.Backends[Suspect]+s.Backends[Ejected] != 0 {
				t.Errorf("%s: %+v, %+v", when, s, r.m.Verdicts())
			}
			if len(r.m.schedule.queue) != 0 || len(r.m.touched) != 0 || len(r.m.news) != 0 || len(r.m.dirtyObjects) != 0 {
				t.Errorf("%s: something is kept", when)
			}
		}
		r.prober.set(errSilent, addr(0), addr(1))
		r.src.put(change(service("web", 2, probeTCP())), change(service("quiet", 2, lb.Health{})))
		r.wait(20 * time.Second)
		if s := r.m.Stats(); s.Ignored != 2 || s.Backends[Ejected] != 2 {
			t.Errorf("%+v", s)
		}
		r.src.put(change(service("web", 2, lb.Health{})))
		r.wait(2 * time.Second)
		check("it asks for nothing")
		r.symptom("quiet", addr(0), lb.Refused)
		r.wantState("quiet", addr(0), "suspect")
		r.src.put(lb.Change{Object: shopName("quiet", 0).Object})
		r.wait(2 * time.Second)
		check("it went when it was suspect")
		r.src.put(change(service("web", 2, probeTCP())))
		r.wait(5 * time.Second)
		r.src.put(lb.Change{Object: shopName("web", 0).Object})
		r.wait(2 * time.Second)
		check("it went")
		if n := len(r.m.objects) + len(r.m.budgets); n != 0 {
			t.Errorf("%d objects are kept", n)
		}
	})
}

// TestSameValue: what did not change is the same value as before, and nobody is told.
func TestSameValue(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		off := lb.Health{Passive: lb.SwitchOff}
		plain, quiet, watched := service("plain", 2, off), service("quiet", 2, lb.Health{}), service("watched", 3, probeTCP())
		udp := &lb.Service{Name: shopName("dns", lb.UDP), Cluster: lb.Pool{Backends: pool(2)}}
		r.src.put(change(plain), change(quiet), change(watched), change(udp))
		r.wait(time.Minute)
		if r.out("plain") != plain || r.out("dns") != udp {
			t.Error("a Service of which nothing changes is another value")
		}
		if got := r.out("quiet").Terms.Suspect; got != suspectTime {
			t.Errorf("quiet: Suspect is %v", got)
		}
		if quiet.Terms.Suspect != 0 {
			t.Error("the source's value was changed")
		}
		before := map[string]*lb.Service{"quiet": r.out("quiet"), "watched": r.out("watched")}
		r.src.put(change(plain), change(quiet), change(watched), change(udp))
		r.wait(time.Second)
		for name, svc := range before {
			if r.out(name) != svc {
				t.Errorf("%s became another value although nothing changed", name)
			}
		}
		takes := r.takes
		r.wait(10 * time.Minute)
		r.prober.set(errStatus, addr(2))
		suspect := func() bool {
			return slices.ContainsFunc(r.m.Verdicts(), func(v Verdict) bool { return v.State == Suspect })
		}
		for i := 0; i < 100 && !suspect(); i++ { // until one probe has failed, which is not enough to eject
			r.wait(100 * time.Millisecond)
		}
		if !suspect() {
			t.Error("no probe failed")
		}
		r.prober.set(nil, addr(2))
		r.wait(10 * time.Minute)
		if r.takes != takes {
			t.Errorf("%d times something was handed on", r.takes-takes)
		}
		r.prober.set(errStatus, addr(2))
		r.wait(time.Minute)
		if r.out("quiet") != before["quiet"] || r.takes != takes+1 {
			t.Errorf("%d times something was handed on, want once, of one Service", r.takes-takes)
		}
		if out := r.out("watched"); out == before["watched"] || out.Cluster.Backends[2].Weight != 0 || watched.Cluster.Backends[2].Weight != 100 {
			t.Errorf("%+v", out)
		}
	})
}

// TestPanic: where too few would be left, all serve, and it is told once.
func TestPanic(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		r.src.put(change(service("web", 4, probeTCP())))
		r.prober.set(errStatus, addr(0), addr(1), addr(2))
		r.wait(30 * time.Second)
		r.wantWeights("web", 0, 0, 0, 100)
		r.prober.set(errStatus, addr(3))
		r.wait(30 * time.Second)
		r.wantWeights("web", 100, 100, 100, 100)
		if v := r.m.Verdicts()[3]; v.State != Ejected || v.Ignored != "none of 4 would be left" {
			t.Errorf("%+v", v)
		}
		if got := r.m.Stats().Ignored; got != 4 {
			t.Errorf("%d ignored", got)
		}
		if got := r.events.take(ReasonIgnored); len(got) != 1 {
			t.Errorf("events %q", got)
		}
		r.prober.set(nil, addr(1))
		r.wait(30 * time.Second)
		r.wantWeights("web", 0, 100, 0, 0)
	})
}

// TestLocalPool: each pool is ruled for itself.
func TestLocalPool(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		svc := service("web", 3, probeTCP())
		svc.Local.Backends = pool(1)
		r.src.put(change(svc))
		r.prober.set(errStatus, addr(0))
		r.wait(30 * time.Second)
		r.wantWeights("web", 0, 100, 100)
		if got := r.out("web").Local.Backends[0].Weight; got != 100 {
			t.Errorf("the only local backend has weight %d", got)
		}
		if v := r.m.Verdicts()[0]; v.Ignored != "it is the only one in the local pool" {
			t.Errorf("%+v", v)
		}
	})
}

// TestDrain: a Service may ask that what is out is not in the pool.
func TestDrain(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		h := probeTCP()
		h.Drain = lb.SwitchOn
		r.src.put(change(service("web", 3, h)))
		r.prober.set(errStatus, addr(0))
		r.wait(30 * time.Second)
		r.wantWeights("web", 100, 100)
		r.prober.set(nil, addr(0))
		r.wait(10 * time.Second)
		r.wantWeights("web", 100, 100, 100)
	})
}

// TestSymptom: a symptom is confirmed at once. Where nobody asks for probes, the backend
// is probed only until it is restored.
func TestSymptom(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		r.src.put(change(service("web", 3, lb.Health{})))
		r.wait(time.Minute)
		if n := r.prober.count(addr(0)); n != 0 || len(r.m.Verdicts()) != 0 {
			t.Fatalf("%d probes, %+v", n, r.m.Verdicts())
		}
		r.prober.set(errRefused, addr(0))
		r.symptom("web", addr(0), lb.Refused)
		r.wait(2 * time.Millisecond)
		r.wantWeights("web", 0, 100, 100)
		if p := r.prober.last[addr(0)].Probe; p != (lb.Probe{Kind: lb.ProbeTCP, Timeout: time.Second}) {
			t.Errorf("it was probed by %+v", p)
		}
		r.prober.set(nil, addr(0))
		r.wait(1900 * time.Millisecond)
		r.wantWeights("web", 0, 100, 100)
		r.wait(400 * time.Millisecond)
		r.wantWeights("web", 100, 100, 100)
		n := r.prober.count(addr(0))
		r.wait(19 * time.Second)
		r.wantState("web", addr(0), "healthy")
		r.wait(2 * time.Second)
		r.wantState("web", addr(0), "")
		if got := r.prober.count(addr(0)); got != n {
			t.Errorf("%d probes after it was restored", got-n)
		}
		if s := r.m.Stats(); s.Ejections["refused"] != 1 || s.Targets != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestFalseAlarm: a symptom that a probe contradicts costs nothing, and the kernel is
// told to be calm, for longer each time.
func TestFalseAlarm(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		r.src.put(change(service("web", 3, lb.Health{})))
		r.wait(time.Second)
		before := r.out("web")
		for i := range 7 {
			r.symptom("web", addr(1), lb.Unanswered)
			r.wantState("web", addr(1), "suspect")
			r.wait(5 * time.Millisecond)
			r.wantState("web", addr(1), "healthy")
			for range 20 { // those that come while it is calm are not heeded
				r.symptom("web", addr(1), lb.Unanswered)
			}
			r.wait(min(minPenalty<<i, maxCalm))
		}
		if got, want := fmt.Sprint(r.kernel.calms), "[2s 4s 8s 16s 32s 1m0s 1m0s]"; got != want {
			t.Errorf("calm %s, want %s", got, want)
		}
		if n := r.prober.count(addr(1)); n != 7 {
			t.Errorf("%d probes", n)
		}
		if r.out("web") != before {
			t.Error("something was handed on")
		}
	})
}

// TestStaleSuccess: a probe that was under way when a symptom came does not contradict it.
func TestStaleSuccess(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		r.prober.takes = func() time.Duration { return 500 * time.Millisecond }
		r.src.put(change(service("web", 2, probeTCP())))
		for r.prober.count(addr(0)) == 0 {
			r.wait(10 * time.Millisecond)
		}
		r.prober.set(errRefused, addr(0)) // for probes that start now
		r.symptom("web", addr(0), lb.Refused)
		r.wait(800 * time.Millisecond)
		r.wantState("web", addr(0), "suspect")
		r.wait(300 * time.Millisecond)
		r.wantState("web", addr(0), "ejected")
	})
}

// TestShare: connections alone take out only so many.
func TestShare(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		r.src.put(change(service("web", 10, lb.Health{})))
		r.wait(time.Second)
		for i := range 10 {
			r.prober.set(errRefused, addr(i))
			r.symptom("web", addr(9-i), lb.Refused)
			r.wait(10 * time.Millisecond)
		}
		r.wait(time.Second)
		r.symptom("web", addr(9), lb.Refused) // those that were not probed in vain
		for i := range 5 {
			r.symptom("web", addr(9-i), lb.Refused)
		}
		r.wait(100 * time.Millisecond)
		zero := 0
		for _, be := range r.out("web").Cluster.Backends {
			if be.Weight == 0 {
				zero++
			}
		}
		if zero != 3 {
			t.Errorf("%d of 10 are out, want 3", zero)
		}
	})
}

// TestStrangeSymptoms: symptoms of what is not there, or where they do not count.
func TestStrangeSymptoms(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		r.symptom("web", addr(0), lb.Refused) // before there is anything
		idle := service("idle", 2, lb.Health{})
		idle.Cluster.Backends[0].Weight = 0
		r.src.put(change(service("off", 2, lb.Health{Passive: lb.SwitchOff})), change(service("web", 2, lb.Health{})), change(idle))
		r.wait(time.Second)
		r.symptom("off", addr(0), lb.Refused)
		r.symptom("web", addr(7), lb.Refused)
		r.symptom("idle", addr(0), lb.Refused)
		r.kernel.symptoms <- lb.Symptom{Service: shopName("web", lb.UDP), Backend: addr(0), Kind: lb.Refused}
		r.wait(time.Second)
		if v := r.m.Verdicts(); len(v) != 0 {
			t.Errorf("%+v", v)
		}
	})
}

// TestCannot: probes that cannot be made take nothing out, and are told once.
func TestCannot(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		r.prober.set(fmt.Errorf("%w: no script", ErrCannot), addr(0), addr(1))
		r.src.put(change(service("web", 2, probeTCP())))
		r.wait(10 * time.Minute)
		r.wantWeights("web", 100, 100)
		r.wantState("web", addr(0), "unknown")
		if got := r.events.take(ReasonRefused); len(got) != 1 || !strings.Contains(got[0], "no script") {
			t.Errorf("events %q", got)
		}
	})
}
