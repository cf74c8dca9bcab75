// SPDX-License-Identifier: Apache-2.0

package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/lbproxy/lbproxy/bench/result"
)

// compact writes results as they are kept: times to 1 %, and of the windows what is drawn,
// which is of all blocks together.
// What the report says of the file is what it says of the file that was kept.
func compact(name string, files []*result.File) error {
	if len(files) != 1 {
		return errors.New("report: one file at a time is kept")
	}
	f := files[0]
	for i := range f.Scenarios {
		for k := range f.Scenarios[i].Arms {
			a := &f.Scenarios[i].Arms[k]
			windows := windowsOf(a)
			for n := range a.Blocks {
				shorten(&a.Blocks[n])
				a.Blocks[n].Windows = nil
			}
			if len(a.Blocks) > 0 {
				a.Blocks[0].Windows = shortWindows(windows)
			}
		}
	}
	text, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if err := os.WriteFile(name, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

func shorten(b *result.Block) {
	b.Connect, b.Latency = coarse(b.Connect), coarse(b.Latency)
	for name, v := range b.Extra {
		v.Value = digits(v.Value, 4)
		b.Extra[name] = v
	}
	b.CPU, b.Seconds = digits(b.CPU, 5), digits(b.Seconds, 6)
}

// shortWindows are windows of all blocks together.
func shortWindows(ws []result.Window) []result.Window {
	for i := range ws {
		w := &ws[i]
		w.P50, w.P99 = digits(w.P50, 3), digits(w.P99, 3)
		if math.IsNaN(w.P99) { // nothing was answered: see windowsOf
			w.P50, w.P99 = 0, 0
		}
		for group, s := range w.Share {
			w.Share[group] = digits(s, 3)
		}
	}
	return ws
}

// coarse is a histogram with two significant digits.
func coarse(h *result.Histogram) *result.Histogram {
	if h == nil || h.Histogram == nil {
		return h
	}
	out := hdrhistogram.New(h.LowestTrackableValue(), h.HighestTrackableValue(), 2)
	for _, bar := range h.Distribution() {
		if bar.Count > 0 {
			_ = out.RecordValues((bar.From+bar.To)/2, bar.Count) // it is within the range
		}
	}
	return &result.Histogram{Histogram: out}
}

// digits rounds to so many significant digits.
func digits(x float64, n int) float64 {
	if x == 0 || math.IsNaN(x) || math.IsInf(x, 0) {
		return x
	}
	scale := math.Pow(10, float64(n)-math.Ceil(math.Log10(math.Abs(x))))
	return math.Round(x*scale) / scale
}
