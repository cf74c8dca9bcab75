// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/lb"
)

var errFault = errors.New("broken")

// steps fails unless the calls after the first n are what want says.
func (r *rig) steps(n int, want ...string) {
	r.t.Helper()
	var got []string
	for _, c := range r.since(n) {
		got = append(got, c.puts())
	}
	if !slices.Equal(got, want) {
		r.t.Errorf("syncs %q, want %q", got, want)
	}
}

func TestNewChecksTheAlgorithm(t *testing.T) {
	if _, err := New(Options{Algorithm: "no-such"}); !errors.Is(err, algo.ErrUnknown) {
		t.Errorf("error %v, want ErrUnknown", err)
	}
}

func TestFirstSyncIsFullAndOnlyThat(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.source.set("c", service("c", "10.244.0.3:80"))
		synctest.Wait()
		r.steps(0, "+a +b full", "+c")
		r.converged("random")
		if s := r.agent.Status(); !s.Synced || s.Services != 3 || s.Backends != 3 || s.Syncs != 2 || s.Errors != 0 {
			t.Errorf("status %+v", s)
		}
	}, service("a", "10.244.0.1:80"), service("b", "10.244.0.2:80"))
}

func TestEmptyClusterIsSyncedToo(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.steps(0, "full")
		if !r.agent.Status().Synced {
			t.Error("not synced")
		}
	})
}

func TestLoneEventIsAppliedAtOnce(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.pass(time.Hour)
		r.source.set("a", service("a", "10.244.0.2:80"))
		synctest.Wait()
		r.steps(1, "+a")
		if at := r.since(1)[0].at; at != time.Hour {
			t.Errorf("the sync began after %v, want %v", at, time.Hour)
		}
		if len(r.latency) != 1 || r.latency[0] != 0 {
			t.Errorf("observed %v, want one of 0 s", r.latency)
		}
	}, service("a", "10.244.0.1:80"))
}

func TestEventsDuringASyncShareTheNext(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.setDuration(50 * time.Millisecond)
		r.source.set("a", service("a", "10.244.0.1:80"))
		r.pass(time.Millisecond)
		for i := range 500 {
			r.source.set(fmt.Sprint("s", i%20), service(fmt.Sprint("s", i%20), "10.244.0.2:80"))
			synctest.Wait()
		}
		r.pass(time.Second)
		if n := len(r.since(1)); n != 2 {
			t.Errorf("%d syncs for a burst, want 2", n)
		}
		if got := r.latency[len(r.latency)-1]; got != 0.099 { // 49 ms waiting, 50 ms syncing
			t.Errorf("observed a latency of %v s, want 0.099", got)
		}
		r.converged("random")
	})
}

func TestStormIsPaced(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.pass(time.Second)
		for i := range 2000 { // 2 s of an event each millisecond
			name := fmt.Sprint("s", i%7)
			r.source.set(name, service(name, fmt.Sprintf("10.244.%d.%d:80", i/250, i%250)))
			r.pass(time.Millisecond)
		}
		r.pass(time.Second)
		calls := r.since(1)
		if n := len(calls); n < 190 || n > 230 {
			t.Errorf("%d syncs in a storm of 2 s, want about 200", n)
		}
		if slowest := slices.Max(r.latency); slowest > paceWait.Seconds() {
			t.Errorf("a change waited for %v s, want at most %v", slowest, paceWait)
		}
		r.converged("random")
	})
}

func TestFewEventsAreNotPaced(t *testing.T) {
	inBubble(t, func(r *rig) {
		for i := range paceCount - 1 {
			r.source.set("a", service("a", fmt.Sprintf("10.244.0.%d:80", i+1)))
			synctest.Wait()
		}
		if n := len(r.since(0)); n != paceCount {
			t.Errorf("%d syncs, want %d", n, paceCount)
		}
	})
}

