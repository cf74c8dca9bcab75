// SPDX-License-Identifier: Apache-2.0

package live

import (
	"flag"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/bench/result"
	"github.com/lbproxy/lbproxy/bench/scenario"
)

var update = flag.Bool("update", false, "write the golden files")

func TestTurns(t *testing.T) {
	if got, want := turns(3, 2), []int{0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0}; !slices.Equal(got, want) {
		t.Errorf("three arms take turns as %v, want %v", got, want)
	}
}

// TestSets: every shipped scenario with a live part has a question; the quick set is as
// short as CI wants it, and has the baseline, lbproxy and another proxy of each.
func TestSets(t *testing.T) {
	t.Chdir("../..")
	for set, limit := range map[string]time.Duration{Quick: 5 * time.Minute, Full: 2 * time.Hour} {
		plans, err := choose(set, "")
		if err != nil {
			t.Fatal(err)
		}
		var sum time.Duration
		for i := range plans {
			p := &plans[i]
			sum += p.duration()
			if p.sc.Question == "" {
				t.Errorf("%s: no question", p.file)
			}
			if set == Quick && (len(p.arms) != 3 || p.arms[0].name != "direct") {
				t.Errorf("%s: the quick set has %v, want direct and two more", p.file, p.arms)
			}
		}
		if len(plans) < 11 || sum > limit {
			t.Errorf("%s: %d scenarios take %s, want 11 or more in at most %s", set, len(plans), sum, limit)
		}
	}
	if _, err := choose("", "equal"); err == nil {
		t.Error("a scenario without live can be run in the lab")
	}
}

func TestFew(t *testing.T) {
	arms := []arm{{"direct", ""}, {"direct", "oracle-jsq"}, {"lbproxy-ebpf", "random"}, {"lbproxy-ebpf", "least-time"}, {"nginx", "hash"}, {"haproxy", "source"}}
	want := []arm{arms[0], arms[3], arms[5]}
	if got := few(arms); !slices.Equal(got, want) {
		t.Errorf("of %v there remain %v, want %v", arms, got, want)
	}
}

// pools are of two algorithms, with a backend of another weight.
func pools(algorithms ...string) []pool {
	var out []pool
	for i, a := range algorithms {
		out = append(out, pool{algorithm: a, udp: i == len(algorithms)-1 && a == "random two", servers: []poolServer{
			{netip.MustParseAddrPort("10.128.0.1:8080"), 1}, {netip.MustParseAddrPort("10.128.0.2:8080"), 3},
		}})
	}
	return out
}

// TestPeerConfigurations: the golden files are what nginx and haproxy are told.
func TestPeerConfigurations(t *testing.T) {
	for name, algorithms := range scenario.Arms {
		if name != "nginx" && name != "haproxy" {
			continue
		}
		got, file := render(name, "/run/peer", pools(algorithms...)), filepath.Join("testdata", name+".conf")
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
		}
	}
}

func parse(t *testing.T, text string) *scenario.Scenario {
	t.Helper()
	sc, err := scenario.Parse([]byte("name: x\nrequests: 10\nload: [0.5]\nlive: {arms: [direct]}\n" + text))
	if err != nil {
		t.Fatal(err)
	}
	return sc
}

// TestChooser: a client without a proxy takes backends in turn, follows those that leave and
// join, and as an oracle goes where it waits least.
func TestChooser(t *testing.T) {
	sc := parse(t, `backends: [{name: a}, {name: b, speed: 0.25}, {name: c, absent: true}]
algorithms: [{name: random}]
changes: [{at: 1s, action: add, backends: c}, {at: 2s, action: remove, backends: a}, {at: 3s, action: fail, backends: b}]
`)
	for rule, want := range map[string][]int{
		"":                 {0, 1, 0, 1, 2, 0, 1, 2, 1, 2},
		scenario.OracleSED: {0, 0, 0, 0, 2, 2, 2}, // b, four times slower, is the better one only when a has four
	} {
		c := newChooser(sc, rule)
		var got []int
		for i, at := range []float64{0, 0, 0, 0.9, 1, 1, 1, 1, 2, 3}[:len(want)] {
			if rule == scenario.OracleSED && i == 3 {
				c.leave(0)
			}
			got = append(got, c.enter(at))
		}
		if !slices.Equal(got, want) {
			t.Errorf("rule %q: %v, want %v", rule, got, want)
		}
	}
	c := newChooser(sc, scenario.OracleJSQ)
	first, second := c.enter(0), c.enter(0)
	if first == second {
		t.Errorf("both requests go to %d, want the one with fewer", first)
	}
	c.leave(first)
	if third := c.enter(0); third != first {
		t.Errorf("the third request goes to %d, want %d, which is free", third, first)
	}
}

