// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// slow returns a Service with a slow start of d.
func slow(d time.Duration, name string, backends ...string) *lb.Service {
	svc := service(name, backends...)
	svc.Balance.SlowStart = d
	return svc
}

const (
	one, two, three = "10.244.0.1:80", "10.244.0.2:80", "10.244.0.3:80"
	shortly         = 10 * time.Second
)

// ramps tells how far backends are: address, time passed, and the duration.
func rampsOf(d time.Duration, passed map[string]time.Duration) map[netip.AddrPort]uint16 {
	out := map[netip.AddrPort]uint16{}
	for addr, p := range passed {
		out[netip.MustParseAddrPort(addr)] = uint16(6554 + 58982*int64(p)/int64(d))
	}
	return out
}

// compiled fails unless c put exactly svc with the ramps that passed says.
func (r *rig) compiled(c call, svc *lb.Service, passed map[string]time.Duration) {
	r.t.Helper()
	want, err := Compile(svc, Defaults{Algorithm: "random"}, rampsOf(svc.Balance.SlowStart, passed))
	if err != nil {
		r.t.Fatal(err)
	}
	if !reflect.DeepEqual(c.delta, dataplane.Delta{Put: []*dataplane.Service{want}}) {
		r.t.Errorf("at %v:\n got %+v\nwant %+v alone", c.at, c.delta, want.Cluster)
	}
}

// steady fails if there is a Sync within an hour after the first n.
func (r *rig) steady(n int) {
	r.t.Helper()
	r.pass(time.Hour)
	if calls := r.since(n); len(calls) != 0 {
		r.t.Errorf("%d syncs after %d, the first at %v: %+v", len(calls), n, calls[0].at, calls[0].delta.Put)
	}
	if n := len(r.agent.ledger.starting); n != 0 {
		r.t.Errorf("%d Services are starting, want 0", n)
	}
}

func TestRampIsLinear(t *testing.T) {
	const d = time.Hour
	for _, tc := range []struct {
		passed time.Duration
		want   uint16
	}{{0, 6554}, {d / 4, 21299}, {d / 2, 36045}, {d - 1, 65535}} {
		if got := ramp(tc.passed, d); got != tc.want {
			t.Errorf("after %v of %v: ramp %d, want %d", tc.passed, d, got, tc.want)
		}
	}
}

func TestNewBackendGetsItsShareSlowly(t *testing.T) {
	for _, tc := range []struct{ duration, step time.Duration }{
		{shortly, 200 * time.Millisecond},
		{time.Second, rampStep}, // no more than ten times a second
		{250 * time.Millisecond, rampStep},
		{30 * time.Minute, 36 * time.Second},
	} {
		t.Run(tc.duration.String(), func(t *testing.T) {
			now := slow(tc.duration, "a", one, two, three)
			inBubble(t, func(r *rig) {
				r.pass(time.Hour)
				r.source.set("a", now)
				r.pass(tc.duration + time.Second)
				calls := r.since(1)
				steps := int((tc.duration + tc.step - 1) / tc.step)
				if len(calls) != steps+1 {
					t.Fatalf("%d syncs, want %d", len(calls), steps+1)
				}
				for i, c := range calls[:steps] {
					passed := time.Duration(i) * tc.step
					if c.at != time.Hour+passed {
						t.Errorf("step %d at %v, want %v", i, c.at, time.Hour+passed)
					}
					r.compiled(c, now, map[string]time.Duration{three: passed})
				}
				r.compiled(calls[steps], now, nil)
				if len(r.latency) != 1 {
					t.Errorf("%d changes observed, want 1: a step is none", len(r.latency))
				}
				r.steady(1 + len(calls))
			}, slow(tc.duration, "a", one, two), service("b", one))
		})
	}
}

func TestStepsAreAtMultiplesOfAStep(t *testing.T) {
	var before []*lb.Service
	for i := range 30 {
		before = append(before, slow(time.Second, fmt.Sprint("s", i), one))
	}
	inBubble(t, func(r *rig) {
		for i := range before {
			r.source.set(fmt.Sprint("s", i), slow(time.Second, fmt.Sprint("s", i), one, two))
			r.pass(7 * time.Millisecond)
		}
		n := len(r.since(0))
		r.pass(2 * time.Second)
		if got := len(r.since(n)); got < 9 || got > 12 {
			t.Errorf("%d syncs for %d Services in steps of %v over %v, want about 10", got, len(before), rampStep, time.Second)
		}
		r.steady(len(r.since(0)))
	}, before...)
}

