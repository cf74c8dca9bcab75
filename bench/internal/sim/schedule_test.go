// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"math"
	"testing"

	"github.com/lbproxy/lbproxy/bench/scenario"
)

// TestScheduleIsWhatIsSimulated: the lab, which makes all requests beforehand, has those
// of the simulator, through changes of the rate.
func TestScheduleIsWhatIsSimulated(t *testing.T) {
	text := scenarioOf(map[string]string{
		"requests": "8000", "load": "[0.5]", "seed": "7", "backends": "[{name: a, count: 4}, {name: b, absent: true}]",
		"arrivals": "{process: bursty, burst: 50ms, pause: 150ms}", "algorithms": "[{name: random}]",
		"changes": "[{at: 4s, action: rate, factor: 0.5}, {at: 2s, action: rate, factor: 8}, {at: 1s, action: add, backends: b}]",
	})
	r := runOf(t, text, &reference{})
	var got []float64
	r.picked = func(int, int) { got = append(got, r.now) }
	if err := r.simulate(); err != nil {
		t.Fatal(err)
	}
	sc, err := scenario.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := sc.Schedule(0.5)
	if len(got) != len(want) {
		t.Fatalf("%d requests simulated, %d scheduled", len(got), len(want))
	}
	counts := [2]int{}
	for i, a := range want {
		if math.Abs(got[i]-a.At) > 1e-9 {
			t.Fatalf("request %d comes at %g in the simulator, is scheduled at %g", i, got[i], a.At)
		}
		if a.At < 4 {
			counts[int(a.At/2)]++
		}
	}
	if counts[1] < 4*counts[0] || counts[1] > 16*counts[0] {
		t.Errorf("%d in the first 2 s and %d in the next 2, at 8 times the rate", counts[0], counts[1])
	}
}
