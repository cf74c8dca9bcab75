// SPDX-License-Identifier: Apache-2.0

package health

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// testHealth is how the tests' Services are watched.
func testHealth(kind lb.ProbeKind, edit func(*lb.Health)) lb.Health {
	h := lb.Health{
		Probe:    lb.Probe{Kind: kind, Timeout: time.Second},
		Interval: 5 * time.Second, FastInterval: time.Second, Rise: 2, Fall: 3, Grace: -1,
		Passive: lb.SwitchOn, MaxEjected: 30, Panic: 25, Drain: lb.SwitchOff,
	}
	if edit != nil {
		edit(&h)
	}
	return h
}

// epoch is when the machine's tests begin.
var epoch = time.Unix(1_000_000, 0)

// parseEvent reads an event: pass, fail, unreached, unknown, open, fails, answered, cannot, tick, or
// the name of a symptom.
func parseEvent(t *testing.T, word string) event {
	t.Helper()
	switch word {
	case "pass":
		return event{kind: passed}
	case "fail":
		return event{kind: failed, reason: "status 503"}
	case "unreached":
		return event{kind: failed, reason: "refused", unreached: true, traffic: trafficNone}
	case "unknown":
		return event{kind: failed, reason: "refused", unreached: true, traffic: trafficUnknown}
	case "open":
		return event{kind: failed, reason: "refused", unreached: true, traffic: trafficOpen}
	case "fails":
		return event{kind: failed, reason: "refused", unreached: true, traffic: trafficFails}
	case "answered":
		return event{kind: failed, reason: "refused", unreached: true, traffic: trafficAnswered}
	case "cannot":
		return event{kind: mute, reason: "no descriptors"}
	case "tick":
		return event{kind: ticked}
	}
	for _, k := range []lb.SymptomKind{lb.Refused, lb.Unanswered, lb.Reset} {
		if k.String() == word {
			return event{kind: symptom, symptom: k}
		}
	}
	t.Fatalf("no event %q", word)
	return event{}
}