func TestNothingStartsWithoutAnEstablishedPeer(t *testing.T) {
	empty := slow(shortly, "a")
	drained := slow(shortly, "a", one)
	drained.Cluster.Backends[0].Weight = 0
	for name, tc := range map[string]struct{ before, after *lb.Service }{
		"a new Service":              {nil, slow(shortly, "a", one, two)},
		"the first backends":         {empty, slow(shortly, "a", one, two)},
		"all are new":                {slow(shortly, "a", one), slow(shortly, "a", two, three)},
		"all others have weight 0":   {drained, slow(shortly, "a", one, two)},
		"a backend goes":             {slow(shortly, "a", one, two), slow(shortly, "a", two)},
		"no slow start is asked for": {service("a", one), service("a", one, two)},
		"it is switched off":         {slow(shortly, "a", one), slow(lb.NoSlowStart, "a", one, two)},
	} {
		t.Run(name, func(t *testing.T) {
			var before []*lb.Service
			if tc.before != nil {
				before = append(before, tc.before)
			}
			inBubble(t, func(r *rig) {
				r.source.set("a", tc.after)
				synctest.Wait()
				calls := r.since(1)
				if len(calls) != 1 {
					t.Fatalf("%d syncs, want 1", len(calls))
				}
				r.compiled(calls[0], tc.after, nil)
				r.steady(2)
			}, before...)
		})
	}
}

func TestRestartOfTheAgentEndsSlowStarts(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.source.set("a", slow(shortly, "a", one, two))
		r.pass(time.Second)
		n := len(r.since(0))
		r.restart()
		calls := r.since(n)
		if len(calls) != 1 || calls[0].puts() != "+a full" {
			t.Fatalf("syncs %+v, want a full one", calls)
		}
		calls[0].delta.Full = false
		r.compiled(calls[0], slow(shortly, "a", one, two), nil)
		r.steady(n + 1)
	}, slow(shortly, "a", one))
}

func TestBackendThatReturnsStartsAgain(t *testing.T) {
	inBubble(t, func(r *rig) {
		both, alone := slow(shortly, "a", one, two, three), slow(shortly, "a", one, three)
		r.source.set("a", both)
		r.pass(4*time.Second + 50*time.Millisecond)
		n := len(r.since(0))
		r.source.set("a", alone) // mid-way
		r.pass(time.Minute)
		calls := r.since(n)
		if len(calls) != 1 {
			t.Fatalf("%d syncs for a backend that went, want 1", len(calls))
		}
		r.compiled(calls[0], alone, nil)
		r.source.set("a", both)
		synctest.Wait()
		r.compiled(r.since(n + 1)[0], both, map[string]time.Duration{two: 0})
		r.pass(time.Minute)
		r.steady(len(r.since(0)))
	}, slow(shortly, "a", one, three))
}

func TestStartsOfSeveralBackends(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.source.set("a", slow(shortly, "a", one, two))
		r.pass(5 * time.Second)
		all := slow(shortly, "a", one, two, three)
		r.source.set("a", all)
		synctest.Wait()
		n := len(r.since(0))
		r.compiled(r.since(n - 1)[0], all, map[string]time.Duration{two: 5 * time.Second, three: 0})
		r.pass(5 * time.Second)
		n = len(r.since(0))
		r.compiled(r.since(n - 1)[0], all, map[string]time.Duration{three: 5 * time.Second})
		rest := slow(shortly, "a", three) // of those that are left, none has arrived
		r.source.set("a", rest)
		synctest.Wait()
		r.compiled(r.since(n)[0], rest, nil)
		r.steady(n + 1)
	}, slow(shortly, "a", one))
}

func TestWeightsAndSlowStart(t *testing.T) {
	weights := func(w1, w2 uint16) *lb.Service {
		svc := slow(shortly, "a", one, two)
		svc.Cluster.Backends[0].Weight, svc.Cluster.Backends[1].Weight = w1, w2
		return svc
	}
	inBubble(t, func(r *rig) {
		for _, step := range []struct {
			svc    *lb.Service
			starts map[string]time.Duration
		}{
			{weights(100, 1), nil},
			{weights(1, 100), nil},
			{weights(100, 0), nil},
			{weights(100, 5), map[string]time.Duration{two: 0}},
			{weights(100, 500), map[string]time.Duration{two: 0}}, // goes on
			{weights(0, 500), nil},                                // the only one left
			{weights(7, 500), map[string]time.Duration{one: 0}},
		} {
			n := len(r.since(0))
			r.source.set("a", step.svc)
			synctest.Wait()
			r.compiled(r.since(n)[0], step.svc, step.starts)
		}
	}, weights(100, 100))
}

