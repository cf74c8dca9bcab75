// SPDX-License-Identifier: Apache-2.0

package health

import (
	"errors"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// ask is how the Services of these tests are watched.
func ask(kind lb.ProbeKind) lb.Health { return lb.Health{Probe: lb.Probe{Kind: kind}} }

// TestBlocked: probes that cannot connect do not take out what answers connections, and it
// is told. Where connections are not answered either, they do.
func TestBlocked(t *testing.T) {
	for _, tc := range []struct {
		name             string
		err              error
		proven           bool
		before           uint64 // connections that are answered before probes fail
		answered, failed uint64 // when probes have begun to fail
		want             string
	}{
		{"answered", errRefused, true, 10, 10, 0, "suspect"},
		{"answered, silently", errSilent, true, 10, 1, 0, "suspect"},
		{"no connections", errRefused, true, 10, 0, 0, "ejected"},
		{"failing", errRefused, true, 10, 0, 1, "ejected"},
		{"most fail", errRefused, true, 10, 1, 10, "ejected"},
		{"never healthy, answered", errRefused, false, 10, 1, 0, "suspect"},
		{"never healthy, answered long ago", errRefused, false, 10, 0, 0, "ejected"},
		{"never healthy, failing", errRefused, false, 10, 0, 1, "ejected"},
		{"never healthy, none", errRefused, false, 0, 0, 0, "ejected"},
		{"it is reached", errStatus, true, 10, 10, 0, "ejected"},
		{"it is reached and silent", errors.New("http: no answer within 1s"), true, 10, 10, 0, "ejected"},
	} {
		for name, stale := range map[string]time.Duration{"counted": 0, "read": 500 * time.Millisecond, "seen": time.Second} {
			t.Run(tc.name+", "+name, func(t *testing.T) {
				bubble(t, func(r *monitorRig) {
					r.kernel.stale = stale
					r.kernel.count(tc.before, 0)
					if !tc.proven {
						r.prober.set(tc.err, addr(0))
					}
					r.src.put(change(service("web", 2, ask(lb.ProbeHTTP))))
					if tc.proven {
						r.wait(10 * time.Second)
						r.prober.set(tc.err, addr(0))
					}
					for r.state("web", addr(0)) != "suspect" {
						r.wait(50 * time.Millisecond)
					}
					r.wait(stale + 50*time.Millisecond)
					r.kernel.count(tc.answered, tc.failed)
					r.wait(15 * time.Second)
					r.wantState("web", addr(0), tc.want)
					events := r.events.take(ReasonBlocked)
					if (len(events) == 1) != (tc.want == "suspect") {
						t.Errorf("events %q", events)
					}
				})
			})
		}
	}
}

// TestBlockedUntilUnseen: a backend of which it was known that probes are blocked does not
// live on that for ever when its connections are not looked at any more. Nor is it out
// because they could not be read for a moment, or because there are none.
func TestBlockedUntilUnseen(t *testing.T) {
	for _, kind := range []lb.ProbeKind{lb.ProbeTCP, lb.ProbeHTTP} {
		for name, tc := range map[string]struct {
			happens func(r *monitorRig)
			want    string
		}{
			"nothing": {func(*monitorRig) {}, "suspect"},
			"the Service is not watched by connections": {func(r *monitorRig) {
				h := ask(kind)
				h.Passive = lb.SwitchOff
				r.src.put(change(service("web", 2, h)))
			}, "ejected"},
			"no Service is": {func(r *monitorRig) {
				d := testDefaults()
				d.Passive = lb.SwitchOff
				r.m.SetDefaults(d)
			}, "ejected"},
			"they cannot be read":           {func(r *monitorRig) { r.kernel.hide(true) }, "ejected"},
			"they are not read any more":    {func(r *monitorRig) { r.kernel.freeze() }, "ejected"},
			"they cannot be for some while": {func(r *monitorRig) { r.kernel.hide(true); r.wait(20 * time.Second); r.kernel.hide(false) }, "suspect"},
		} {
			bubble(t, func(r *monitorRig) {
				r.src.put(change(service("web", 2, ask(kind))))
				r.wait(10 * time.Second)
				r.prober.set(errRefused, addr(0))
				for range 100 {
					r.wait(100 * time.Millisecond)
					r.kernel.count(1, 0)
				}
				r.wantState("web", addr(0), "suspect")
				tc.happens(r)
				r.wait(deafIntervals*testDefaults().Interval + 20*time.Second)
				if got := r.state("web", addr(0)); got != tc.want {
					t.Errorf("%s, %s: %s, want %s", kind, name, got, tc.want)
				}
			})
		}
	}
}

// TestNotCounted: where nothing is known of connections, probes decide.
func TestNotCounted(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		r.kernel.unknown = true
		r.prober.set(errRefused, addr(0))
		r.src.put(change(service("web", 2, ask(lb.ProbeTCP))))
		r.wait(8 * time.Second)
		r.wantState("web", addr(0), "ejected")
	})
}

