// SPDX-License-Identifier: Apache-2.0

package report

import (
	"math"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/bench/internal/sim"
	"github.com/lbproxy/lbproxy/bench/internal/stats"
	"github.com/lbproxy/lbproxy/bench/result"
	"github.com/lbproxy/lbproxy/bench/scenario"
)

// simulate adds what the simulator predicts to the scenarios that it can run and that have
// no prediction yet, for the algorithms that ran in the lab.
func simulate(f *result.File) error {
	for i := range f.Scenarios {
		out := &f.Scenarios[i]
		has := func(name, algorithm string) bool {
			return slices.ContainsFunc(out.Arms, func(a result.Arm) bool {
				return (a.Name == sim.Name) == (name == sim.Name) && (a.Algorithm == algorithm || algorithm == "")
			})
		}
		if out.File == "" || has(sim.Name, "") {
			continue
		}
		sc, err := scenario.Read(out.File)
		if err != nil {
			return err
		}
		if sc.NotSimulated != "" {
			continue
		}
		arms, err := sim.Arms(sc)
		if err != nil {
			return err
		}
		for _, a := range arms {
			if has("", a.Algorithm) {
				out.Arms = append(out.Arms, a)
			}
		}
	}
	return nil
}

// near is by how much the p99 of the lab and that of the simulator may differ where the
// model applies: 15 %.
const near = 0.15

// prediction is an arm of the simulator beside the one that it simulates.
type prediction struct {
	Scenario, Algorithm, Arm string
	Live, Simulated          float64 // p99, s
	Off                      float64 // of the live one, by the simulator's; 0.1: 10 % slower
	Within                   bool
	Why                      string // the model does not apply; empty: it does
}

// liveOf finds the arm that arm i of the simulator simulates, -1 if it did not run.
func liveOf(sc *scene, i int) int {
	return slices.IndexFunc(sc.Arms, func(a result.Arm) bool {
		if strings.HasPrefix(sc.Arms[i].Algorithm, "oracle") && a.Name != "direct" {
			return false
		}
		return a.Name != sim.Name && a.Algorithm == sc.Arms[i].Algorithm
	})
}

// predictions compares the simulator's arms of a scenario.
func predictions(sc *scene) []prediction {
	var out []prediction
	for i := range sc.Arms {
		k := -1
		if sc.Arms[i].Name == sim.Name {
			k = liveOf(sc, i)
		}
		if k < 0 {
			continue
		}
		p := prediction{Scenario: sc.Name, Algorithm: sc.Arms[i].Algorithm, Arm: sc.Arms[k].Label(), Why: sc.Arms[i].Note}
		p.Live, p.Simulated = stats.Median(sc.of(k, p99)), p99.of(sc.whole[i])
		p.Off = p.Live/p.Simulated - 1
		if math.IsNaN(p.Off) {
			continue
		}
		p.Within = math.Abs(p.Off) <= near
		out = append(out, p)
	}
	return out
}
