// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// gobench are the results of rounds of a test binary's benchmarks, by
// "name unit".
type gobench map[string][]float64

// runGobench runs the benchmarks that match pattern, all of them in each round.
func runGobench(ctx context.Context, binary, pattern, benchtime string, rounds int) (gobench, error) {
	out := gobench{}
	path, err := filepath.Abs(binary)
	if err != nil {
		return nil, fmt.Errorf("benchmarks: %w", err)
	}
	for range rounds {
		cmd := exec.CommandContext(ctx, path, "-test.run=^$", "-test.bench="+pattern, "-test.benchtime="+benchtime)
		var text bytes.Buffer
		cmd.Stdout, cmd.Stderr = &text, os.Stderr
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("benchmarks %s: %w\n%s", pattern, err, text.String())
		}
		out.add(text.String())
	}
	return out, nil
}

// add reads lines "BenchmarkName-2  N  12.3 ns/op  4 p50-ns/change".
func (g gobench) add(text string) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(f[0], "Benchmark")
		if i := strings.LastIndexByte(name, '-'); i > 0 {
			name = name[:i]
		}
		for i := 2; i+1 < len(f); i += 2 {
			if x, err := strconv.ParseFloat(f[i], 64); err == nil {
				key := name + " " + f[i+1]
				g[key] = append(g[key], x)
			}
		}
	}
}

// packets runs the programs on made-up packets.
func packets(ctx context.Context, binary string, sz size) ([]row, error) {
	const (
		group = "program on one packet (BPF_PROG_TEST_RUN); baseline: a program that does nothing"
		unit  = "ns/packet"
	)
	g, err := runGobench(ctx, binary, "^Benchmark(Null|Established|Foreign|NewConnection)$", sz.gobench, sz.passes)
	if err != nil {
		return nil, err
	}
	var rows []row
	null := g["Null/packet "+unit]
	for _, f := range []string{"IPv4/TCP", "IPv4/UDP", "IPv6/TCP", "IPv6/UDP"} {
		rows = append(rows, newRow(group, "established, ingress "+f, "ns", asDifference,
			g["Established/flows=2/ingress/"+f+" "+unit], null, atMost(200, "<= 200 ns")))
	}
	for _, c := range []string{"ingress/IPv4/TCP/snat", "ingress/IPv6/TCP/snat", "egress/IPv4/TCP", "egress/IPv6/TCP",
		"egress/IPv4/TCP/snat", "egress/IPv6/TCP/snat"} {
		rows = append(rows, newRow(group, "established, "+c, "ns", asDifference,
			g["Established/flows=2/"+c+" "+unit], null, atMost(200, "<= 200 ns")))
	}
	for _, c := range []string{"ingress/IPv4/TCP", "ingress/IPv6/TCP", "egress/IPv4/TCP"} {
		rows = append(rows, newRow(group, "established, 65536 flows in turn, "+c, "ns", asDifference,
			g["Established/flows=65536/"+c+" "+unit], null, nil))
	}
	for _, c := range []string{"ingress/IPv4/TCP", "ingress/IPv4/UDP", "ingress/IPv6/TCP", "egress/IPv4/TCP", "egress/IPv6/TCP"} {
		rows = append(rows, newRow(group, "foreign, "+c, "ns", asDifference, g["Foreign/"+c+" "+unit], null, nil))
	}
	for _, c := range []string{"ingress/IPv4/TCP", "ingress/IPv4/UDP", "ingress/IPv6/TCP", "ingress/IPv4/TCP/snat"} {
		rows = append(rows, newRow(group, "new connection, "+c, "ns", asDifference,
			g["NewConnection/"+c+" ns/connection"], null, atMost(450, "<= 450 ns")))
	}
	return rows, nil
}

// commits measures the agent's writes.
func commits(ctx context.Context, binary string, sz size) ([]row, error) {
	g, err := runGobench(ctx, binary, "^Benchmark(SyncOne|SyncFull|Reclaim|Commit)$", sz.gobench, max(1, sz.passes/2))
	if err != nil {
		return nil, err
	}
	const group = "one change in the dataplane (Sync)"
	small, big := g["SyncOne/services=1000 p50-ns/change"], g["SyncOne/services=10000 p50-ns/change"]
	rows := []row{
		newRow(group, "1 backend of 1,000 Services, p50", "ns", asValue, small, nil, atMost(1e6, "<= 1 ms")),
		newRow(group, "1 backend of 10,000 Services, p50; vs. 1,000", "ns", asRatio, big, small, atMost(1.5, "same")),
		newRow(group, "1 backend of 1,000 Services, p99", "ns", asValue, g["SyncOne/services=1000 p99-ns/change"], nil, nil),
		newRow(group, "1 backend of 10,000 Services, p99", "ns", asValue, g["SyncOne/services=10000 p99-ns/change"], nil, nil),
		newRow(group, "cleaning up after it, 1,000 Services", "ns", asValue, g["Reclaim/services=1000 ns/reclaim"], nil, nil),
		newRow(group, "cleaning up after it, 10,000 Services", "ns", asValue, g["Reclaim/services=10000 ns/reclaim"], nil, nil),
		newRow(group, "everything: 10,000 Services x 10", "ns", asValue, g["SyncFull/services=10000 ns/sync"], nil,
			atMost(2e9, "<= 2 s")),
	}
	word := g["Commit/word ns/commit"]
	for _, n := range []int{1, 3, 5, 10} {
		rows = append(rows, newRow("ADR: commit by one store; against one system call per frontend",
			fmt.Sprintf("%d frontends by system call; vs. the word", n), "ns", asRatio,
			g[fmt.Sprintf("Commit/frontends=%d ns/commit", n)], word, nil))
	}
	return rows, nil
}
