// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/station"
	"github.com/lbproxy/lbproxy/bench/scenario"
)

// runOf prepares the only case of a scenario in YAML.
func runOf(t *testing.T, text string, engine Engine) *run {
	t.Helper()
	sc, err := scenario.Parse([]byte(text))
	if err != nil {
		t.Fatalf("scenario: %v\n%s", err, text)
	}
	r, err := newRun(sc, &sc.Algorithms[0], sc.Load[0], sc.Nodes[0], engine)
	if err != nil {
		t.Fatalf("new run: %v\n%s", err, text)
	}
	return r
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-9 }

func TestAgendaIsInOrder(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	a := newAgenda(37)
	times := slices.Repeat([]float64{never}, 37)
	for range 20000 {
		server := rng.IntN(37)
		times[server] = rng.Float64()
		if rng.IntN(4) == 0 {
			times[server] = never
		}
		a.set(server, times[server])
		if got, whose := a.next(); got != slices.Min(times) || times[whose] != got {
			t.Fatalf("seed %d: next is %v of %d, want %v", seed, got, whose, slices.Min(times))
		}
	}
}

func TestQuantiles(t *testing.T) {
	h := newHistogram()
	for i := range 100000 {
		h.add(float64(i+1) / 100000)
	}
	for _, q := range []float64{0.01, 0.5, 0.99, 0.999, 1} {
		if got := h.quantile(q); math.Abs(got/q-1) > 0.004 {
			t.Errorf("quantile %g is %g", q, got)
		}
	}
	if got := h.mean(); math.Abs(got-0.500005) > 1e-9 {
		t.Errorf("mean is %g, want 0.500005", got)
	}
}

// TestArrivals: all processes have the same rate; bursts make the number in a
// while vary more. An interrupted Poisson process that is busy a part b of the time,
// with a rate r then, has an index of dispersion near 1 + 2*r*(1-b)*t in a time that
// is long to t, where 1/t is the sum of the rates of change: 113.5 here.
func TestArrivals(t *testing.T) {
	for process, dispersion := range map[string][2]float64{
		"{process: deterministic}":                     {0, 0.01},
		"{process: poisson}":                           {0.9, 1.1},
		"{process: bursty, burst: 50ms, pause: 150ms}": {100, 120},
	} {
		r := runOf(t, scenarioOf(map[string]string{
			"requests": "1", "load": "[0.5]", "backends": "[{count: 10}]", "arrivals": process,
			"algorithms": "[{name: random}]",
		}), &reference{})
		var counts []float64
		now, end, count := 0.0, 1.0, 0.0
		for len(counts) < 2000 {
			now += r.arrivals.Gap()
			for end < now {
				counts = append(counts, count)
				count, end = 0, end+1
			}
			count++
		}
		var sum, squares float64
		for _, c := range counts {
			sum, squares = sum+c, squares+c*c
		}
		mean := sum / float64(len(counts))
		index := (squares/float64(len(counts)) - mean*mean) / mean
		if math.Abs(mean/500-1) > 0.03 || index < dispersion[0] || index > dispersion[1] {
			t.Errorf("%s: %.1f in a second, want 500; index of dispersion %.2f, want %v", process, mean, index, dispersion)
		}
	}
}

// TestServerKeepsWorkThroughChangesOfSpeed: 10 s of work, of which 5 are done at
// speed 1, none while it is frozen from 5 to 7, and the rest at speed 0.5.
func TestServerKeepsWorkThroughChangesOfSpeed(t *testing.T) {
	s := station.Server{Speed: 1, Cores: 1}
	s.Enter(0, 1, 10)
	s.Enter(1, 2, 3)
	s.Advance(5)
	s.Speed = 0
	if got := s.Next(); got != never {
		t.Errorf("frozen: the next end is at %g, want never", got)
	}
	s.Advance(7)
	s.Speed = 0.5
	if got := s.Next(); !near(got, 17) {
		t.Fatalf("the first request ends at %g, want 17", got)
	}
	if done, begun := s.Leave(17); done != 1 || begun != 2 {
		t.Errorf("request %d ended and %d began, want 1 and 2", done, begun)
	}
	if got := s.Next(); !near(got, 23) {
		t.Errorf("the second request ends at %g, want 23", got)
	}
}