// TestSummary: times count from when a request should have begun; one that was given up
// counts with the time it waited, one that was refused as if it had waited as long.
func TestSummary(t *testing.T) {
	sc := parse(t, "backends: [{name: a}, {name: b}]\nalgorithms: [{name: random}]\nwindow: 1s\ntimeout: 5s\n")
	out := summarize(sc, []record{
		{at: 0.1, late: 0.5, connect: 0.6, took: 0.7, backend: 0},
		{at: 0.2, connect: 0.001, took: 0.1, backend: 1},
		{at: 1.5, took: 5, backend: -1, failure: timedOut},
		{at: 1.6, took: 0.001, backend: -1, failure: "refused"},
	})
	if out.Requests != 4 || !reflect.DeepEqual(out.Failed, map[string]int{timedOut: 1, "refused": 1}) {
		t.Errorf("%d requests, failed %v", out.Requests, out.Failed)
	}
	if n, most := out.Latency.TotalCount(), float64(out.Latency.Max())/1e9; n != 4 || math.Abs(most-5) > 0.01 {
		t.Errorf("%d latencies up to %g s, want 4 up to 5", n, most)
	}
	if third := float64(out.Latency.ValueAtQuantile(75)) / 1e9; math.Abs(third-5) > 0.01 {
		t.Errorf("the second slowest of four took %g s, want the client's patience of 5", third)
	}
	if out.Late != 0.5 || out.Connect.TotalCount() != 2 {
		t.Errorf("p99 of the lateness %g, %d connects; want 0.5 and 2", out.Late, out.Connect.TotalCount())
	}
	want := []result.Window{
		{Start: 0, Requests: 2, P50: 0.7, P99: 0.7, Share: map[string]float64{"a": 0.5, "b": 0.5}},
		{Start: 1, Requests: 2, Failed: 2, P50: 5, P99: 5},
	}
	if !reflect.DeepEqual(out.Windows, want) {
		t.Errorf("windows %+v, want %+v", out.Windows, want)
	}
}

// TestMoved: of three clients that are seen before and after, one moved when a backend left,
// and all are back when it is.
func TestMoved(t *testing.T) {
	sc := parse(t, `backends: [{name: a}, {name: b}]
algorithms: [{name: hash}]
changes: [{at: 5s, action: remove, backends: b}, {at: 10s, action: add, backends: b}]
`)
	var records []record
	for _, r := range [][3]int{ // at, client, backend
		{1, 1, 0}, {1, 2, 1}, {1, 3, 0}, {2, 4, 0}, // client 4 is not seen again
		{5, 3, 1}, // too soon after the change
		{8, 1, 0}, {8, 2, 0}, {9, 3, 0}, {12, 1, 0}, {12, 2, 1}, {12, 3, 0},
	} {
		records = append(records, record{at: float64(r[0]), client: r[1], backend: r[2]})
	}
	first, last := moved(sc, records)
	if first == nil || math.Abs(*first-1.0/3) > 1e-9 || last == nil || *last != 0 {
		t.Errorf("moved %v, and in the end %v; want a third and none", first, last)
	}
	sc.Algorithms[0].Name = "random"
	if first, _ := moved(sc, records); first != nil {
		t.Error("clients move where nothing keeps them")
	}
}

func TestCountDatagrams(t *testing.T) {
	const snmp = "Ip: Forwarding\nIp: 1\nUdp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors\nUdp: 10 1 2 3 40\nUdpLite: InDatagrams\nUdpLite: 7\n"
	if n, err := countDatagrams(snmp); err != nil || n != 50 {
		t.Errorf("%d datagrams, %v; want 50", n, err)
	}
	if _, err := countDatagrams("Ip: 1\n"); err == nil {
		t.Error("no error without a line of UDP")
	}
}

func TestTimeLeft(t *testing.T) {
	for _, tc := range []struct{ passed, planned, total, want time.Duration }{
		{0, 0, time.Minute, time.Minute},
		{20 * time.Second, 3 * time.Second, time.Minute, 57 * time.Second}, // too early to tell
		{40 * time.Second, 20 * time.Second, time.Minute, 80 * time.Second},
		{40 * time.Second, 2 * time.Minute, time.Minute, 0},
	} {
		if got := timeLeft(tc.passed, tc.planned, tc.total); got != tc.want {
			t.Errorf("after %s, in which %s of %s were planned: %s left, want %s", tc.passed, tc.planned, tc.total, got, tc.want)
		}
	}
}

// TestDrift compares the halves of the baseline's blocks.
func TestDrift(t *testing.T) {
	sc := parse(t, "backends: [{name: a}]\nalgorithms: [{name: random}]\n")
	sc.Live.Traffic = scenario.Connect
	blocks := []result.Block{{Requests: 100, Seconds: 1}, {Requests: 100, Seconds: 1}, {Requests: 90, Seconds: 1}, {Requests: 110, Seconds: 1}}
	if got := drift(sc, blocks); math.Abs(got) > 1e-9 {
		t.Errorf("drift %g, want none: the halves are equal", got)
	}
	blocks[3].Seconds = 2
	if got := drift(sc, blocks); math.Abs(got-(200.0/145-1)) > 1e-9 {
		t.Errorf("drift %g, want %g", got, 200.0/145-1)
	}
}