// TestDeadByProbes: a backend that dies is out by probes alone, however many connections
// it answered until then, whatever of them was not read yet, and whether a probe found it
// healthy before or not.
func TestDeadByProbes(t *testing.T) {
	for _, err := range []error{errRefused, errSilent} {
		for _, proven := range []bool{false, true} {
			for name, stale := range map[string]time.Duration{"counted": 0, "read": 500 * time.Millisecond, "seen": time.Second} {
				bubble(t, func(r *monitorRig) {
					r.kernel.stale = stale
					h := ask(lb.ProbeTCP)
					h.Interval, h.FastInterval, h.Fall, h.Grace = 200*time.Millisecond, 100*time.Millisecond, 2, lb.NoGrace
					h.Probe.Timeout = 100 * time.Millisecond
					if proven {
						r.src.put(change(service("web", 2, h)))
						r.wait(10 * time.Second)
					}
					for range 20 { // it answers until it dies
						_, _ = r.kernel.serve(shopName("web", lb.TCP), addr(0))
						r.wait(47 * time.Millisecond)
						r.kernel.count(1, 0)
					}
					r.prober.set(err, addr(0))
					if !proven {
						r.src.put(change(service("web", 2, h)))
					}
					r.wait(4 * time.Second)
					if got := r.state("web", addr(0)); got != "ejected" {
						t.Errorf("%v, proven %t, %s: %s", err, proven, name, got)
					}
				})
			}
		}
	}
}

// clients connect to addr(0) of web each 100 ms, as long as the kernel does not avoid it.
// Of ten connections so many are answered. They return how many there were in d.
func (r *monitorRig) clients(d time.Duration, answered int) (made, failed int) {
	var until time.Time // the kernel's mark
	for i := range int(d / (100 * time.Millisecond)) {
		r.wait(100 * time.Millisecond)
		r.kernel.mu.Lock()
		if len(r.kernel.calms) > 0 { // the agent says that it is well, for a time
			until = time.Time{}
		}
		var calm time.Duration
		for _, c := range r.kernel.calms {
			calm = c
		}
		r.kernel.calms = nil
		if calm > 0 {
			r.kernel.calm = time.Now().Add(calm)
		}
		calmed := time.Now().Before(r.kernel.calm)
		r.kernel.mu.Unlock()
		if time.Now().Before(until) || r.out("web").Cluster.Backends[0].Weight == 0 {
			continue
		}
		made++
		if (i*7)%10 < answered {
			r.kernel.count(1, 0)
			continue
		}
		failed++
		r.kernel.count(0, 1)
		if !calmed {
			until = time.Now().Add(suspectTime)
			r.symptom("web", addr(0), lb.Refused)
		}
	}
	return made, failed
}

