// SPDX-License-Identifier: Apache-2.0

package live

import (
	"math"
	"slices"

	"github.com/lbproxy/lbproxy/bench/result"
	"github.com/lbproxy/lbproxy/bench/scenario"
)

// manyWindows is how many pieces a block has if the scenario does not say.
const manyWindows = 20

// settled is how long after a change clients are not compared, in seconds: it takes
// proxies that long to learn of it.
const settled = 1.5

// summarize makes a block of what became of its requests. One that failed at once counts as
// if its client had waited as long as it would: to fail is not to be fast.
func summarize(sc *scenario.Scenario, records []record) *outcome {
	out := &outcome{Failed: map[string]int{}, Connect: result.NewHistogram(), Latency: result.NewHistogram()}
	var late []float64
	limit := limitOf(sc).Seconds()
	for i := range records {
		r := &records[i]
		out.Requests++
		out.Seconds = max(out.Seconds, r.at)
		late = append(late, r.late)
		if r.failure != "" {
			out.Failed[r.failure]++
		}
		if r.connect > 0 {
			note(out.Connect, r.connect)
		}
		note(out.Latency, r.patience(limit))
	}
	out.Late = quantile(late, 0.99)
	out.Windows = windows(sc, records, out.Seconds)
	out.Moved, out.Returned = moved(sc, records)
	return out
}

// patience is what r took, or at least limit if it failed.
func (r *record) patience(limit float64) float64 {
	if r.failure == "" {
		return r.took
	}
	return max(r.took, limit)
}

// note records seconds.
func note(h *result.Histogram, seconds float64) {
	ns := min(max(int64(seconds*1e9), h.LowestTrackableValue()), h.HighestTrackableValue())
	_ = h.RecordValue(ns) // it is within the range
}

// quantile sorts xs; 0 of none.
func quantile(xs []float64, q float64) float64 {
	if len(xs) == 0 {
		return 0
	}
	slices.Sort(xs)
	return xs[min(int(q*float64(len(xs))), len(xs)-1)]
}

// windows are pieces of a block.
func windows(sc *scenario.Scenario, records []record, span float64) []result.Window {
	width := sc.Window.Seconds()
	if width == 0 {
		width = span / manyWindows
	}
	if width == 0 {
		return nil
	}
	groups, limit := groupsOf(sc), limitOf(sc).Seconds()
	out := make([]result.Window, int(span/width)+1)
	times := make([][]float64, len(out))
	for i := range records {
		r := &records[i]
		k := min(int(r.at/width), len(out)-1)
		w := &out[k]
		w.Requests++
		if r.failure != "" {
			w.Failed++
		}
		times[k] = append(times[k], r.patience(limit))
		if r.backend >= 0 && r.backend < len(groups) {
			if w.Share == nil {
				w.Share = map[string]float64{}
			}
			w.Share[groups[r.backend]]++
		}
	}
	for k := range out {
		w := &out[k]
		w.Start, w.P50, w.P99 = float64(k)*width, quantile(times[k], 0.5), quantile(times[k], 0.99)
		var sum float64
		for _, n := range w.Share {
			sum += n
		}
		for g, n := range w.Share {
			w.Share[g] = n / sum
		}
	}
	return out
}

// groupsOf is the group of each backend.
func groupsOf(sc *scenario.Scenario) []string {
	var names []string
	for _, g := range sc.Backends {
		names = append(names, slices.Repeat([]string{g.Name}, g.Count)...)
	}
	return names
}

// moved is the part of the clients whose backend is another one after the first change of
// the set of backends, and after the last. It is nil where there is no hash to look at.
func moved(sc *scenario.Scenario, records []record) (first, last *float64) {
	var at []float64
	for _, c := range sc.InOrder() {
		if c.Action == scenario.ChangeAdd || c.Action == scenario.ChangeRemove {
			at = append(at, c.At.Seconds())
		}
	}
	if !hashed(sc) || len(at) == 0 {
		return nil, nil
	}
	end := math.Inf(1)
	if len(at) > 1 {
		end = at[1]
	}
	before := owners(records, 0, at[0])
	first = differ(before, owners(records, at[0]+settled, end))
	if len(at) > 1 {
		last = differ(before, owners(records, at[len(at)-1]+settled, math.Inf(1)))
	}
	return first, last
}

// hashed tells whether the scenario has clients with addresses of their own.
func hashed(sc *scenario.Scenario) bool {
	return slices.ContainsFunc(sc.Algorithms, func(a scenario.Algorithm) bool { return a.Name == "hash" || a.Name == "ip-hash" })
}

// owners is the last backend of each client in a time.
func owners(records []record, from, to float64) map[int]int {
	out := map[int]int{}
	for i := range records {
		if r := &records[i]; r.backend >= 0 && r.at >= from && r.at < to {
			out[r.client] = r.backend
		}
	}
	return out
}

// differ is the part of the clients in both that differ; nil of none.
func differ(a, b map[int]int) *float64 {
	var both, other float64
	for client, backend := range a {
		if now, seen := b[client]; seen {
			both++
			if now != backend {
				other++
			}
		}
	}
	if both == 0 {
		return nil
	}
	part := other / both
	return &part
}