func TestDeleteAndCreateAgain(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.source.set("a")
		synctest.Wait()
		r.converged("random")
		if s := r.agent.Status(); s.Services != 1 || s.Backends != 1 {
			t.Errorf("status after a delete: %+v", s)
		}
		r.source.set("a", service("a", "10.244.0.3:80", "10.244.0.4:80"))
		synctest.Wait()
		r.steps(1, "-a", "+a")
		r.converged("random")
		if s := r.agent.Status(); s.Services != 2 || s.Backends != 3 || len(r.agent.Services()) != 2 {
			t.Errorf("status after a re-creation: %+v", s)
		}
	}, service("a", "10.244.0.1:80"), service("b", "10.244.0.2:80"))
}

func TestAPortOfAServiceGoes(t *testing.T) {
	inBubble(t, func(r *rig) {
		one, two := service("a", "10.244.0.1:80"), service("a", "10.244.0.1:81")
		two.Name.Port, two.Frontends[0].Addr = "q", service("other").Frontends[0].Addr
		r.source.set("a", one, two)
		synctest.Wait()
		r.source.set("a", one)
		synctest.Wait()
		calls := r.since(2)
		if len(calls) != 1 || len(calls[0].delta.Put) != 0 || !slices.Equal(calls[0].delta.Delete, []lb.ServiceName{two.Name}) {
			t.Errorf("syncs %+v, want one that deletes %s and leaves the rest alone", calls, two.Name)
		}
		r.converged("random")
	})
}

func TestSecondFullTakePrunes(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.source.mu.Lock()
		r.source.taken = false
		delete(r.source.state, lb.Object{Namespace: "ns", Name: "a"})
		r.source.mu.Unlock()
		r.source.set("b", service("b", "10.244.0.3:80"))
		synctest.Wait()
		r.steps(1, "+b full")
		r.converged("random")
		if s := r.agent.Status(); s.Services != 1 || !s.QueuedSince.IsZero() {
			t.Errorf("status %+v", s)
		}
	}, service("a", "10.244.0.1:80"), service("b", "10.244.0.2:80"))
}

func TestDefaultAlgorithmChanges(t *testing.T) {
	own := service("b", "10.244.0.2:80")
	own.Balance.Algorithm = "random"
	inBubble(t, func(r *rig) {
		if err := r.agent.SetDefaultAlgorithm("no-such"); !errors.Is(err, algo.ErrUnknown) {
			t.Errorf("error %v, want ErrUnknown", err)
		}
		if err := r.agent.SetDefaultAlgorithm("round-robin"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.steps(1, "+a")
		r.converged("round-robin")
		if err := r.agent.SetDefaultAlgorithm("round-robin"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.steps(2)
	}, service("a", "10.244.0.1:80"), own)
}

func TestRunEndsWithItsContext(t *testing.T) {
	for name, busy := range map[string]func(r *rig){
		"idle":         func(*rig) {},
		"in a sync":    func(r *rig) { r.setDuration(time.Hour); r.source.set("a", service("a")); synctest.Wait() },
		"backing off":  func(r *rig) { r.SetDown(errFault); r.source.set("a", service("a")); synctest.Wait() },
		"being paced":  func(r *rig) { r.setDuration(0); storm(r) },
		"source ended": func(r *rig) { close(r.source.wake); synctest.Wait() },
	} {
		t.Run(name, func(t *testing.T) { inBubble(t, func(r *rig) { busy(r) }) })
	}
}

// storm leaves the Agent waiting for its pacer.
func storm(r *rig) {
	for i := range 2 * paceCount {
		r.source.set("a", service("a", fmt.Sprintf("10.244.0.%d:80", i+1)))
		synctest.Wait()
	}
}

func TestPacer(t *testing.T) {
	var p pacer
	start := time.Unix(1000, 0)
	for i := range paceCount {
		if got := p.wait(start); got != 0 {
			t.Errorf("sync %d waits for %v, want 0", i, got)
		}
		p.mark(start)
	}
	for _, tc := range []struct{ after, want time.Duration }{
		{0, paceWait},
		{50 * time.Millisecond, paceWait},
		{paceWindow - 3*time.Millisecond, 3 * time.Millisecond},
		{paceWindow, 0},
		{time.Hour, 0},
	} {
		if got := p.wait(start.Add(tc.after)); got != tc.want {
			t.Errorf("%v after %d syncs: waits for %v, want %v", tc.after, paceCount, got, tc.want)
		}
	}
}
