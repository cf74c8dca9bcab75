// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/observe"
	"github.com/lbproxy/lbproxy/bench/internal/sim"
	"github.com/lbproxy/lbproxy/bench/internal/stats"
	"github.com/lbproxy/lbproxy/bench/result"
)

// maker makes up results that look like those of a run. They are only for tests.
type maker struct {
	t   *testing.T
	rng *rand.Rand
}

func newMaker(t *testing.T) *maker { return &maker{t, rand.New(rand.NewPCG(8, 8))} }

// times is n times around a median, with a tail: one in a hundred is so many times longer.
func (m *maker) times(n int, median, spread, tail float64) *result.Histogram {
	h := result.NewHistogram()
	for range n {
		s := median * math.Exp(spread*m.rng.NormFloat64())
		if m.rng.IntN(100) == 0 {
			s *= tail
		}
		if err := h.RecordValue(int64(s * 1e9)); err != nil {
			m.t.Fatal(err)
		}
	}
	return h
}

// look is how an arm does.
type look struct {
	name, algorithm string
	factor, tail    float64 // of latency
	slow            float64 // share of the slow group over its fair one
	failed          int
}

const exampleRequests = 5000

// block is one of an arm in which requests come as they do.
func (m *maker) block(l look) result.Block {
	noise := 1 + 0.01*m.rng.NormFloat64()
	b := result.Block{
		Seconds: 10, Requests: exampleRequests, Failed: map[string]int{},
		Latency: m.times(exampleRequests, 0.012*l.factor*noise, 0.5, l.tail),
		Connect: m.times(exampleRequests, 90e-6*(0.7+0.3*l.factor)*noise, 0.25, 4),
		CPU:     1.1 * l.factor * noise, Memory: 48e6, Bytes: exampleRequests * 300,
	}
	if l.failed > 0 {
		b.Failed["refused"] = l.failed/4 + m.rng.IntN(3)
	}
	for i := range 16 {
		s := result.Backend{Name: fmt.Sprintf("b%d", i), Group: "usual", Weight: 2}
		share := 1.0
		if i < 2 {
			s.Group, s.Weight, share = "slow", 1, l.slow
		}
		s.Requests = uint64(exampleRequests / 30 * s.Weight * share * (1 + 0.04*m.rng.NormFloat64()))
		b.Backends = append(b.Backends, s)
	}
	for at := 0.0; at < 10; at += 0.5 {
		w := result.Window{Start: at, Requests: exampleRequests / 20, P50: 0.012 * l.factor, P99: 0.05 * l.factor * (1 + 0.1*m.rng.Float64()), Share: map[string]float64{"slow": l.slow / 15}}
		if at >= 4 && at < 6 {
			w.P99 *= l.tail
			w.Failed = uint64(l.failed / 16)
		}
		b.Windows = append(b.Windows, w)
	}
	return b
}

// paced is a scenario with several proxies and algorithms.
func (m *maker) paced() result.Scenario {
	sc := result.Scenario{
		Name: "heterogeneous", Question: "What does an algorithm gain when two of 16 backends are slower, and get slower still?",
		About: "Poisson arrivals at 80 % of the capacity.", File: "bench/scenarios/heterogeneous.yaml",
		Events: []result.Event{{At: 4, What: "slow is 5 times slower"}, {At: 6, What: "slow recovers"}},
	}
	for _, l := range []look{
		{"direct", "", 0.97, 6, 1, 0},
		{"lbproxy-ebpf", "least-time", 1, 2, 0.3, 0},
		{"lbproxy-ebpf", "round-robin", 1.1, 8, 1, 0},
		{"lbproxy-ebpf", "random", 1.3, 12, 1, 40},
		{"lbproxy-iptables", "least-connection", 1.1, 4, 0.6, 0},
		{"kube-proxy-nftables", "random", 1.35, 13, 1, 44},
		{"kube-proxy-iptables", "random", 1.4, 13, 1, 43},
		{"nginx", "least_conn", 1.25, 2.2, 0.4, 0},
		{"haproxy", "leastconn", 0.9, 2, 0.35, 0},
	} {
		a := result.Arm{Name: l.name, Algorithm: l.algorithm}
		for range 12 {
			a.Blocks = append(a.Blocks, m.block(l))
		}
		sc.Arms = append(sc.Arms, a)
	}
	sc.Order = there(len(sc.Arms), 6)
	predicted := m.block(look{"", "", 0.95, 2, 0.3, 0})
	predicted.Connect, predicted.CPU, predicted.Memory = nil, 0, 0
	sc.Arms = append(sc.Arms, result.Arm{Name: sim.Name, Algorithm: "least-time", Blocks: []result.Block{predicted}})
	return sc
}

