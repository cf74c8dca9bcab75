// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/lbproxy/lbproxy/bench/internal/sim"
	"github.com/lbproxy/lbproxy/bench/internal/stats"
	"github.com/lbproxy/lbproxy/bench/result"
)

// fewBlocks is how many blocks there must be for halves to be put together.
const fewBlocks = 3

// warnings are what a reader must know before the numbers.
func warnings(files []*result.File, scenes []*scene) []string {
	var out []string
	for _, f := range files {
		if f.Quick {
			out = append(out, "This is a smoke run: it shows that everything works. Its numbers say nothing.")
		}
		out = append(out, f.Warnings...)
		if l, err := strconv.ParseFloat(first(f.Machine.LoadBefore), 64); err == nil && l > 0.25*float64(f.Machine.CPUs) {
			out = append(out, fmt.Sprintf("Others used the machine: its load average was %s before the run, with %d processors. Ratios of what ran in the same block suffer less from that than absolute times.",
				first(f.Machine.LoadBefore), f.Machine.CPUs))
		}
	}
	for _, sc := range scenes {
		out = append(out, scenarioWarnings(sc)...)
	}
	slices.Sort(out[min(len(out), 1):])
	return slices.Compact(out)
}

func first(fields string) string {
	word, _, _ := strings.Cut(fields, " ")
	return word
}

func scenarioWarnings(sc *scene) []string {
	var out []string
	if !sc.mirrored {
		out = append(out, fmt.Sprintf("%s: the arms did not run there and back, so what drifts is in the ratios.", sc.Name))
	}
	n := math.MaxInt
	for i := range sc.Arms {
		if sc.Arms[i].Name != sim.Name {
			n = min(n, len(sc.blocks[i]))
		}
	}
	if sc.mirrored && sc.halved {
		out = append(out, fmt.Sprintf("%s: the arms ran there and back %d times only, so ratios are of the halves.", sc.Name, n/2))
	}
	if n < stats.Enough {
		out = append(out, fmt.Sprintf("%s: %d ratios, and an interval of 95 %% needs %d: nobody wins or loses by so few.", sc.Name, n, stats.Enough))
	}
	return append(out, halves(sc)...)
}

// halves says if the two halves of blocks of direct differ, by what the scenario measures
// best: then the machine was not the same during a block.
func halves(sc *scene) []string {
	i := sc.find("direct")
	if i < 0 || !sc.mirrored {
		return nil
	}
	m := p50
	if !sc.paced {
		m = rate
		if sc.streams {
			m = throughput
		}
	}
	var gaps []float64
	for pair := range slices.Chunk(sc.Arms[i].Blocks, 2) {
		if len(pair) == 2 {
			if gap := stats.Gap(m.of(&pair[0]), m.of(&pair[1])); !math.IsNaN(gap) {
				gaps = append(gaps, gap)
			}
		}
	}
	apart := 0
	for _, g := range gaps {
		if g > stats.Apart {
			apart++
		}
	}
	if apart == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%s: the two halves of direct differ by more than %.0f %% in %d of %d blocks (%s, at most %.3g %%).",
		sc.Name, 100*stats.Apart, apart, len(gaps), m.Name, 100*slices.Max(gaps))}
}