func TestOtherChangesDoNotStartAgain(t *testing.T) {
	switched := func(algorithm string) *lb.Service {
		svc := slow(shortly, "a", one, two)
		svc.Balance.Algorithm = algorithm
		return svc
	}
	inBubble(t, func(r *rig) {
		passed := time.Duration(0)
		for _, algorithm := range []string{"", "round-robin", "random", "round-robin"} {
			svc := switched(algorithm)
			r.source.set("a", svc)
			synctest.Wait()
			n := len(r.since(0))
			r.compiled(r.since(n - 1)[0], svc, map[string]time.Duration{two: passed})
			r.pass(2*time.Second + 30*time.Millisecond)
			passed += 2*time.Second + 30*time.Millisecond
		}
		r.pass(shortly - passed)
		calls := r.since(0)
		last := calls[len(calls)-1]
		if last.at != shortly {
			t.Errorf("the last step at %v, want %v", last.at, shortly)
		}
		r.compiled(last, switched("round-robin"), nil)
		r.steady(len(calls))
	}, slow(shortly, "a", one))
}

func TestDurationChangesMidWay(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.source.set("a", slow(shortly, "a", one, two))
		r.pass(5 * time.Second)
		longer := slow(time.Minute, "a", one, two)
		r.source.set("a", longer)
		synctest.Wait()
		n := len(r.since(0))
		r.compiled(r.since(n - 1)[0], longer, map[string]time.Duration{two: 5 * time.Second})
		off := slow(lb.NoSlowStart, "a", one, two)
		r.source.set("a", off)
		synctest.Wait()
		r.compiled(r.since(n)[0], off, nil)
		r.steady(n + 1)
	}, slow(shortly, "a", one))
}

func TestDefaultSlowStart(t *testing.T) {
	own, off := slow(time.Minute, "b", one), slow(lb.NoSlowStart, "c", one)
	inBubble(t, func(r *rig) {
		r.agent.SetDefaultSlowStart(shortly)
		synctest.Wait()
		r.steps(1, "+a")
		if got := r.since(1)[0].delta.Put[0].Balance.SlowStart; got != shortly {
			t.Errorf("slow start %v, want the default %v", got, shortly)
		}
		for _, name := range []string{"a", "b", "c"} {
			svc := service(name, one, two)
			svc.Balance.SlowStart = map[string]time.Duration{"a": 0, "b": time.Minute, "c": lb.NoSlowStart}[name]
			r.source.set(name, svc)
			synctest.Wait()
		}
		if got, want := r.stepping(), []string{"a", "b"}; !slices.Equal(got, want) {
			t.Errorf("starting %q, want %q", got, want)
		}
		r.pass(20 * time.Second)
		if got, want := r.stepping(), []string{"b"}; !slices.Equal(got, want) {
			t.Errorf("after 20 s: starting %q, want %q", got, want)
		}
		r.source.set("a", service("a", one, two, three))
		synctest.Wait()
		r.agent.SetDefaultSlowStart(0)
		r.pass(time.Minute)
		r.steady(len(r.since(0)))
		want, err := Compile(service("a", one, two, three), Defaults{Algorithm: "random"}, nil)
		if got := r.Dataplane.Services()[serviceName("a")]; err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("switched off:\n got %+v\nwant %+v, %v", got, want, err)
		}
	}, service("a", one), own, off)
}

// stepping returns the Services that are put in the next two seconds, sorted.
func (r *rig) stepping() (names []string) {
	n := len(r.since(0))
	r.pass(2 * time.Second)
	for _, c := range r.since(n) {
		for _, svc := range c.delta.Put {
			names = append(names, svc.Name.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func TestServiceThatGoesStopsStarting(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.source.set("a", slow(shortly, "a", one, two))
		r.pass(time.Second)
		n := len(r.since(0))
		r.source.set("a")
		synctest.Wait()
		r.steps(n, "-a")
		r.steady(n + 1)
	}, slow(shortly, "a", one))
}

// TestFailuresDuringSlowStart has a dataplane that fails mid-way: attempts are as far
// apart as always, and what comes through in the end is right.
func TestFailuresDuringSlowStart(t *testing.T) {
	for name, fail := range map[string]func(r *rig, err error){
		"one service": func(r *rig, err error) { r.FailService(serviceName("a"), err) },
		"everything":  func(r *rig, err error) { r.SetDown(err) },
		"a full sync": func(r *rig, err error) {
			r.SetDown(err)
			if err != nil {
				r.source.relist()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				now := slow(shortly, "a", one, two)
				r.source.set("a", now)
				r.pass(time.Second)
				n := len(r.since(0))
				fail(r, errFault)
				r.pass(4 * time.Second)
				if got := len(r.since(n)); got > 7 { // after 0.1, 0.2, 0.4 ... s
					t.Errorf("%d attempts in 4 s", got)
				}
				fail(r, nil)
				r.pass(4 * time.Second)
				calls := r.since(0)
				last := calls[len(calls)-1]
				last.delta.Full = false
				r.compiled(last, now, map[string]time.Duration{two: last.at})
				if last.at < 8500*time.Millisecond {
					t.Errorf("the last step was at %v", last.at)
				}
				r.pass(2 * time.Second)
				r.converged("random")
				r.steady(len(r.since(0)))
			}, slow(shortly, "a", one))
		})
	}
}

