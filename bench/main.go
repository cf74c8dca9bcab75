// SPDX-License-Identifier: Apache-2.0

// The bench measures what lbproxy costs, as ratios to what the same machine does
// without it in the same minutes, and prints one table with the targets beside.
// With -scenario or -set it runs scenarios instead, beside other proxies: see package live.
// With -report it measures nothing and shows what was measured: see docs/BENCHMARKS.md.
// Everything happens in labs: nothing is sent outside of them.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/observe"
	"github.com/lbproxy/lbproxy/bench/internal/report"
	"github.com/lbproxy/lbproxy/bench/internal/worker"
	"github.com/lbproxy/lbproxy/bench/live"
	results "github.com/lbproxy/lbproxy/bench/result"
	"github.com/lbproxy/lbproxy/internal/lab"
)

func main() {
	worker.Main(workerKind, newServer)
	live.Main()
	lab.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// suite is one part of the bench.
type suite struct {
	name string
	run  func(context.Context, size) ([]row, error)
}

// sizes turns a benchtime as of go test into what is measured: 1x is a smoke run,
// 1s the default.
func sizes(benchtime string) (size, error) {
	if benchtime == "1x" {
		return size{blocks: 2, connects: 100, rounds: 200, stream: 40 * time.Millisecond,
			passes: 1, gobench: "1x", services: 500, changes: 10, starts: 1}, nil
	}
	d, err := time.ParseDuration(benchtime)
	if err != nil || d <= 0 {
		return size{}, fmt.Errorf("benchtime %q: want 1x or a duration", benchtime)
	}
	scale := func(n int) int { return max(2, int(float64(n)*d.Seconds())) }
	return size{blocks: scale(20), connects: 1000, rounds: 2000, stream: 100 * time.Millisecond,
		passes: scale(5), gobench: "50ms", services: 10_000, changes: 100, starts: min(3, scale(2))}, nil
}

// suites are all parts, in their order.
func suites(p *paths, program, ebpfTest, pickTest string) []suite {
	return []suite{
		{"connect", p.connects}, {"hook", p.hooks}, {"rr", p.exchanges}, {"stream", p.streams},
		{"packet", func(ctx context.Context, sz size) ([]row, error) { return packets(ctx, ebpfTest, sz) }},
		{"pick", func(ctx context.Context, sz size) ([]row, error) { return picks(ctx, ebpfTest, pickTest, sz) }},
		{"commit", func(ctx context.Context, sz size) ([]row, error) { return commits(ctx, ebpfTest, sz) }},
		{"agent", pipeline},
		{"start", func(ctx context.Context, sz size) ([]row, error) { return starts(ctx, program, sz) }},
	}
}

// command is what repeats this run.
func command() []string { return append([]string{"go", "run", "./bench"}, os.Args[1:]...) }

func run(ctx context.Context) error {
	benchtime := flag.String("benchtime", "1s", "1x, or how long for, in proportion to 1s")
	program := flag.String("lbproxy", "bin/lbproxy", "the program to measure")
	ebpfTest := flag.String("ebpf", "bin/ebpf.test", "the compiled tests of internal/dataplane/ebpf")
	pickTest := flag.String("pick", "bin/pick.test", "the compiled tests of internal/algo/picktest")
	only := flag.String("only", ".", "run the suites whose names match: connect, hook, rr, stream, packet, pick, commit, agent, start")
	out := flag.String("out", "bench/out/latest.json", "file for all numbers")
	opts := live.Options{Command: command()}
	flag.StringVar(&opts.Out, "result", "bench/out/scenarios.json", "file for all numbers of scenarios")
	flag.StringVar(&opts.Scenarios, "scenario", "", "run these scenarios of bench/scenarios in labs, with all their arms; `NAMES` with commas between them")
	flag.StringVar(&opts.Set, "set", "", "run all scenarios in labs, or those of -scenario: full, or quick, which only shows that everything runs")
	var rep report.Options
	flag.StringVar(&rep.Results, "report", "", "measure nothing, and report the results of these `FILES` with commas between them")
	flag.StringVar(&rep.Page, "html", "", "report: `FILE` for a page")
	flag.StringVar(&rep.Markdown, "markdown", "", "report: Markdown `FILES` whose tables between markers are written anew")
	flag.StringVar(&rep.Compact, "compact", "", "report: `FILE` for the results in short, to be kept")
	flag.Parse()
	if rep.Results != "" {
		return report.Write(rep)
	}
	if opts.Program = *program; opts.Scenarios != "" || opts.Set != "" {
		return live.Run(ctx, opts)
	}
	sz, err := sizes(*benchtime)
	if err != nil {
		return err
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	p, err := newPaths(ctx)
	if err != nil {
		return err
	}
	r := &results.File{Command: command(), Machine: observe.ThisMachine(), Quick: *benchtime == "1x"}
	err = p.balanced.lab.Host(lab.Node).Do(func() error {
		r.Machine.Congestion = observe.ReadWord("/proc/sys/net/ipv4/tcp_congestion_control")
		return nil
	})
	for _, s := range suites(p, *program, *ebpfTest, *pickTest) {
		if err != nil || !match.MatchString(s.name) {
			continue
		}
		begin := time.Now()
		var rows []row
		rows, err = s.run(ctx, sz)
		r.Rows = append(r.Rows, rows...)
		r.Machine.LoadAfter = observe.Load()
		if err == nil { // a later part may fail, or be waited for in vain
			err = observe.Save(*out, r)
		}
		fmt.Fprintf(os.Stderr, "bench: %s took %s\n", s.name, time.Since(begin).Round(time.Millisecond))
	}
	if cerr := p.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return printRows(os.Stdout, r)
}