// there is so many blocks of all arms there and back.
func there(arms, blocks int) []int {
	var out []int
	for range blocks {
		for i := range arms {
			out = append(out, i)
		}
		for i := range arms {
			out = append(out, arms-1-i)
		}
	}
	return out
}

// fast is a scenario in which requests come as fast as they can.
func (m *maker) fast() result.Scenario {
	sc := result.Scenario{Name: "connect", Question: "What does a connection cost?"}
	for i, rate := range []float64{30_000, 29_500, 24_000, 14_000} {
		a := result.Arm{Name: []string{"direct", "lbproxy-ebpf", "kube-proxy-nftables", "kube-proxy-iptables"}[i]}
		for range 12 {
			n := uint64(rate * (1 + 0.02*m.rng.NormFloat64()))
			a.Blocks = append(a.Blocks, result.Block{Seconds: 1, Requests: n, CPU: 1.9, Connect: m.times(3000, 1/rate, 0.2, 3)})
		}
		sc.Arms = append(sc.Arms, a)
	}
	sc.Order = there(4, 6)
	return sc
}

// scale is a curve.
func (m *maker) scale() result.Scale {
	s := result.Scale{Name: "time of a first packet", Unit: "s", X: "Services"}
	for i, name := range []string{"direct", "lbproxy-ebpf", "kube-proxy-nftables", "kube-proxy-iptables"} {
		c := result.Series{Arm: name}
		for _, x := range []float64{1, 100, 1000, 10_000, 30_000} {
			p := result.Point{X: x}
			for range 5 {
				p.Values = append(p.Values, (30e-6+4e-6*float64(i)+float64(i/3)*2e-8*x)*(1+0.05*m.rng.NormFloat64()))
			}
			c.Points = append(c.Points, p)
		}
		s.Series = append(s.Series, c)
	}
	return s
}

func (m *maker) row() result.Row {
	r := result.Row{Group: "program on one packet; baseline: a program that does nothing", Name: "established, warm, ingress/IPv4/TCP", Unit: "ns", How: result.AsDifference, Target: "<= 200 ns", Met: "yes"}
	r.Values, r.Base = []float64{70, 71, 72}, []float64{8, 9, 8}
	r.Result = stats.EstimateOf(stats.Pairs(r.Values, r.Base, stats.Difference))
	return r
}

// file is a whole run.
func (m *maker) file() *result.File {
	return &result.File{
		Command: []string{"go", "run", "./bench", "-set", "full"}, Commit: "0123456789ab",
		Machine:   observe.Machine{Time: time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC), Kernel: "6.18.44 x86_64", CPU: "made up", CPUs: 2, Go: "go1.26", Jit: "1", Harden: "0", LoadBefore: "0.10 0.20 0.30", LoadAfter: "1.90 1.50 0.90"},
		Knobs:     map[string]string{"nginx": "1.26.3", "haproxy": "3.0.11", "net.ipv4.tcp_tw_reuse": "1", "kube-proxy": "v1.37.2"},
		Scenarios: []result.Scenario{m.fast(), m.paced()}, Scales: []result.Scale{m.scale()}, Rows: []result.Row{m.row()},
	}
}
