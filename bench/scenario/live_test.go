// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"math"
	"strings"
	"testing"
)

// TestLiveErrors: each names what is wrong.
func TestLiveErrors(t *testing.T) {
	const good = "name: x\nrequests: 10\nload: [0.5]\nbackends: [{name: a}]\nalgorithms: [{name: random}]\nlive: "
	for live, want := range map[string]string{
		"{arms: [direct, nginx random two, lbproxy-ebpf]}": "",
		"{arms: []}":                                               "arms: missing",
		"{arms: [envoy]}":                                          `"envoy": no such proxy`,
		"{arms: [nginx leastconn]}":                                `nginx has no "leastconn": want one of round-robin, least_conn`,
		"{arms: [direct], traffic: http}":                          `"http": want one of request`,
		"{arms: [direct], entry: ingress}":                         `"ingress": want one of clusterip`,
		"{arms: [direct], services: [0]}":                          "services: 0",
		"{arms: [direct], services: [1, 10]}":                      "services: only one number",
		"{arms: [direct], services: [1, 10], traffic: connect}":    "",
		"{arms: [direct], mode: closed, workers: -1}":              "workers",
		"{arms: [direct], traffic: connect, seconds: 1s, rate: 2}": `"rate"`,
	} {
		_, err := Parse([]byte(good + live + "\n"))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("live: %s: error %v, want %q", live, err, want)
		}
	}
}

// TestArm: what has no algorithm in its name has the proxy's first one.
func TestArm(t *testing.T) {
	for text, want := range map[string][2]string{
		"direct": {"direct", ""}, "direct oracle-jsq": {"direct", OracleJSQ}, "kube-proxy-iptables": {"kube-proxy-iptables", "random"},
		"nginx random two": {"nginx", "random two"}, "haproxy": {"haproxy", "roundrobin"},
	} {
		name, algorithm, err := Arm(text)
		if err != nil || [2]string{name, algorithm} != want {
			t.Errorf("%q is %q %q (%v), want %q", text, name, algorithm, err, want)
		}
	}
}

// TestWork: the mean of every distribution is what the scenario says.
func TestWork(t *testing.T) {
	for _, s := range []Service{
		{Distribution: "exponential"}, {Distribution: "deterministic"}, {Distribution: "lognormal", CV: 1},
		{Distribution: "pareto", Alpha: 1.5, Span: 1000}, {Distribution: "bimodal", Long: 0.1, Span: 10},
	} {
		s.Mean = Duration(10e6)
		draw, sum := s.Draw(Stream(5, StreamWork)), 0.0
		const n = 400_000
		for range n {
			sum += draw()
		}
		if mean := sum / n; math.Abs(mean/0.01-1) > 0.03 {
			t.Errorf("%s: mean %g, want 0.01", s.Distribution, mean)
		}
	}
}
