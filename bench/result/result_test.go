// SPDX-License-Identifier: Apache-2.0

package result

import (
	"path/filepath"
	"testing"

	"github.com/lbproxy/lbproxy/bench/internal/observe"
)

// TestRoundTrip: a histogram survives the file.
func TestRoundTrip(t *testing.T) {
	h := NewHistogram()
	for ms := range int64(1000) {
		if err := h.RecordValue((ms + 1) * 1_000_000); err != nil {
			t.Fatal(err)
		}
	}
	in := &File{Scenarios: []Scenario{{Arms: []Arm{{Name: "nginx", Algorithm: "random", Blocks: []Block{{Latency: h}}}}}}}
	path := filepath.Join(t.TempDir(), "r.json")
	if err := observe.Save(path, in); err != nil {
		t.Fatal(err)
	}
	out, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	arm := &out.Scenarios[0].Arms[0]
	got := arm.Blocks[0].Latency
	for _, q := range []float64{50, 99, 99.9} {
		if g, w := got.ValueAtQuantile(q), h.ValueAtQuantile(q); g != w {
			t.Errorf("quantile %v: %d after the file, want %d", q, g, w)
		}
	}
	if got.TotalCount() != 1000 || arm.Label() != "nginx random" {
		t.Errorf("%d values of %q, want 1000 of nginx random", got.TotalCount(), arm.Label())
	}
}
