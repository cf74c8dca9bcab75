// SPDX-License-Identifier: Apache-2.0

//go:build root

package sim

import (
	"testing"

	"github.com/lbproxy/lbproxy/internal/algo"
)

// TestEnginesPickTheSame runs each algorithm from one seed with both engines,
// through weights, a slow start, changes of speed and a change of algorithm.
func TestEnginesPickTheSame(t *testing.T) {
	for _, name := range algo.Names() {
		t.Run(name, func(t *testing.T) {
			text := scenarioOf(map[string]string{
				"seed": "5", "requests": "20000", "load": "[0.8]", "nodes": "[3]", "slowStart": "3s",
				"backends": "[{name: a, count: 30}, {name: b, count: 9, weight: 3, speed: 2}, {name: c, weight: 0}, {name: d, count: 2, absent: true}]",
				"changes": `[{at: 1s, action: slow, backends: b, factor: 8}, {at: 1s, action: add, backends: d},
				  {at: 3s, action: weight, backends: c, weight: 7}, {at: 4s, action: recover, backends: b}]`,
				"algorithms": "[{name: " + name + "}]",
			})
			want, got := picksOf(t, text, "ref"), picksOf(t, text, "bpf")
			if len(got) != 20000 || len(want) != len(got) {
				t.Fatalf("%d picks in the kernel and %d in Go, want 20000", len(got), len(want))
			}
			for i := range want {
				if got[i] != want[i] {
					t.Fatalf("pick %d is backend %d in the kernel and %d in Go", i, got[i], want[i])
				}
			}
		})
	}
}

// picksOf returns which backend each request of a scenario goes to.
func picksOf(t *testing.T, text, engineName string) []int {
	t.Helper()
	engine, err := NewEngine(engineName)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	r := runOf(t, text, engine)
	var picks []int
	r.picked = func(_, backend int) { picks = append(picks, backend) }
	if err := r.simulate(); err != nil {
		t.Fatal(err)
	}
	return picks
}
