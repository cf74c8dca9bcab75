//go:build root

// SPDX-License-Identifier: Apache-2.0

package live

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/lbproxy/lbproxy/bench/result"
	"github.com/lbproxy/lbproxy/internal/lab"
)

func TestMain(m *testing.M) {
	Main()
	lab.Main()
	os.Exit(m.Run())
}

// tiny is all kinds of changes in three seconds.
const tiny = `name: tiny
question: Does it run?
requests: 150
load: [0.25]
timeout: 1s
service: {mean: 20ms}
backends: [{name: ok, count: 3}, {name: victim}]
window: 500ms
watch: victim
changes:
  - {at: 500ms, action: slow, backends: victim, factor: 3}
  - {at: 800ms, action: remove, backends: victim}
  - {at: 1200ms, action: fail, backends: victim}
  - {at: 1500ms, action: recover, backends: victim}
  - {at: 1600ms, action: add, backends: victim}
  - {at: 2200ms, action: algorithm, algorithm: random}
  - {at: 2500ms, action: blackhole, backends: victim}
  - {at: 2700ms, action: recover, backends: victim}
algorithms: [{name: round-robin}]
live: {services: [20], arms: [direct, lbproxy-ebpf round-robin, nginx least_conn]}
`

// TestScenario runs a scenario with a direct path, lbproxy and nginx, there and back, and
// counts at the servers what the clients did.
func TestScenario(t *testing.T) {
	dir := t.TempDir()
	program, file, out := filepath.Join(dir, "lbproxy"), filepath.Join(dir, "tiny.yaml"), filepath.Join(dir, "r.json")
	build := exec.Command("go", "build", "-o", program, "../../cmd/lbproxy")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if err := os.WriteFile(file, []byte(tiny), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), Options{Set: Full, Scenarios: file, Program: program, Out: out}); err != nil {
		t.Fatal(err)
	}
	f, err := result.Read(out)
	if err != nil {
		t.Fatal(err)
	}
	sc := f.Scenarios[0]
	if len(sc.Arms) != 3 || len(sc.Order) != 6 || len(sc.Events) != 8 || f.Knobs["nginx"] == "" {
		t.Fatalf("%d arms, order %v, events %v, knobs %v", len(sc.Arms), sc.Order, sc.Events, f.Knobs)
	}
	for i := range sc.Arms {
		for k := range sc.Arms[i].Blocks {
			checkBlock(t, &sc.Arms[i], &sc.Arms[i].Blocks[k])
		}
	}
}

func checkBlock(t *testing.T, a *result.Arm, b *result.Block) {
	t.Helper()
	var failed, served uint64
	for _, n := range b.Failed {
		failed += uint64(n)
	}
	for _, s := range b.Backends {
		served += s.Requests
	}
	// A request that a backend read may fail after all.
	if b.Requests != 150 || failed > 30 || served+failed < 150 || served > 150 {
		t.Errorf("%s: %d requests, %d at the servers, failed %v; want 150 in all", a.Label(), b.Requests, served, b.Failed)
	}
	if v := b.Backends[3]; v.Group != "victim" || v.Requests == 0 || v.Requests > 60 {
		t.Errorf("%s: the backend that comes and goes has %d of 150", a.Label(), v.Requests)
	}
	if b.CPU <= 0 || (b.Memory == 0) != (a.Name == "direct") || len(b.Windows) < 4 {
		t.Errorf("%s: CPU %g s, memory %d, %d windows", a.Label(), b.CPU, b.Memory, len(b.Windows))
	}
}
