// SPDX-License-Identifier: Apache-2.0

package health

import (
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestWindow: what connections tell while probes cannot connect, and when.
func TestWindow(t *testing.T) {
	const second = time.Second
	type look struct {
		at             time.Duration
		opened, failed uint64
		want           traffic
	}
	for name, tc := range map[string]struct {
		proven bool
		looks  []look
	}{
		"new ones are answered":            {true, []look{{0, 5, 1, trafficUnknown}, {second, 6, 1, trafficOpen}, {3 * second, 6, 1, trafficAnswered}}},
		"they fail":                        {true, []look{{0, 5, 1, trafficUnknown}, {second, 6, 2, trafficUnknown}, {3 * second, 7, 2, trafficUnknown}}},
		"none, and probes succeeded":       {true, []look{{0, 5, 0, trafficUnknown}, {9 * second, 5, 0, trafficUnknown}}},
		"counted anew":                     {true, []look{{0, 5, 0, trafficUnknown}, {second, 0, 0, trafficUnknown}}},
		"never reached, but by clients":    {false, []look{{0, 5, 0, trafficOpen}, {2 * second, 5, 0, trafficAnswered}}},
		"never reached, some fail":         {false, []look{{0, 5, 1, trafficUnknown}}},
		"never reached, seen a bit later":  {false, []look{{0, 0, 0, trafficOpen}, {second, 0, 0, trafficOpen}, {2 * second, 3, 0, trafficOpen}, {4 * second, 3, 0, trafficAnswered}}},
		"never reached, and nobody wanted": {false, []look{{0, 0, 0, trafficOpen}, {firstLook, 0, 0, trafficUnknown}}},
	} {
		var w window
		for _, l := range tc.looks {
			if got := w.look(l.opened, l.failed, tc.proven, epoch.Add(l.at)); got != l.want {
				t.Errorf("%s: after %v %d, want %d", name, l.at, got, l.want)
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
		e := event{kind: failed, reason: "refused", unreached: true, traffic: was}
		m, _ := step(mark{State: Suspect, Blocked: true}, e, epoch, &h)
		if m.State != want {
			t.Errorf("traffic %d: %s, want %s", was, m.State, want)
		}
	}
}
