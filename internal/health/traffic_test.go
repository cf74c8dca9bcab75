// SPDX-License-Identifier: Apache-2.0

package health

import (
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestWindow: what connections tell while probes cannot connect, and when. The first look is
// when the first probe has failed.
func TestWindow(t *testing.T) {
	const second = time.Second
	type look struct {
		at, age          time.Duration // of the look; how old what is read is
		answered, failed uint64
		want             traffic
	}
	for name, tc := range map[string]struct {
		proven bool
		looks  []look
	}{
		"new ones are answered":    {true, []look{{0, 0, 5, 1, trafficNone}, {second, 0, 6, 1, trafficAnswered}}},
		"they fail":                {true, []look{{0, 0, 5, 1, trafficNone}, {second, 0, 5, 2, trafficNone}, {3 * second, 0, 5, 9, trafficNone}}},
		"none":                     {true, []look{{0, 0, 5, 0, trafficNone}, {9 * second, 0, 5, 0, trafficNone}}},
		"counted anew":             {true, []look{{0, 0, 5, 0, trafficNone}, {second, 0, 0, 0, trafficNone}, {2 * second, 0, 1, 0, trafficAnswered}}},
		"few are answered":         {true, []look{{0, 0, 5, 0, trafficNone}, {second, 0, 6, 9, trafficAnswered}}},
		"too few are answered":     {true, []look{{0, 0, 5, 0, trafficNone}, {second, 0, 6, 10, trafficNone}}},
		"read before it failed":    {true, []look{{0, second / 2, 5, 0, trafficNone}, {second, second / 2, 7, 0, trafficNone}, {2 * second, 0, 7, 0, trafficNone}}},
		"read just before, and on": {true, []look{{0, second / 2, 5, 0, trafficNone}, {second, 0, 7, 0, trafficNone}, {2 * second, 0, 8, 0, trafficAnswered}}},

		"never reached, old ones do not count": {false, []look{{0, 0, 5, 0, trafficOpen}, {2 * second, 0, 5, 0, trafficOpen}, {firstLook, 0, 5, 0, trafficNone}}},
		"never reached, but by clients":        {false, []look{{0, 0, 5, 0, trafficOpen}, {2 * second, 0, 6, 0, trafficAnswered}}},
		"never reached, they fail":             {false, []look{{0, 0, 5, 1, trafficOpen}, {2 * second, 0, 5, 2, trafficOpen}, {firstLook, 0, 5, 3, trafficNone}}},
		"never reached, read each second": {false, []look{{0, 9 * second / 10, 3, 0, trafficOpen}, {second, 9 * second / 10, 4, 0, trafficOpen},
			{2 * second, 9 * second / 10, 4, 0, trafficOpen}, {3 * second, 9 * second / 10, 4, 0, trafficOpen}, {4 * second, 9 * second / 10, 4, 0, trafficNone}}},
		"never reached, read each second, answered": {false, []look{{0, 9 * second / 10, 3, 0, trafficOpen}, {second, 9 * second / 10, 4, 0, trafficOpen},
			{2 * second, 9 * second / 10, 4, 0, trafficOpen}, {3 * second, 9 * second / 10, 5, 0, trafficAnswered}}},
		"never reached, never read": {false, []look{{0, second, 0, 0, trafficOpen}, {lastLook - 1, time.Hour, 0, 0, trafficOpen}, {lastLook, time.Hour, 0, 0, trafficNone}}},
	} {
		var w window
		for _, l := range tc.looks {
			now := epoch.Add(l.at)
			if got := w.look(lb.Outcomes{Answered: l.answered, Failed: l.failed, At: now.Add(-l.age)}, tc.proven, now); got != l.want {
				t.Errorf("%s: after %v %d, want %d", name, l.at, got, l.want)
			}
		}
	}
}

// TestTrialWindow: what connections tell of a backend on trial. Each row is its looks: what
// was read, how many symptoms came before it, and what it tells.
func TestTrialWindow(t *testing.T) {
	type look struct {
		answered, failed, symptoms uint64
		want                       traffic
	}
	for name, tc := range map[string]struct {
		enough uint64
		looks  []look
	}{
		"none":                     {fewFailed, []look{{5, 9, 0, trafficOpen}, {5, 9, 0, trafficOpen}}},
		"they fail":                {fewFailed, []look{{5, 9, 0, trafficOpen}, {5, 11, 0, trafficOpen}, {5, 12, 0, trafficFails}}},
		"they wait":                {fewFailed, []look{{5, 9, 2, trafficOpen}, {5, 9, 1, trafficFails}}},
		"more have to":             {manyFailed, []look{{5, 9, 0, trafficOpen}, {5, 18, 1, trafficOpen}, {5, 19, 1, trafficFails}}},
		"some are answered":        {fewFailed, []look{{5, 9, 0, trafficOpen}, {6, 18, 2, trafficAnswered}, {6, 20, 1, trafficOpen}, {6, 21, 1, trafficFails}}},
		"hardly any are answered":  {fewFailed, []look{{5, 9, 0, trafficOpen}, {6, 19, 0, trafficFails}}},
		"counted anew, since when": {fewFailed, []look{{5, 9, 0, trafficOpen}, {1, 1, 0, trafficOpen}, {1, 3, 0, trafficOpen}, {1, 4, 0, trafficFails}}},
	} {
		w := window{since: epoch}
		for i, l := range tc.looks {
			w.symptoms += l.symptoms
			o := lb.Outcomes{Answered: l.answered, Failed: l.failed, At: epoch.Add(time.Duration(i) * time.Second)}
			if got := w.try(o, tc.enough); got != l.want {
				t.Errorf("%s: look %d tells %d, want %d", name, i, got, l.want)
			}
		}
	}
}

// TestUnseen: who cannot see that connections are refused does not speak against a probe that
// was, not even where it did so before.
func TestUnseen(t *testing.T) {
	h := lb.DefaultHealth()
	h.Probe.Kind, h.Fall = lb.ProbeTCP, 1
	for was, want := range map[traffic]State{trafficAnswered: Suspect, trafficUnseen: Ejected} {
		for _, trial := range []bool{false, true} {
			e := event{kind: failed, reason: "refused", unreached: true, traffic: was}
			m, _ := step(mark{State: Suspect, Blocked: true, Trial: trial}, e, epoch, &h)
			if m.State != want {
				t.Errorf("traffic %d, trial %t: %s, want %s", was, trial, m.State, want)
			}
		}
	}
}
