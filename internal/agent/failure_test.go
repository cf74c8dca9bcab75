// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
)

func TestRetriesBackOff(t *testing.T) {
	for name, fail := range map[string]func(r *rig, err error){
		"one service": func(r *rig, err error) { r.FailService(serviceName("a"), err) },
		"everything":  func(r *rig, err error) { r.SetDown(err) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				fail(r, errFault)
				r.source.set("a", service("a", "10.244.0.2:80"))
				r.pass(2 * time.Minute)
				want, wait := []time.Duration{0}, minBackoff
				for at := wait; at <= 2*time.Minute; at += wait {
					want = append(want, at)
					wait = min(2*wait, maxBackoff)
				}
				var got []time.Duration
				for _, c := range r.since(1) {
					got = append(got, c.at)
				}
				if !reflect.DeepEqual(got, want) {
					t.Errorf("attempts at %v, want %v", got, want)
				}
				fail(r, nil)
				r.pass(maxBackoff)
				r.converged("random")
				n := len(r.since(0))
				r.pass(time.Hour)
				r.steps(n)
				fail(r, errFault) // the next failure starts at the shortest wait again
				r.source.set("a", service("a", "10.244.0.3:80"))
				r.pass(minBackoff)
				r.steps(n, "+a", "+a")
			}, service("a", "10.244.0.1:80"), service("b", "10.244.0.1:80"))
		})
	}
}

func TestFailedFullSyncIsRepeatedInFull(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.SetDown(errFault)
		r.source.mu.Lock()
		r.source.taken = false
		r.source.mu.Unlock()
		r.source.set("a", service("a", "10.244.0.2:80"))
		synctest.Wait()
		r.source.set("b", service("b", "10.244.0.2:80"))
		synctest.Wait()
		r.SetDown(nil)
		r.pass(minBackoff)
		r.steps(1, "+a full", "+a +b full")
		r.converged("random")
	}, service("a", "10.244.0.1:80"))
}

func TestFullTakeWaitsForNoRetry(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.FailService(serviceName("a"), errFault)
		r.source.set("a", service("a", "10.244.0.2:80"))
		r.pass(10 * time.Second) // between two retries
		n := len(r.since(0))
		r.source.mu.Lock()
		r.source.taken = false
		r.source.mu.Unlock()
		r.source.set("b", service("b"))
		synctest.Wait()
		r.steps(n, "+b full")
	}, service("a"))
}

func TestFailingServiceHoldsNobodyUp(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.FailService(serviceName("a"), errFault)
		r.source.set("a", service("a", "10.244.0.2:80"))
		r.pass(10 * time.Second) // between two retries
		n := len(r.since(0))
		r.source.set("b", service("b", "10.244.0.2:80"))
		synctest.Wait()
		r.steps(n, "+b")
		if got := r.Dataplane.Services()[serviceName("b")]; len(got.Cluster.Backends) != 1 {
			t.Errorf("b is %+v", got)
		}
		if got := r.Dataplane.Services()[serviceName("a")]; got.Cluster.Backends[0].Addr.String() != "10.244.0.1:80" {
			t.Errorf("a is %+v, want what it had", got)
		}
	}, service("a", "10.244.0.1:80"), service("b"))
}

func TestChangeOfAFailingServiceIsTriedAtOnce(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.FailService(serviceName("a"), errFault)
		r.source.set("a", service("a", "10.244.0.2:80"))
		r.pass(10 * time.Second)
		n := len(r.since(0))
		r.FailService(serviceName("a"), nil)
		r.source.set("a", service("a", "10.244.0.3:80"))
		synctest.Wait()
		r.steps(n, "+a")
		r.converged("random")
		r.pass(time.Hour)
		r.steps(n, "+a")
	}, service("a", "10.244.0.1:80"))
}

func TestRoomThatIsFreedIsUsedAtOnce(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.FailService(serviceName("a"), dataplane.ErrFull)
		r.source.set("a", service("a", "10.244.0.2:80"))
		r.pass(10 * time.Second)
		n := len(r.since(0))
		r.FailService(serviceName("a"), nil)
		r.source.set("b")
		synctest.Wait()
		r.steps(n, "-b", "+a")
	}, service("a"), service("b"))
}

func TestFailedDeleteIsRetried(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.FailService(serviceName("a"), errFault)
		r.source.set("a")
		synctest.Wait()
		r.FailService(serviceName("a"), nil)
		r.pass(minBackoff)
		r.steps(1, "-a", "-a")
		r.converged("random")
	}, service("a"))
}