// TestSharedServer: two cores, three requests of 2, 4 and 4 s of work.
func TestSharedServer(t *testing.T) {
	s := station.Server{Speed: 1, Cores: 2, Shared: true}
	for i, work := range []float64{2, 4, 4} {
		s.Enter(0, int32(i), work)
	}
	var ends []float64
	for at := s.Next(); at != never; at = s.Next() {
		s.Leave(at)
		ends = append(ends, math.Round(at*1e6)/1e6)
	}
	if want := []float64{3, 5, 5}; !slices.Equal(ends, want) { // 2/3 of a core each, then one each
		t.Errorf("requests end at %v, want %v", ends, want)
	}
}

// TestSignals: one request at a time, of 10 ms, behind a round trip of 4 ms.
func TestSignals(t *testing.T) {
	for signal, want := range map[string]uint32{"connect": 4000, "first-byte": 4000, "last-byte": 14000} {
		r := runOf(t, scenarioOf(map[string]string{
			"requests": "100", "load": "[0.1]", "backends": "[{}]", "delay": "4ms", "signal": signal,
			"arrivals": "{process: deterministic}", "service": "{distribution: deterministic}",
			"algorithms": "[{name: least-time}]",
		}), &reference{})
		if err := r.simulate(); err != nil {
			t.Fatal(err)
		}
		if got := r.nodes[0].loads[0].latency; got < want-1 || got > want {
			t.Errorf("%s: latency %d µs, want %d", signal, got, want)
		}
		if got := r.measure.all.mean(); !near(got, 0.014) {
			t.Errorf("%s: mean sojourn %g, want 0.014", signal, got)
		}
	}
}

// TestNothingIsLost: when all has ended no connection is counted and no record
// is in use, whatever happened on the way.
func TestNothingIsLost(t *testing.T) {
	for _, name := range []string{"random", "least-connection", "least-time", scenario.OracleJSQ} {
		r := runOf(t, scenarioOf(map[string]string{
			"requests": "20000", "load": "[0.9]", "nodes": "[3]", "timeout": "200ms", "delay": "1ms",
			"backends": "[{name: a, count: 5}, {name: b}, {name: c}, {name: d, absent: true}]",
			"changes": `[{at: 5s, action: freeze, backends: b}, {at: 10s, action: recover, backends: b},
			  {at: 6s, action: fail, backends: c}, {at: 9s, action: recover, backends: c},
			  {at: 4s, action: add, backends: d}, {at: 12s, action: remove, backends: d},
			  {at: 13s, action: algorithm, algorithm: round-robin}]`,
			"algorithms": "[{name: " + name + "}]",
		}), &reference{})
		if err := r.simulate(); err != nil {
			t.Fatal(err)
		}
		res := r.result(0.9)
		if res.Unfinished != 0 || r.measure.ended+res.Failed+res.TimedOut != res.Requests {
			t.Errorf("%s: %d answered, %d failed, %d timed out, %d stuck of %d", name,
				r.measure.ended, res.Failed, res.TimedOut, res.Unfinished, res.Requests)
		}
		if name == "random" && (res.Failed == 0 || res.TimedOut == 0) {
			t.Errorf("%s: %d failed and %d timed out, want some of each", name, res.Failed, res.TimedOut)
		}
		for _, n := range append(r.nodes, r.global) {
			for b, l := range n.loads {
				if l.active != 0 {
					t.Errorf("%s: %d connections to backend %d are left", name, l.active, b)
				}
			}
		}
		if len(r.spare) != len(r.requests) {
			t.Errorf("%s: %d of %d records are free", name, len(r.spare), len(r.requests))
		}
	}
}

// TestFrozenBackendKeepsItsRequests: nobody else can end them.
func TestFrozenBackendKeepsItsRequests(t *testing.T) {
	res := simulated(t, scenarioOf(map[string]string{
		"requests": "10000", "load": "[0.5]", "backends": "[{name: a, count: 3}, {name: b}]",
		"changes": "[{at: 10s, action: freeze, backends: b}]", "algorithms": "[{name: round-robin}]",
	}))
	if res.Unfinished < 1900 || res.Unfinished > 2200 {
		t.Errorf("%d requests are stuck, want a fourth of the 8,000 after 10 s", res.Unfinished)
	}
}

// TestSameSeedSameRun: also for two algorithms, which meet the same requests.
func TestSameSeedSameRun(t *testing.T) {
	fields := map[string]string{
		"seed": "7", "requests": "20000", "load": "[0.8]", "backends": "[{count: 9}]", "nodes": "[4]",
		"algorithms": "[{name: least-time}]",
	}
	first, again := simulated(t, scenarioOf(fields)), simulated(t, scenarioOf(fields))
	first.WallSeconds, again.WallSeconds = 0, 0
	if !reflect.DeepEqual(first, again) {
		t.Errorf("two runs of one seed differ:\n%+v\n%+v", first, again)
	}
	fields["seed"] = "8"
	if other := simulated(t, scenarioOf(fields)); other.Mean == first.Mean {
		t.Errorf("two seeds have one mean, %g", other.Mean)
	}
}