// TestStep: each row is a story. A line is when an event comes, in seconds, the event, the
// state after it, and what is waited for: seconds from then until a probe, with a t until
// a tick, - for nothing.
func TestStep(t *testing.T) {
	grace := func(h *lb.Health) { h.Grace = 10 * time.Second }
	blind := func(h *lb.Health) { h.Passive = lb.SwitchOff }
	for _, tc := range []struct {
		name  string
		kind  lb.ProbeKind
		edit  func(*lb.Health)
		story string
	}{
		{"healthy", lb.ProbeTCP, nil, `
			0 pass healthy 5
			5 pass healthy 5
			10 tick healthy 5`},
		{"fall", lb.ProbeTCP, nil, `
			0 pass healthy 5
			5 fail suspect 1
			6 fail suspect 1
			7 fail ejected 5
			12 fail ejected 5`},
		{"fall from unknown", lb.ProbeTCP, nil, `
			0 fail suspect 1
			1 fail suspect 1
			2 fail ejected 5`},
		{"failures are in a row", lb.ProbeTCP, nil, `
			0 pass healthy 5
			5 fail suspect 1
			6 fail suspect 1
			7 pass healthy 5
			12 fail suspect 1
			13 fail suspect 1
			14 pass healthy 5`},
		{"fall of 1", lb.ProbeTCP, func(h *lb.Health) { h.Fall = 1 }, `
			0 pass healthy 5
			5 fail ejected 5`},
		{"rise", lb.ProbeTCP, nil, `
			0 fail suspect 1
			1 fail suspect 1
			2 fail ejected 5
			7 pass ejected 1
			8 fail ejected 5
			13 pass ejected 1
			14 pass healthy 5`},
		{"rise of 1", lb.ProbeTCP, func(h *lb.Health) { h.Rise, h.Fall = 1, 1 }, `
			0 fail ejected 5
			5 pass healthy 5`},
		{"grace", lb.ProbeHTTP, grace, `
			0 fail unknown 5
			5 fail unknown 5
			9.9 fail unknown 5
			10 fail suspect 1
			11 fail suspect 1
			12 fail ejected 5`},
		{"grace ends with the first success", lb.ProbeHTTP, grace, `
			0 fail unknown 5
			1 pass healthy 5
			2 fail suspect 1
			3 fail suspect 1
			4 fail ejected 5`},
		{"symptoms in the grace only make it probed", lb.ProbeHTTP, grace, `
			0 refused unknown 0
			1 fail unknown 5
			2 refused unknown 0
			3 pass healthy 5
			4 refused suspect 0
			5 fail ejected 2`},
		{"a symptom, confirmed", lb.ProbeHTTP, nil, `
			0 pass healthy 5
			1 refused suspect 0
			1 unreached ejected 2
			3 unreached ejected 5
			8 pass ejected 1
			9 pass healthy 5`},
		{"successes before its time is over count, and are not enough", lb.ProbeHTTP, func(h *lb.Health) { h.FastInterval = 100 * time.Millisecond }, `
			0 pass healthy 5
			1 refused suspect 0
			1 unreached ejected 2
			1.1 pass ejected 0.1
			1.2 pass ejected 0.1
			2.95 pass ejected 0.05
			3 pass healthy 5`},
		{"a symptom, contradicted", lb.ProbeHTTP, nil, `
			0 pass healthy 5
			1 unanswered suspect 0
			1 pass healthy 5`},
		{"a symptom, and one failure before it", lb.ProbeHTTP, nil, `
			0 pass healthy 5
			5 fail suspect 1
			5 reset suspect 0
			5 fail ejected 2`},
		{"a symptom that cannot be confirmed", lb.ProbeHTTP, nil, `
			0 pass healthy 5
			1 refused suspect 0
			1 cannot healthy 5`},
		{"a symptom of an unknown that cannot be confirmed", lb.ProbeHTTP, nil, `
			1 refused suspect 0
			1 cannot unknown 5`},
		{"a symptom where they do not count", lb.ProbeTCP, blind, `
			0 pass healthy 5
			1 refused healthy 5
			2 unanswered healthy 5`},
		{"without probes, confirmed", lb.ProbeNone, nil, `
			0 refused suspect 0
			0 unreached ejected 2
			2 unreached ejected 5
			7 pass ejected 1
			8 pass healthy 20t
			28 tick healthy -`},
		{"without probes, contradicted", lb.ProbeNone, nil, `
			0 refused suspect 0
			0 pass healthy 20t
			1 refused healthy 19t
			2 refused suspect 0
			2 pass healthy 40t
			5.9 refused healthy 36.1t
			6 refused suspect 0
			6 cannot healthy 36t
			42 tick healthy 20t
			62 tick healthy -`},
		{"without probes, where symptoms do not count", lb.ProbeNone, blind, `
			0 refused unknown -`},
		{"without probes, a stray result", lb.ProbeNone, nil, `
			0 fail unknown -`},
		{"symptoms of what is ejected are old", lb.ProbeTCP, nil, `
			0 refused suspect 0
			0 unreached ejected 2
			1 refused ejected 1
			1.5 reset ejected 0.5`},
		{"nothing can be told of what is healthy", lb.ProbeExec, nil, `
			0 pass healthy 5
			5 cannot healthy 5
			500 cannot healthy 5`},
		{"nothing can be told of what is ejected, for long", lb.ProbeExec, nil, `
			0 fail suspect 1
			1 fail suspect 1
			2 fail ejected 5
			7 cannot ejected 5
			51.9 cannot ejected 5
			52 cannot unknown 5
			57 fail suspect 1`},
		{"blocked", lb.ProbeTCP, nil, `
			0 pass healthy 5
			5 unreached suspect 1
			6 open suspect 1
			7 open suspect 1
			8 answered suspect 5
			13 answered suspect 5
			18 unreached suspect 5
			23 pass healthy 5`},
		{"blocked, and then a symptom", lb.ProbeTCP, nil, `
			0 unreached suspect 1
			1 unreached suspect 1
			2 answered suspect 5
			3 refused suspect 0
			3 unreached ejected 2
			5 unreached suspect 5
			10 answered suspect 5`},
		{"blocked, and then nobody sees its connections", lb.ProbeTCP, nil, `
			0 unreached suspect 1
			1 unreached suspect 1
			2 answered suspect 5
			7 unreached suspect 5
			12 unknown ejected 5`},
		{"blocked, and then it answers that it is ill", lb.ProbeHTTP, nil, `
			0 unreached suspect 1
			1 unreached suspect 1
			2 answered suspect 5
			7 fail ejected 5`},
		{"connections do not tell of what a probe reached", lb.ProbeHTTP, nil, `
			0 unreached suspect 1
			1 open suspect 1
			2 fail ejected 5`},
		{"a trial for what no probe ever reached, where connections do not count", lb.ProbeTCP, blind, `
			0 unreached suspect 1
			1 unreached suspect 1
			2 unreached ejected 5
			301.9 unreached ejected 5
			302 unreached unknown 5
			307 unreached suspect 1
			308 unreached suspect 1
			309 unreached ejected 5`},
		{"a trial for what no probe ever reached, and it fails", lb.ProbeTCP, nil, `
			0 unreached suspect 1
			1 unreached suspect 1
			2 unreached ejected 5
			301.9 unreached ejected 5
			302 unreached unknown 5
			307 open suspect 5
			600 open suspect 5
			600 refused suspect 0
			600 open suspect 5
			605 open suspect 5
			606 refused suspect 0
			606 fails ejected 2
			725.9 unreached ejected 5
			726 unreached unknown 5
			727 refused suspect 0
			727 unreached ejected 4
			966.9 unreached ejected 5
			967 unreached unknown 5`},
		{"a trial that nobody sees", lb.ProbeTCP, nil, `
			0 unreached suspect 1
			1 unreached suspect 1
			2 unreached ejected 5
			302 unreached unknown 5
			307 unreached suspect 1
			308 unreached suspect 1
			309 unreached ejected 5`},
		{"a trial, and connections are answered", lb.ProbeTCP, nil, `
			0 refused suspect 0
			0 unreached ejected 2
			59.9 unreached ejected 5
			60 unreached unknown 5
			67 answered suspect 5
			68 refused suspect 0
			68 answered suspect 5
			69.9 refused suspect 5
			70 refused suspect 0
			70 answered suspect 5
			74 refused suspect 0
			74 unreached ejected 4
			75 unreached ejected 3
			78 unreached suspect 5
			79 pass healthy 5
			300 refused suspect 0
			300 unreached ejected 2`},
		{"a trial without probes", lb.ProbeNone, nil, `
			0 refused suspect 0
			0 unreached ejected 2
			2 unreached ejected 5
			59.9 unreached ejected 5
			60 unreached unknown 5
			65 open suspect 5
			70 answered suspect 5
			75 unreached suspect 5
			80 pass healthy -`},
		{"none for what answered once", lb.ProbeTCP, nil, `
			0 pass healthy 5
			1 unreached suspect 1
			2 unreached suspect 1
			3 unreached ejected 5
			999 unreached ejected 5`},
		{"none for what says that it is ill", lb.ProbeHTTP, nil, `
			0 fail suspect 1
			1 fail suspect 1
			2 fail ejected 5
			999 fail ejected 5`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := testHealth(tc.kind, tc.edit)
			m := mark{Came: epoch}
			for line := range strings.Lines(strings.TrimSpace(tc.story)) {
				f := strings.Fields(line)
				at, err := time.ParseDuration(f[0] + "s")
				if err != nil {
					t.Fatal(err)
				}
				now := epoch.Add(at)
				old := m
				var w wish
				m, w = step(m, parseEvent(t, f[1]), now, &h)
				got := m.State.String() + " " + showWish(w, now)
				if want := strings.Join(f[2:], " "); got != want {
					t.Fatalf("%s: got %s, want %s\nfrom %+v", strings.TrimSpace(line), got, want, old)
				}
				if m.State != old.State && !m.Since.Equal(now) {
					t.Errorf("%s: since %v", strings.TrimSpace(line), m.Since)
				}
				if (m.State == Suspect || m.State == Ejected) && m.Reason == "" {
					t.Errorf("%s: no reason", strings.TrimSpace(line))
				}
			}
		})
	}
}