func TestWhatAFullSyncCouldNotRemoveIsDeleted(t *testing.T) {
	inBubble(t, func(r *rig) {
		// Something that is left over from before the Agent started.
		old, err := Compile(service("old"), Defaults{Algorithm: "random"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Dataplane.Sync(t.Context(), dataplane.Delta{Put: []*dataplane.Service{old}}); err != nil {
			t.Fatal(err)
		}
		r.FailService(old.Name, errFault)
		r.source.mu.Lock()
		r.source.taken = false
		r.source.mu.Unlock()
		r.source.set("a", service("a"))
		synctest.Wait()
		r.FailService(old.Name, nil)
		r.pass(minBackoff)
		r.steps(1, "+a full", "-old")
		r.converged("random")
	})
}

func TestInvalidServiceKeepsWhatItHad(t *testing.T) {
	bad := service("a", "10.244.0.2:80")
	bad.Balance.Algorithm = "no-such"
	inBubble(t, func(r *rig) {
		had := r.Dataplane.Services()[bad.Name]
		r.source.set("a", bad)
		r.pass(time.Hour)
		r.steps(1)
		if s := r.agent.Status(); s.Failed[bad.Name] == nil || !s.Healthy(time.Now(), time.Minute) {
			t.Errorf("status %+v, want a failed service and a healthy node", s)
		}
		events := r.takeEvents()
		if len(events) != 1 || events[0].reason != ReasonInvalid || events[0].kind != "Warning" ||
			events[0].obj != "a" || !strings.Contains(events[0].message, "no-such") {
			t.Errorf("events %+v, want one of the invalid algorithm", events)
		}
		r.source.mu.Lock()
		r.source.taken = false
		r.source.mu.Unlock()
		r.source.set("a", bad)
		synctest.Wait()
		r.steps(1, "+a full")
		if got := r.Dataplane.Services()[bad.Name]; got != had {
			t.Errorf("service %+v, want %+v", got, had)
		}
		if len(r.agent.Status().Failed) != 1 || len(r.takeEvents()) != 0 {
			t.Error("the failure is forgotten or was reported again")
		}
		r.source.set("a", service("a", "10.244.0.3:80"))
		synctest.Wait()
		r.converged("random")
		if s := r.agent.Status(); len(s.Failed) != 0 {
			t.Errorf("failed %v, want nothing", s.Failed)
		}
	}, service("a", "10.244.0.1:80"))
}

func TestFailureIsReportedOnce(t *testing.T) {
	inBubble(t, func(r *rig) {
		check := func(when string, want ...string) {
			t.Helper()
			var got []string
			for _, e := range r.takeEvents() {
				got = append(got, e.obj+" "+e.reason)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: events %q, want %q", when, got, want)
			}
		}
		fail := func(err error) { r.FailService(serviceName("a"), err) }
		fail(errFault)
		r.source.set("a", service("a", "10.244.0.2:80"))
		r.pass(time.Minute)
		check("at first", "a "+ReasonFailed)
		fail(dataplane.ErrFull)
		r.pass(time.Minute)
		check("another cause", "a "+ReasonFailed)
		fail(nil)
		r.pass(time.Minute)
		fail(dataplane.ErrFull)
		again := service("a", "10.244.0.2:80")
		again.Cluster.Backends[0].Weight++
		r.source.set("a", again)
		r.pass(time.Minute)
		check("after it worked", "a "+ReasonFailed)
		r.SetDown(errFault)
		r.source.set("b", service("b", "10.244.0.3:80"))
		r.pass(time.Minute)
		check("everything fails")
	}, service("a"), service("b"))
}

func TestHealth(t *testing.T) {
	const limit = time.Minute
	for _, tc := range []struct {
		name    string
		fail    func(r *rig)
		queued  bool // the change counts as queued
		healthy bool // after two minutes
	}{
		{"nothing fails", func(*rig) {}, false, true},
		{"one service fails", func(r *rig) { r.FailService(serviceName("a"), errFault) }, false, true},
		{"every service fails", func(r *rig) {
			r.FailService(serviceName("a"), errFault)
			r.FailService(serviceName("b"), errFault)
		}, true, false},
		{"the dataplane is down", func(r *rig) { r.SetDown(errFault) }, true, false},
		{"a sync hangs", func(r *rig) { r.setDuration(time.Hour) }, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				r.pass(time.Hour)
				changed := time.Now()
				tc.fail(r)
				r.source.set("a", service("a", "10.244.0.2:80"))
				r.source.set("b", service("b", "10.244.0.2:80"))
				r.pass(2 * limit)
				s := r.agent.Status()
				if want := map[bool]time.Time{true: changed}[tc.queued]; !s.QueuedSince.Equal(want) {
					t.Errorf("queued since %v, want %v", s.QueuedSince, want)
				}
				if got := s.Healthy(time.Now(), limit); got != tc.healthy {
					t.Errorf("healthy %t, want %t: %+v", got, tc.healthy, s)
				}
				if !s.Healthy(changed.Add(limit-1), limit) {
					t.Error("unhealthy before the limit")
				}
				if got := s.Healthy(changed.Add(limit), limit); got != tc.healthy { // kube-proxy's limit is exclusive
					t.Errorf("healthy at the limit: %t, want %t", got, tc.healthy)
				}
			}, service("a"), service("b"))
		})
	}
}

