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

	"github.com/lbproxy/lbproxy/internal/algo"
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
	g, err := runGobench(ctx, binary, "^Benchmark(Null|Established|Foreign|NewConnection)$", sz.gobench, sz.passes)
	if err != nil {
		return nil, err
	}
	const group = "program on one packet (BPF_PROG_TEST_RUN); baseline: a program that does nothing"
	null := g["Null/packet ns/packet"]
	var rows []row
	for _, kind := range []struct {
		name, key, unit string
		most            *limit
	}{
		{"established, warm", "Established/flows=2/", "ns/packet", atMost(200, "<= 200 ns")},
		{"established, 65,536 flows in turn", "Established/flows=65536/", "ns/packet", nil},
		{"foreign", "Foreign/", "ns/packet", nil},
		{"new connection, 2,000 Services in turn", "NewConnection/flows=2000/", "ns/connection", atMost(450, "<= 450 ns")},
		{"new connection, 30,000 Services in turn", "NewConnection/flows=30000/", "ns/connection", nil},
	} {
		for _, hook := range []string{"ingress", "egress"} {
			for _, packet := range []string{"IPv4/TCP", "IPv4/UDP", "IPv6/TCP", "IPv6/UDP"} {
				for _, snat := range []string{"", "/snat"} {
					c := hook + "/" + packet + snat
					if values := g[kind.key+c+" "+kind.unit]; values != nil {
						rows = append(rows, newRow(group, kind.name+", "+c, "ns", asDifference, values, null, kind.most))
					}
				}
			}
		}
	}
	return rows, nil
}

// pickSizes are the numbers of backends that picks are measured with.
var pickSizes = []int{1, 10, 100, 1000}

// picks measures what choosing costs, by algorithm and number of backends: the choice
// alone, over and over on the same table, and the first packet of a connection to a
// Service that no packet went to just before.
func picks(ctx context.Context, binary, pickTest string, sz size) ([]row, error) {
	alone, err := runGobench(ctx, pickTest, "^BenchmarkKernelPick$", sz.gobench, sz.passes)
	if err != nil {
		return nil, err
	}
	whole, err := runGobench(ctx, binary, "^Benchmark(Null|Pick)$", sz.gobench, sz.passes)
	if err != nil {
		return nil, err
	}
	var rows []row
	for _, kind := range []struct {
		group, key, unit string
		from             gobench
	}{
		{"choice alone, on the same table again and again (BPF_PROG_TEST_RUN)", "KernelPick/%s/%d", "ns/pick", alone},
		{"first packet of a connection (BPF_PROG_TEST_RUN), each to another Service", "Pick/%s/backends=%d", "ns/connection", whole},
	} {
		for _, name := range algo.Names() {
			for _, n := range pickSizes {
				rows = append(rows, newRow(kind.group+"; baseline: a program that does nothing", fmt.Sprintf("%s of %d", name, n), "ns",
					asRatio, kind.from[fmt.Sprintf(kind.key, name, n)+" "+kind.unit], whole["Null/packet ns/packet"], nil))
			}
		}
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