func showWish(w wish, now time.Time) string {
	if w == (wish{}) {
		return "-"
	}
	text := fmt.Sprint(w.at.Sub(now).Seconds())
	if !w.probe {
		text += "t"
	}
	return text
}

// TestPauseFromBeginning: a probe that takes long does not make the time between two longer.
func TestPauseFromBeginning(t *testing.T) {
	h := testHealth(lb.ProbeTCP, nil)
	for _, tc := range []struct {
		took, want time.Duration
	}{{0, 5 * time.Second}, {2 * time.Second, 3 * time.Second}, {9 * time.Second, 0}} {
		_, w := step(mark{}, event{kind: passed, began: epoch.Add(-tc.took)}, epoch, &h)
		if got := w.at.Sub(epoch); got != tc.want {
			t.Errorf("after %v: %v, want %v", tc.took, got, tc.want)
		}
	}
}

// TestPenalties: the time of ejection doubles, has an end, and is forgotten step by step.
func TestPenalties(t *testing.T) {
	h := testHealth(lb.ProbeNone, func(h *lb.Health) { h.Rise = 1 })
	m, now := mark{}, epoch
	for i, want := range []int{2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300} {
		m, _ = step(m, event{kind: symptom, symptom: lb.Refused}, now, &h)
		var w wish
		m, w = step(m, event{kind: failed, unreached: true, reason: "refused"}, now, &h)
		if got := w.at.Sub(now); got != time.Duration(want)*time.Second || m.Until != w.at || !m.passive() {
			t.Fatalf("ejection %d: for %v, want %d s; %+v", i+1, got, want, m)
		}
		now = w.at
		m, w = step(m, event{kind: passed}, now, &h)
		if m.State != Healthy || w.probe {
			t.Fatalf("after ejection %d: %+v, %+v", i+1, m, w)
		}
	}
	var waits []string
	for m.Ejections > 0 {
		_, w := step(m, event{kind: ticked}, now, &h)
		waits = append(waits, w.at.Sub(now).String())
		now = w.at
		m, _ = step(m, event{kind: ticked}, now, &h)
	}
	if got, want := strings.Join(waits, " "), "50m0s 42m40s 21m20s 10m40s 5m20s 2m40s 1m20s 40s 20s"; got != want {
		t.Errorf("forgotten after %s, want %s", got, want)
	}
}