func TestStepsGoOnWhileAnotherServiceFails(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.FailService(serviceName("b"), errFault)
		r.source.set("b", service("b", two))
		r.pass(time.Minute) // its attempts are 30 s apart now
		n := len(r.since(0))
		now := slow(time.Second, "a", one, two)
		r.source.set("a", now)
		r.pass(2 * time.Second)
		if calls := r.since(n); len(calls) != 11 {
			t.Errorf("%d syncs, want 11", len(calls))
		} else {
			r.compiled(calls[10], now, nil)
		}
	}, slow(time.Second, "a", one), service("b", one))
}

// TestInvalidServiceDoesNotSpin has a Service that cannot be compiled mid-way.
func TestInvalidServiceDoesNotSpin(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.source.set("a", slow(shortly, "a", one, two))
		r.pass(time.Second)
		n := len(r.since(0))
		bad := slow(shortly, "a", one, two)
		bad.Balance.Algorithm = "no-such"
		r.source.set("a", bad)
		r.pass(2 * time.Second)
		r.steps(n)
		good := slow(shortly, "a", one, two)
		r.source.set("a", good)
		synctest.Wait()
		r.compiled(r.since(n)[0], good, map[string]time.Duration{two: 3 * time.Second})
	}, slow(shortly, "a", one))
}

// TestHashingAlgorithmsHaveNoSteps looks at what the loop does with a table that no
// ramp changes: nothing, until the last backend has arrived.
func TestHashingAlgorithmsHaveNoSteps(t *testing.T) {
	for kind, want := range map[algo.Kind]time.Duration{
		algo.Rand: 200 * time.Millisecond, algo.Seq: 200 * time.Millisecond, algo.Least: 200 * time.Millisecond,
		algo.Hash: 12 * time.Second, algo.None: 12 * time.Second,
	} {
		l := newLedger(Defaults{Algorithm: "random", SlowStart: shortly})
		at := time.Unix(1000, 0)
		l.noteStarts(service("a", one), service("a", one, two), at)
		l.noteStarts(service("a", one, two), service("a", one, two, three), at.Add(2*time.Second))
		svc := &dataplane.Service{Name: serviceName("a"), Balance: lb.Balance{SlowStart: shortly}}
		svc.Cluster.Table.Kind = kind
		l.scheduleStep(svc, at)
		if got, ok := l.stepTime(); !ok || got.Sub(at) != want {
			t.Errorf("kind %d: next step after %v, %t, want %v", kind, got.Sub(at), ok, want)
		}
	}
}

// TestRollingUpdateShorterThanSlowStart: when the last of the old backends leaves, all
// are starting. The first of the new ones takes over and shelters the others.
func TestRollingUpdateShorterThanSlowStart(t *testing.T) {
	const d, every = time.Minute, 10 * time.Second
	olds := []string{"10.244.0.1:80", "10.244.0.2:80", "10.244.0.3:80"}
	news := []string{"10.244.1.1:80", "10.244.1.2:80", "10.244.1.3:80"}
	inBubble(t, func(r *rig) {
		var last *lb.Service
		for i := range olds { // one more, then one less
			r.pass(every)
			r.source.set("a", slow(d, "a", slices.Concat(news[:i+1], olds[i:])...))
			synctest.Wait()
			last = slow(d, "a", slices.Concat(news[:i+1], olds[i+1:])...)
			r.source.set("a", last)
			synctest.Wait()
		}
		calls := r.since(0)
		r.compiled(calls[len(calls)-1], last, map[string]time.Duration{news[1]: every, news[2]: 0})
		r.pass(d + time.Second)
		r.steady(len(r.since(0)))
	}, slow(d, "a", olds...))
}
