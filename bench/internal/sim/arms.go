// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"slices"

	"github.com/lbproxy/lbproxy/bench/result"
	"github.com/lbproxy/lbproxy/bench/scenario"
)

// Name is that of the simulator's arms.
const Name = "simulator"

// draws is how often an arm is simulated: the same requests come each time, and luck in
// choosing is another.
const draws = 5

// mostWait is the part of a run that requests wait, at p99, where no queue grows.
const mostWait = 0.2

// Arms predicts what a lab measures: the first case of a scenario, with every algorithm.
func Arms(sc *scenario.Scenario) ([]result.Arm, error) {
	sc = new(*sc)
	sc.Warmup = 0 // the lab measures from the first request on
	engine := &reference{}
	var out []result.Arm
	for i := range sc.Algorithms {
		alg := &sc.Algorithms[i]
		arm := result.Arm{Name: Name, Algorithm: alg.Label, Note: notModelled(sc)}
		for turn := range draws {
			r, err := newRun(sc, alg, sc.Load[0], 1, engine)
			if err != nil {
				return nil, fmt.Errorf("simulate %s: %w", sc.Name, err)
			}
			r.picks = scenario.Stream(sc.Seed+uint64(turn), scenario.StreamPicks)
			r.nodes[0].seq += uint32(turn)
			if err := r.simulate(); err != nil {
				return nil, fmt.Errorf("simulate %s: %w", sc.Name, err)
			}
			res := r.result(sc.Load[0])
			if res.P99 > mostWait*r.measure.span && arm.Note == "" {
				arm.Note = "a backend has more to do than it can, and its queue grows for as long as the run lasts"
			}
			arm.Blocks = append(arm.Blocks, r.block(res))
		}
		out = append(out, arm)
	}
	return out, nil
}

// notModelled says what of a scenario the simulator knows nothing of; empty: it knows all.
func notModelled(sc *scenario.Scenario) string {
	breaks := func(c scenario.Change) bool {
		return slices.Contains([]string{scenario.ChangeFail, scenario.ChangeFreeze, scenario.ChangeBlackhole}, c.Action)
	}
	if slices.ContainsFunc(sc.Changes, breaks) {
		return "the simulator has no health checks, and neither loses nor repeats packets"
	}
	return ""
}

// block is a run as the lab would have left it.
func (r *run) block(res *Result) result.Block {
	b := result.Block{
		Seconds: r.measure.span, Requests: uint64(res.Requests), Failed: map[string]int{},
		Latency: result.NewHistogram(),
	}
	for kind, n := range map[string]int{"refused": res.Failed, "timeout": res.TimedOut, "unfinished": res.Unfinished} {
		if n > 0 {
			b.Failed[kind] = n
		}
	}
	note := func(seconds float64, n int64) {
		ns := min(max(int64(1e9*seconds), b.Latency.LowestTrackableValue()), b.Latency.HighestTrackableValue())
		_ = b.Latency.RecordValues(ns, n) // it is within the range
	}
	for i, n := range res.sojourn.counts {
		note((bucketStart(i)+bucketStart(i+1))/2, int64(n))
	}
	note(r.sc.Timeout.Seconds(), int64(res.TimedOut)) // who gave up waited so long
	n := 0
	for _, g := range r.sc.Backends {
		for k := range g.Count {
			b.Backends = append(b.Backends, result.Backend{
				Name: fmt.Sprintf("%s-%d", g.Name, k+1), Group: g.Name, Weight: float64(*g.Weight), Requests: uint64(res.picks[n]),
			})
			n++
		}
	}
	start := 0.0
	for _, pt := range res.Series {
		w := result.Window{Start: start, Requests: uint64(pt.Requests), Failed: uint64(pt.Failed), P99: pt.P99}
		if r.sc.Watch != "" && pt.Requests > 0 {
			w.Share = map[string]float64{r.sc.Watch: pt.Watch * pt.fair / float64(pt.Requests)}
		}
		b.Windows = append(b.Windows, w)
		start = pt.Time
	}
	return b
}
