// SPDX-License-Identifier: Apache-2.0

package report

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/bench/internal/observe"
	"github.com/lbproxy/lbproxy/bench/internal/sim"
	"github.com/lbproxy/lbproxy/bench/result"
)

// sceneOf is a scenario of arms whose blocks have so many requests in a second.
func sceneOf(order []int, rates map[string][]float64) *scene {
	sc := &result.Scenario{Name: "x", Order: order}
	for _, name := range []string{"direct", "lbproxy-ebpf", "kube-proxy-nftables", "nginx"} {
		if rates[name] == nil {
			continue
		}
		a := result.Arm{Name: name}
		for _, r := range rates[name] {
			a.Blocks = append(a.Blocks, result.Block{Seconds: 1, Requests: uint64(r)})
		}
		sc.Arms = append(sc.Arms, a)
	}
	return newScene(sc)
}

// TestDriftIsNotInRatios: the machine gets slower in a straight line. lbproxy comes after
// direct there and before it back, and has 0.9 of its rate.
func TestDriftIsNotInRatios(t *testing.T) {
	var direct, proxied []float64
	for block := range 6 {
		at := 10_000 - 400*float64(block)
		direct = append(direct, at, at-300)
		proxied = append(proxied, 0.9*(at-100), 0.9*(at-200))
	}
	s := sceneOf(there(2, 6), map[string][]float64{"direct": direct, "lbproxy-ebpf": proxied})
	c, ok := s.against(rate, 1, 0)
	if !ok || c.Gain.N != 6 || math.Abs(c.Gain.Median-0.9) > 1e-4 || c.Verdict() != -1 {
		t.Errorf("%+v, want 0.9 in 6 blocks, which is a loss", c.Gain)
	}
	if w := halves(s); len(w) != 1 || !strings.Contains(w[0], "in 6 of 6 blocks") {
		t.Errorf("halves that differ by more than 3 %%: %q", w)
	}
}

// TestFewBlocks: of two blocks there and back the halves count; of fewer than six ratios nobody wins.
func TestFewBlocks(t *testing.T) {
	rates := func(n int) map[string][]float64 {
		return map[string][]float64{"lbproxy-ebpf": slices.Repeat([]float64{200}, n), "nginx": slices.Repeat([]float64{100, 101}, n/2)}
	}
	for _, tc := range []struct{ blocks, n, verdict int }{{6, 6, 1}, {5, 5, 0}, {3, 3, 0}, {2, 4, 0}, {1, 2, 0}} {
		s := sceneOf(there(2, tc.blocks), rates(2*tc.blocks))
		c, ok := s.against(rate, 0, 1)
		if !ok || c.Gain.N != tc.n || c.Verdict() != tc.verdict {
			t.Errorf("%d blocks: %d ratios and verdict %d, want %d and %d", tc.blocks, c.Gain.N, c.Verdict(), tc.n, tc.verdict)
		}
	}
}

// TestLossesComeFirst: in made-up results haproxy is faster, and its row is at the top.
func TestLossesComeFirst(t *testing.T) {
	all := gather([]*result.File{newMaker(t).file()})
	cs := allComparisons(all.scenes)
	if cs[0].Verdict() != -1 || cs[0].Versus != "haproxy" {
		t.Errorf("the first row is %+v", cs[0])
	}
	if !slices.IsSortedFunc(cs, func(a, b Comparison) int { return a.Verdict() - b.Verdict() }) {
		t.Error("losses, draws and wins are mixed")
	}
	for _, c := range cs {
		want := map[string]bool{"nginx": true, "haproxy": true, "kube-proxy-nftables": true, "kube-proxy-iptables": true, "direct": true}
		if !want[c.Versus] || !strings.HasPrefix(c.Arm, "lbproxy") {
			t.Errorf("a comparison of %s with %s", c.Arm, c.Peer)
		}
	}
	rows := summaryTable(all).Rows
	if len(rows) != 2 || rows[0][0] != "heterogeneous" || rows[1][0] != "connect" {
		t.Errorf("the summary is %q, want the scenario that is lost, and the other", rows)
	}
}

// TestLikeWithLike: arms of the same algorithm are compared, whatever its name.
func TestLikeWithLike(t *testing.T) {
	s := newScene(new(newMaker(t).paced()))
	label := func(i int) string { return s.Arms[i].Label() }
	var got []string
	for _, p := range s.pairs(p99, "lbproxy-ebpf", "kube-proxy-nftables") {
		got = append(got, label(p[0])+" / "+label(p[1]))
	}
	want := []string{"lbproxy-ebpf least-time / kube-proxy-nftables random", "lbproxy-ebpf random / kube-proxy-nftables random"}
	if !slices.Equal(got, want) {
		t.Errorf("pairs %q, want %q", got, want)
	}
}

func TestPredictions(t *testing.T) {
	sc := newMaker(t).paced()
	ps := predictions(newScene(&sc))
	if len(ps) != 1 || ps[0].Arm != "lbproxy-ebpf least-time" || !ps[0].Within {
		t.Fatalf("%+v, want one that is near", ps)
	}
	last := &sc.Arms[len(sc.Arms)-1]
	last.Blocks[0].Latency = newMaker(t).times(1000, 0.03, 0.5, 2)
	last.Note = "of something"
	if ps := predictions(newScene(&sc)); ps[0].Within || ps[0].Off > -0.15 || ps[0].Why == "" {
		t.Errorf("%+v, want one that is far off and does not apply", ps[0])
	}
}