func TestEventDuringAHangingSyncIsQueued(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.setDuration(time.Hour)
		r.source.set("a", service("a"))
		r.pass(time.Minute)
		if since := r.agent.Status().QueuedSince; since != r.began {
			t.Errorf("queued since %v, want %v", since, r.began)
		}
		r.source.set("b", service("b"))
		r.pass(time.Hour)
		if since, want := r.agent.Status().QueuedSince, r.began.Add(time.Minute); since != want {
			t.Errorf("queued since %v, want %v", since, want)
		}
	})
}

// TestConverges makes random changes against a dataplane that fails now and then:
// in the end it does exactly what the source says.
func TestConverges(t *testing.T) {
	for round := range 60 {
		seed := uint64(time.Now().UnixNano()) + uint64(round)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			inBubble(t, func(r *rig) { converge(r, rand.New(rand.NewPCG(seed, 0))) })
		})
	}
}

func converge(r *rig, rng *rand.Rand) {
	every := 2 + rng.IntN(30)
	r.SetFailEvery(every)
	algorithm := "random"
	for range 40 + rng.IntN(200) {
		switch name := fmt.Sprint("s", rng.IntN(8)); rng.IntN(12) {
		case 0, 1:
			r.source.set(name)
		case 2:
			r.pass(time.Duration(rng.IntN(400)) * time.Millisecond)
		case 3:
			algorithm = []string{"random", "round-robin"}[rng.IntN(2)]
			if err := r.agent.SetDefaultAlgorithm(algorithm); err != nil {
				r.t.Fatal(err)
			}
		case 4:
			r.SetDown([]error{nil, errFault}[rng.IntN(2)])
		case 5:
			r.setDuration(time.Duration(rng.IntN(30)) * time.Millisecond)
		case 6:
			synctest.Wait()
		default:
			svc := service(name)
			for i := range rng.IntN(5) {
				svc.Cluster.Backends = append(svc.Cluster.Backends,
					service("", fmt.Sprintf("10.244.%d.%d:80", i, 1+rng.IntN(3))).Cluster.Backends...)
				svc.Cluster.Backends[i].Weight = uint16(rng.IntN(3))
			}
			r.source.set(name, svc)
		}
	}
	r.SetDown(nil)
	if every < 12 { // a Service of more writes than that would never succeed
		r.SetFailEvery(0)
	}
	r.pass(30 * maxBackoff)
	r.converged(algorithm)
	if s := r.agent.Status(); len(s.Failed) > 0 || !s.QueuedSince.IsZero() || s.Services != len(r.source.services()) {
		r.t.Errorf("status %+v", s)
	}
}

// TestHeldServiceWakesNobody: what waits for a change or for its next attempt has no
// steps in the meantime.
func TestHeldServiceWakesNobody(t *testing.T) {
	bad := slow(time.Hour, "a", one, two)
	bad.Balance.Algorithm = "no-such"
	for _, tc := range []struct {
		name string
		hold func(r *rig)
		most int // wake-ups in ten minutes
	}{
		{"invalid", func(r *rig) { r.source.set("a", bad) }, 1},
		{"refused", func(r *rig) { r.FailService(serviceName("a"), errFault) }, 30},
		{"dataplane down", func(r *rig) { r.SetDown(errFault) }, 30},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				r.source.set("a", slow(time.Hour, "a", one, two))
				r.pass(time.Second)
				tc.hold(r)
				before := r.source.wakeups()
				r.pass(10 * time.Minute)
				if got := r.source.wakeups() - before; got > tc.most {
					t.Errorf("%d wake-ups in 10 min, want at most %d", got, tc.most)
				}
			}, slow(time.Hour, "a", one))
		})
	}
}