// TestTrialOfTheDefaultsIsLeastTime: a trial that changes nothing picks the same.
func TestTrialOfTheDefaultsIsLeastTime(t *testing.T) {
	picks := func(algorithm string) []int {
		r := runOf(t, scenarioOf(map[string]string{
			"seed": "3", "requests": "30000", "load": "[0.8]", "nodes": "[5]",
			"backends": "[{count: 20}, {count: 3, speed: 0.3, weight: 2}, {weight: 0}]", "algorithms": "[" + algorithm + "]",
		}), &reference{})
		var out []int
		r.picked = func(_, backend int) { out = append(out, backend) }
		if err := r.simulate(); err != nil {
			t.Fatal(err)
		}
		return out
	}
	want, got := picks("{name: least-time}"), picks("{name: least-time, trial: {average: 16}}")
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("pick %d is %d, want %d", i, got[i], want[i])
		}
	}
}

// TestAlgorithmSwitches: the new one decides from the next request.
func TestAlgorithmSwitches(t *testing.T) {
	r := runOf(t, scenarioOf(map[string]string{
		"requests": "4000", "load": "[0.5]", "backends": "[{count: 4}]", "algorithms": "[{name: random}]",
		"changes": "[{at: 10s, action: algorithm, algorithm: round-robin}]",
	}), &reference{})
	var last, turns, others int
	r.picked = func(_, backend int) {
		if r.now > 10.1 {
			if backend == (last+1)%4 {
				turns++
			} else {
				others++
			}
		}
		last = backend
	}
	if err := r.simulate(); err != nil {
		t.Fatal(err)
	}
	if others != 0 || turns < 1000 {
		t.Errorf("after the switch %d picks were in turn and %d were not", turns, others)
	}
}

// TestHashChurn: one of ten backends leaves and returns.
func TestHashChurn(t *testing.T) {
	res := simulated(t, scenarioOf(map[string]string{
		"requests": "1000", "load": "[0.5]", "backends": "[{name: a, count: 9}, {name: b}]",
		"changes":    "[{at: 100ms, action: remove, backends: b}, {at: 500ms, action: add, backends: b}]",
		"algorithms": "[{name: hash}]",
	}))
	if res.Moved < 0.19 || res.Moved > 0.3 || res.Excess > 0.1 || res.Moved-res.Excess > 0.22 {
		t.Errorf("moved %.4f, in excess %.4f; want 0.2 and a little", res.Moved, res.Excess)
	}
}

// TestScenarioErrors: each names the file and the field.
func TestScenarioErrors(t *testing.T) {
	const good = "name: x\nrequests: 10\nload: [0.5]\nbackends: [{name: a}]\nalgorithms: [{name: random}]\n"
	for _, tc := range []struct{ name, text, want string }{
		{"unknown field", good + "lod: 3\n", `"lod"`},
		{"unknown field of a list", strings.Replace(good, "{name: a}", "{nam: a}", 1), `"nam"`},
		{"no load", strings.Replace(good, "load: [0.5]", "load: []", 1), "load: missing"},
		{"no backend", strings.Replace(good, "{name: a}", "{name: a, absent: true}", 1), "backends: none"},
		{"bad duration", good + "delay: 5\n", `duration 5: want a string`},
		{"bad distribution", good + "service: {distribution: normal}\n", `service: "normal": want one of exponential`},
		{"unknown algorithm", strings.Replace(good, "random", "maglev", 1), `algorithms: unknown algorithm "maglev"`},
		{"unknown group", good + "changes: [{at: 1s, action: remove, backends: b}]\n", `changes: number 1: backends: no group "b"`},
		{"unknown metric", good + "expect: [{algorithm: random, metric: p98, atMost: 1}]\n", `expect: number 1: no metric "p98"`},
		{"trial of another", strings.Replace(good, "{name: random}", "{name: random, trial: {compare: 2}}", 1), "random: trial: only of"},
		{"too many nodes", good + "nodes: [1001]\n", "nodes: 1001"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "x.yaml")
			if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Read(file)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "x.yaml") {
				t.Errorf("error %v, want the file and %s", err, tc.want)
			}
		})
	}
}