// TestStepNeverStuck: whatever happens, an ejected backend and an active one wait for a
// probe, none in the past; and what can go on succeeding is healthy in the end.
func TestStepNeverStuck(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	words := []string{"pass", "fail", "unreached", "open", "fails", "answered", "cannot", "tick", "refused", "unanswered", "reset"}
	for range 2000 {
		kind := []lb.ProbeKind{lb.ProbeNone, lb.ProbeTCP}[rnd.IntN(2)]
		h := testHealth(kind, func(h *lb.Health) {
			h.Rise, h.Fall, h.Grace = uint8(1+rnd.IntN(3)), uint8(1+rnd.IntN(3)), time.Duration(rnd.IntN(9))*time.Second
		})
		m, now := mark{Came: epoch}, epoch
		var story []string
		for range 60 {
			now = now.Add(time.Duration(rnd.Int64N(int64(20 * time.Second))))
			word := words[rnd.IntN(len(words))]
			story = append(story, word)
			var w wish
			m, w = step(m, parseEvent(t, word), now, &h)
			if (m.State == Ejected || active(&h) || m.Symptom != 0) && !w.probe || w != (wish{}) && w.at.Before(now) || m.Good > 0 && m.Bad > 0 {
				t.Fatalf("%v: %+v waits for %+v", story, m, w)
			}
		}
		for i := 0; m.State != Healthy; i++ {
			if i > 10 {
				t.Fatalf("%v: %+v is not restored", story, m)
			}
			now = later(now.Add(time.Second), m.Until)
			if m, _ = step(m, event{kind: passed}, now, &h); m.State == Unknown {
				break // nobody asks
			}
		}
	}
}