// TestSimulate: the simulator's arms are those that ran in the lab.
func TestSimulate(t *testing.T) {
	f := &result.File{Scenarios: []result.Scenario{
		{Name: "udp-dns", File: "../../scenarios/udp-dns.yaml", Arms: []result.Arm{{Name: "lbproxy-ebpf", Algorithm: "random"}}},
		{Name: "streaming", File: "../../scenarios/streaming.yaml", Arms: []result.Arm{{Name: "direct"}}},
	}}
	if err := simulate(f); err != nil {
		t.Fatal(err)
	}
	arms := f.Scenarios[0].Arms
	if len(arms) != 2 || arms[1].Name != sim.Name || arms[1].Algorithm != "random" || len(arms[1].Blocks) < 2 {
		t.Fatalf("arms %+v", arms)
	}
	b := arms[1].Blocks[0]
	if b.Requests == 0 || uint64(b.Latency.TotalCount()) != b.Requests || len(b.Backends) != 4 {
		t.Errorf("%d requests, %d times, %d backends", b.Requests, b.Latency.TotalCount(), len(b.Backends))
	}
	if got := p99.of(&b); got < 0.004 || got > 0.02 {
		t.Errorf("p99 of %v s, want that of 2 ms of exponential work: about 9.2 ms", got)
	}
	if len(f.Scenarios[1].Arms) != 1 {
		t.Error("what cannot be simulated was")
	}
}

// TestGoals: made-up results say something of two goals.
func TestGoals(t *testing.T) {
	rows := goalTable(gather([]*result.File{newMaker(t).file()})).Rows
	if len(rows) != 2 || rows[0][4] != "no" || rows[1][4] != "no" {
		t.Errorf("goals %q, want two about p99 that are not reached", rows)
	}
	s := sceneOf(there(2, 6), map[string][]float64{"direct": slices.Repeat([]float64{100}, 12), "lbproxy-ebpf": slices.Repeat([]float64{99}, 12)})
	s.Scenario.Name = "east-west-10k"
	if rows := goalTable(&gathered{scenes: []*scene{s}}).Rows; len(rows) != 1 || rows[0][2] != "0.990" || rows[0][4] != "yes" {
		t.Errorf("goals %q, want 0.990, which is enough", rows)
	}
}

func TestFill(t *testing.T) {
	files := []*result.File{newMaker(t).file()}
	const old = "before\n<!-- bench:begin -->\nstale\n<!-- bench:end -->\nbetween\n<!-- bench:begin rows -->\n<!-- bench:end -->\nafter\n"
	got, err := fill(old, files)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"before\n<!-- bench:begin -->\n\n| scenario", "<!-- bench:end -->\nbetween\n<!-- bench:begin rows -->\n\n### Program", "<!-- bench:end -->\nafter\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	if strings.Contains(got, "stale") {
		t.Error("old text is left")
	}
	if again, err := fill(got, files); err != nil || again != got {
		t.Errorf("filled again it is another text: %v", err)
	}
	for _, bad := range []string{"no markers", "<!-- bench:begin nonsense -->\n<!-- bench:end -->"} {
		if _, err := fill(bad, files); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

// TestCompact: what is kept says the same, within 1 %.
func TestCompact(t *testing.T) {
	dir := t.TempDir()
	long, short := filepath.Join(dir, "long.json"), filepath.Join(dir, "short.json")
	if err := observe.Save(long, newMaker(t).file()); err != nil {
		t.Fatal(err)
	}
	if err := Write(Options{Results: long, Compact: short}); err != nil {
		t.Fatal(err)
	}
	kept, err := result.Read(short)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := result.Read(long)
	if err != nil {
		t.Fatal(err)
	}
	a, b := newScene(&whole.Scenarios[1]), newScene(&kept.Scenarios[1])
	for _, m := range []*measure{p50, p99, p999, connectP99, cpu, jain} {
		for i := range a.Arms {
			x, y := m.of(a.whole[i]), m.of(b.whole[i])
			if math.Abs(x/y-1) > 0.012 { // not so if both are NaN
				t.Errorf("%s, %s: %v was kept as %v", a.Arms[i].Label(), m.Name, x, y)
			}
		}
	}
	was, err1 := os.Stat(long)
	is, err2 := os.Stat(short)
	if err1 != nil || err2 != nil || is.Size() > was.Size()/3 {
		t.Errorf("%d bytes became %d: %v %v", was.Size(), is.Size(), err1, err2)
	}
}

// TestPaced: a run that tells how its requests began is believed; with an older one the same
// requests in every block are a sign.
func TestPaced(t *testing.T) {
	arms := func(requests ...uint64) []result.Arm {
		a := result.Arm{Name: "direct"}
		for _, n := range requests {
			a.Blocks = append(a.Blocks, result.Block{Requests: n})
		}
		return []result.Arm{a}
	}
	for _, tc := range []struct {
		mode string
		arms []result.Arm
		want bool
	}{
		{"open", arms(5, 5), true},
		{"closed", arms(5, 6), true},
		{result.Fast, arms(5, 5), false},
		{"", arms(5, 5), true},
		{"", arms(5, 6), false},
	} {
		if got := paced(&result.Scenario{Mode: tc.mode, Arms: tc.arms}); got != tc.want {
			t.Errorf("mode %q: paced %t, want %t", tc.mode, got, tc.want)
		}
	}
}
