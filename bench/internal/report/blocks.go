// SPDX-License-Identifier: Apache-2.0

// Package report makes pages and tables of what bench runs left: what is in them is
// computed from the results alone, and from the simulator where the results ask for it.
package report

import (
	"cmp"
	"maps"
	"slices"

	"github.com/lbproxy/lbproxy/bench/internal/sim"
	"github.com/lbproxy/lbproxy/bench/internal/stats"
	"github.com/lbproxy/lbproxy/bench/result"
)

// scene is a scenario with what is computed from it once.
type scene struct {
	*result.Scenario
	blocks   [][]*result.Block // by arm
	whole    []*result.Block   // by arm: all blocks together
	windows  [][]result.Window // by arm
	mirrored bool              // the arms ran there and back
	halved   bool              // there are so few blocks that their halves count
	paced    bool              // the same requests came in every block, however fast answers were
	streams  bool              // bytes matter: more than 64 KiB for each request
	measures []*measure        // that some arm has
	values   map[*measure][][]float64
}

func newScene(sc *result.Scenario) *scene {
	s := &scene{Scenario: sc, values: map[*measure][][]float64{}, mirrored: mirrored(sc), paced: paced(sc)}
	s.halved = len(sc.Order) < 2*fewBlocks*live(sc)
	for i := range sc.Arms {
		a := &sc.Arms[i]
		s.blocks, s.windows = append(s.blocks, s.blocksOf(a)), append(s.windows, windowsOf(a))
		all := &result.Block{}
		if len(a.Blocks) > 0 {
			all = together(a.Blocks)
		}
		s.whole = append(s.whole, all)
		s.streams = s.streams || all.Bytes > 64<<10*max(1, all.Requests)
	}
	s.paced = s.paced && !s.streams
	s.measures = s.measured()
	return s
}

// of measures all blocks of an arm.
func (s *scene) of(arm int, m *measure) []float64 {
	if s.values[m] == nil {
		all := make([][]float64, len(s.Arms))
		for i := range all {
			for _, b := range s.blocks[i] {
				all[i] = append(all[i], m.of(b))
			}
		}
		s.values[m] = all
	}
	return s.values[m][arm]
}

// find is the first arm that a proxy has, -1 if it has none.
func (s *scene) find(name string) int {
	return slices.IndexFunc(s.Arms, func(a result.Arm) bool { return a.Name == name })
}

// blocksOf returns the blocks of an arm. If all arms ran there and back, the two halves of
// each block are put together, unless there are so few that the halves must do; otherwise
// what ran once is a block.
func (s *scene) blocksOf(a *result.Arm) []*result.Block {
	size := 1
	if s.mirrored && !s.halved {
		size = 2
	}
	var out []*result.Block
	for part := range slices.Chunk(a.Blocks, size) {
		out = append(out, together(part))
	}
	return out
}

// mirrored says whether the arms ran there and back, block after block.
func mirrored(sc *result.Scenario) bool { return stats.Mirrored(sc.Order, live(sc)) }

// live is how many arms ran: those of the simulator did not.
func live(sc *result.Scenario) int {
	n := 0
	for i := range sc.Arms {
		if sc.Arms[i].Name != sim.Name {
			n++
		}
	}
	return n
}

// together adds up blocks of one arm. Windows are not in it: see windowsOf.
func together(parts []result.Block) *result.Block {
	if len(parts) == 1 {
		return &parts[0]
	}
	sum := &result.Block{Failed: map[string]int{}, Extra: map[string]result.Value{}}
	moved, n := 0.0, 0.0
	for i := range parts {
		b := &parts[i]
		sum.Seconds += b.Seconds
		sum.Requests += b.Requests
		sum.CPU += b.CPU
		sum.Bytes += b.Bytes
		sum.Memory = max(sum.Memory, b.Memory)
		for kind, count := range b.Failed {
			sum.Failed[kind] += count
		}
		sum.Connect = add(sum.Connect, b.Connect)
		sum.Latency = add(sum.Latency, b.Latency)
		sum.Backends = addBackends(sum.Backends, b.Backends)
		if b.Moved != nil {
			moved, n = moved+*b.Moved, n+1
		}
		for name, v := range b.Extra { // the mean of the parts
			v.Value = sum.Extra[name].Value + v.Value/float64(len(parts))
			sum.Extra[name] = v
		}
	}
	if n > 0 {
		mean := moved / n
		sum.Moved = &mean
	}
	return sum
}

func add(sum, h *result.Histogram) *result.Histogram {
	if h == nil || h.Histogram == nil {
		return sum
	}
	if sum == nil {
		sum = result.NewHistogram()
	}
	sum.Merge(h.Histogram)
	return sum
}

func addBackends(sum, more []result.Backend) []result.Backend {
	sum = slices.Clone(sum)
	for _, b := range more {
		i := slices.IndexFunc(sum, func(s result.Backend) bool { return s.Name == b.Name })
		if i < 0 {
			sum = append(sum, b)
			continue
		}
		sum[i].Requests += b.Requests
	}
	return sum
}

func failures(b *result.Block) int {
	n := 0
	for count := range maps.Values(b.Failed) {
		n += count
	}
	return n
}

// windowsOf returns each window of an arm: the median over the blocks of what was measured
// in it, and all failures.
func windowsOf(a *result.Arm) []result.Window {
	byStart := map[float64][]result.Window{}
	for _, b := range a.Blocks {
		for _, w := range b.Windows {
			byStart[w.Start] = append(byStart[w.Start], w)
		}
	}
	var out []result.Window
	for start, ws := range byStart {
		sum := result.Window{Start: start, Share: map[string]float64{}}
		var p50, p99 []float64
		shares := map[string][]float64{}
		for _, w := range ws {
			sum.Requests += w.Requests
			sum.Failed += w.Failed
			if w.Requests > w.Failed { // otherwise there was nothing to measure
				p50, p99 = append(p50, w.P50), append(p99, w.P99)
			}
			for group, s := range w.Share {
				shares[group] = append(shares[group], s)
			}
		}
		sum.P50, sum.P99 = stats.Median(p50), stats.Median(p99)
		for group, xs := range shares {
			sum.Share[group] = stats.Median(xs)
		}
		out = append(out, sum)
	}
	slices.SortFunc(out, func(a, b result.Window) int { return cmp.Compare(a.Start, b.Start) })
	return out
}