// TestPolicyForbidsProbesAndAClient: a policy that forbids probes and some clients takes a
// backend away from the others for a minute at most, and not again.
func TestPolicyForbidsProbesAndAClient(t *testing.T) {
	for _, tc := range []struct {
		name     string
		kind     lb.ProbeKind
		answered int           // of ten
		learns   time.Duration // no client is forbidden before
	}{
		{"without probes", lb.ProbeNone, 5, 0},
		{"without probes, most clients are forbidden", lb.ProbeNone, 4, 0},
		{"probes", lb.ProbeTCP, 5, 0},
		{"probes, and it was known that they are blocked", lb.ProbeTCP, 5, 20 * time.Second},
		{"probes, and it was known, most clients are forbidden", lb.ProbeTCP, 4, 20 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(r *monitorRig) {
				r.prober.set(errRefused, addr(0))
				r.src.put(change(service("web", 2, ask(tc.kind))))
				r.wait(time.Millisecond)
				r.clients(tc.learns, 10)
				begun := time.Now()
				var out time.Duration
				for time.Since(begun) < 10*time.Minute {
					if r.clients(time.Second, tc.answered); r.state("web", addr(0)) == "ejected" {
						out += time.Second
					}
				}
				most := minChance + 10*time.Second
				if tc.learns > 0 {
					most = 10 * time.Second
				}
				if out > most {
					t.Errorf("it was out for %v of 10 minutes, want at most %v", out, most)
				}
				made, failed := r.clients(time.Minute, tc.answered)
				if made < 300 || made == failed {
					t.Errorf("%d connections in a minute, %d failed", made, failed)
				}
				t.Logf("out for %v; %d connections in a minute, %d failed", out, made, failed)
				_, failed = r.clients(30*time.Second, 0)
				t.Logf("and when it was dead %d failed in 30 s", failed)
				if failed > 140 {
					t.Errorf("when it was dead %d failed in 30 s, want at most those of two intervals and a few", failed)
				}
			})
		})
	}
}

// TestTrialEndsWithABackend: one on trial that answered all for a while is out soon when it
// dies: that it was well before its first symptom does not speak for it.
func TestTrialEndsWithABackend(t *testing.T) {
	bubble(t, func(r *monitorRig) {
		r.prober.set(errRefused, addr(0))
		r.src.put(change(service("web", 2, ask(lb.ProbeTCP))))
		r.wait(time.Millisecond)
		r.clients(20*time.Second, 10)
		if _, failed := r.clients(time.Second, 0); failed != 1 || r.state("web", addr(0)) != "ejected" {
			t.Fatalf("%d connections failed, it is %s", failed, r.state("web", addr(0)))
		}
		r.clients(5*time.Minute, 10)
		r.wantState("web", addr(0), "suspect") // on trial
		_, failed := r.clients(2*time.Second, 0)
		if failed > 4 || r.state("web", addr(0)) != "ejected" {
			t.Errorf("%d connections failed, it is %s", failed, r.state("web", addr(0)))
		}
	})
}

// TestTrialOfADeadBackend: what it costs that a dead backend is tried, which no probe ever
// reached.
func TestTrialOfADeadBackend(t *testing.T) {
	for _, kind := range []lb.ProbeKind{lb.ProbeNone, lb.ProbeTCP} {
		bubble(t, func(r *monitorRig) {
			r.prober.set(errRefused, addr(0))
			r.src.put(change(service("web", 2, ask(kind))))
			r.wait(time.Millisecond)
			_, failed := r.clients(50*time.Second, 0)
			if failed > 1 {
				t.Errorf("%s: %d connections failed in 50 s, want 1", kind, failed)
			}
			if _, failed = r.clients(10*time.Minute, 0); failed < 3 || failed > 12 {
				t.Errorf("%s: %d connections failed in 10 minutes, want 3 in each of at most 4 trials", kind, failed)
			}
			t.Logf("%s: %d failed in 10 minutes", kind, failed)
		})
	}
}
