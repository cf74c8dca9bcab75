// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"math"
	"slices"

	"github.com/lbproxy/lbproxy/bench/internal/plot"
	"github.com/lbproxy/lbproxy/bench/internal/sim"
	"github.com/lbproxy/lbproxy/bench/internal/stats"
	"github.com/lbproxy/lbproxy/bench/result"
)

// measure is a number of a block.
type measure struct {
	Name   string
	Title  string // of a column
	higher bool   // is better
	counts bool   // 0 is a good value: arms are compared by differences
	of     func(*result.Block) float64
	write  func(float64) string
}

var nan = math.NaN()

// quantileOf measures a quantile of a histogram.
func quantileOf(of func(*result.Block) *result.Histogram, q float64) func(*result.Block) float64 {
	return func(b *result.Block) float64 {
		h := of(b)
		if h == nil {
			return nan
		}
		return stats.Quantile(h.Histogram, q)
	}
}

func latency(b *result.Block) *result.Histogram { return b.Latency }
func connect(b *result.Block) *result.Histogram { return b.Connect }

// per divides, or has nothing to divide by.
func per(x, y float64) float64 {
	if y == 0 {
		return nan
	}
	return x / y
}

// answered are the requests that did not fail.
func answered(b *result.Block) float64 { return float64(b.Requests) - float64(failures(b)) }

// The measures, in the order of columns.
var (
	rate       = &measure{"requests per CPU second", "req/CPU s", true, false, func(b *result.Block) float64 { return per(answered(b), b.Seconds) }, decimal}
	throughput = &measure{"Gbit per CPU second", "Gbit/CPU s", true, false, func(b *result.Block) float64 { return zeroless(per(8e-9*float64(b.Bytes), b.Seconds)) }, decimal}
	lost       = &measure{"failed of a million", "failed of 1M", false, true, func(b *result.Block) float64 { return per(1e6*float64(failures(b)), float64(b.Requests)) }, decimal}
	p50        = &measure{"median latency", "p50", false, false, quantileOf(latency, 0.5), plot.Time}
	p99        = &measure{"p99 latency", "p99", false, false, quantileOf(latency, 0.99), plot.Time}
	p999       = &measure{"p99.9 latency", "p99.9", false, false, quantileOf(latency, 0.999), plot.Time}
	connectP50 = &measure{"median time to connect", "connect p50", false, false, quantileOf(connect, 0.5), plot.Time}
	connectP99 = &measure{"p99 time to connect", "connect p99", false, false, quantileOf(connect, 0.99), plot.Time}
	cpu        = &measure{"CPU s per million answers", "CPU s/1M", false, false, func(b *result.Block) float64 { return zeroless(per(1e6*b.CPU, answered(b))) }, decimal}
	cpuBytes   = &measure{"CPU s per GB", "CPU s/GB", false, false, func(b *result.Block) float64 { return zeroless(per(1e9*b.CPU, float64(b.Bytes))) }, decimal}
	most       = &measure{"largest share over the mean", "max/mean", false, false, func(b *result.Block) float64 { return fairness(b).Max }, decimal}
	cv         = &measure{"variation of shares", "CV", false, false, func(b *result.Block) float64 { return fairness(b).CV }, decimal}
	jain       = &measure{"Jain's index of shares", "Jain", true, false, func(b *result.Block) float64 { return fairness(b).Jain }, decimal}
	moved      = &measure{"clients moved by a change", "moved", false, true, func(b *result.Block) float64 { return deref(b.Moved) }, percent}
	memory     = &measure{"memory", "MB", false, false, func(b *result.Block) float64 { return zeroless(float64(b.Memory) / 1e6) }, decimal}
)

var allMeasures = []*measure{rate, throughput, lost, p50, p99, p999, connectP50, connectP99, cpu, cpuBytes, most, cv, jain, moved, memory}

// zeroless takes 0 for not measured.
func zeroless(x float64) float64 {
	if x == 0 {
		return nan
	}
	return x
}

func deref(p *float64) float64 {
	if p == nil {
		return nan
	}
	return *p
}

// fairness is NaN where nothing was counted.
func fairness(b *result.Block) stats.Fairness {
	counts, weights := make([]float64, len(b.Backends)), make([]float64, len(b.Backends))
	for i, s := range b.Backends {
		counts[i], weights[i] = float64(s.Requests), s.Weight
	}
	f := stats.FairnessOf(stats.Shares(counts, weights))
	if f.Jain == 0 {
		return stats.Fairness{Max: nan, CV: nan, Jain: nan}
	}
	return f
}

// decimal writes three significant digits, or all before the point.
func decimal(x float64) string {
	switch {
	case math.IsNaN(x):
		return "–"
	case math.Abs(x) >= 1000:
		return plot.Number(math.Round(x))
	case math.Abs(x) < 0.0005:
		return "0"
	}
	return fmt.Sprintf("%.3g", x)
}

// factor writes a ratio: with three decimals where it is about 1.
func factor(x float64) string {
	switch {
	case math.IsNaN(x):
		return "–"
	case x > 0.9 && x < 1.1:
		return fmt.Sprintf("%.3f", x)
	case x < 10:
		return fmt.Sprintf("%.2f", x)
	}
	return decimal(x)
}

func percent(x float64) string {
	if math.IsNaN(x) {
		return "–"
	}
	return fmt.Sprintf("%.3g %%", 100*x)
}

// measured are the measures that some arm has: those of Extra come last.
func (s *scene) measured() []*measure {
	var out []*measure
	for _, m := range append(slices.Clone(allMeasures), s.extras()...) {
		switch m {
		case rate, cpu: // a stream is one request
			if s.streams || m == rate && s.paced {
				continue
			}
		case throughput, cpuBytes:
			if !s.streams {
				continue
			}
		}
		for i := range s.Arms {
			if s.Arms[i].Name != sim.Name && !math.IsNaN(m.of(s.whole[i])) {
				out = append(out, m)
				break
			}
		}
	}
	return out
}

// extras are measures of the scenario's own.
func (s *scene) extras() []*measure {
	units := map[string]string{}
	for _, b := range s.whole {
		for name, v := range b.Extra {
			units[name] = v.Unit
		}
	}
	var out []*measure
	for name, unit := range units {
		m := &measure{Name: name, Title: name, write: decimal, of: func(b *result.Block) float64 {
			if v, ok := b.Extra[name]; ok {
				return v.Value
			}
			return nan
		}}
		if unit == "s" {
			m.write = plot.Time
		} else if unit != "" {
			m.Title += ", " + unit
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *measure) int { return compareText(a.Name, b.Name) })
	return out
}

// paced says whether requests come at their own times, or wait for answers, so that their
// rate says nothing of the path. Runs that do not tell are those in which the same requests
// come in every block.
func paced(sc *result.Scenario) bool {
	if sc.Mode != "" {
		return sc.Mode != result.Fast
	}
	n := uint64(0)
	for i := range sc.Arms {
		for _, b := range sc.Arms[i].Blocks {
			if sc.Arms[i].Name == sim.Name {
				continue
			}
			if n != 0 && b.Requests != n {
				return false
			}
			n = b.Requests
		}
	}
	return n != 0
}
