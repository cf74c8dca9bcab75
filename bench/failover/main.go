// SPDX-License-Identifier: Apache-2.0

// The failover bench measures what clients notice of a backend that fails: with
// lbproxy's health checks, beside what they notice where only the kubelet sees it. Eight
// nodes run lbproxy, in one lab: nothing is sent outside of it.
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
	"github.com/lbproxy/lbproxy/internal/lab"
)

func main() {
	workerMain()
	lab.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench-failover:", err)
		stop()
		os.Exit(1)
	}
}

// plan is how much is measured.
type plan struct {
	nodes   int
	rate    int           // new connections a second of each node
	burst   int           // and of one node more, at the time of a fault
	rounds  int           // of each fault with health
	watch   time.Duration // after a fault, where health is on
	period  time.Duration // of the kubelet's readiness probe
	alone   time.Duration // without agents
	probes  int           // while all processors are busy
	targets int           // that are probed each second
	cpu     time.Duration // while the agent's processor time is measured
}

var (
	quick = plan{
		nodes: 2, rate: 50, burst: 200, rounds: 1, watch: 3 * time.Second, period: time.Second, alone: 3 * time.Second,
		probes: 20_000, targets: 2000, cpu: 4 * time.Second,
	}
	full = plan{
		nodes: 8, rate: 100, burst: 1600, rounds: 8, watch: 6 * time.Second, period: 10 * time.Second, alone: 10 * time.Second,
		probes: 1_000_000, targets: 10_000, cpu: 20 * time.Second,
	}
)

// bench is one run.
type bench struct {
	plan
	program string
	report  *report
}

func run(ctx context.Context) error {
	b := &bench{plan: full}
	flag.StringVar(&b.program, "lbproxy", "bin/lbproxy", "the program to measure")
	isQuick := flag.Bool("quick", false, "only look whether everything runs")
	only := flag.String("only", ".", "measure what matches: ebpf, iptables, ebpf kubelet, iptables kubelet, agents, probes")
	out := flag.String("out", "bench/out/failover.json", "file for all numbers")
	rate := flag.Int("rate", 0, "new connections a second of each node; 0: as planned")
	probes := flag.Int("probes", 0, "while all processors are busy; 0: as planned")
	rounds := flag.Int("rounds", 0, "faults of each kind with health; 0: as planned")
	flag.Parse()
	match, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	if *isQuick {
		b.plan = quick
	}
	if *rate > 0 {
		b.rate = *rate
	}
	if *probes > 0 {
		b.probes = *probes
	}
	if *rounds > 0 {
		b.rounds = *rounds
	}
	b.report = &report{Machine: observe.ThisMachine(), Quick: *isQuick, Nodes: b.nodes, Rate: b.rate, Dense: b.rate + b.burst}
	for _, part := range b.parts() {
		if !match.MatchString(part.name) {
			continue
		}
		begin := time.Now()
		if err := part.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		fmt.Fprintf(os.Stderr, "bench-failover: %s took %s\n", part.name, time.Since(begin).Round(time.Second))
	}
	b.report.Machine.LoadAfter = observe.Load()
	if err := observe.Save(*out, b.report); err != nil {
		return err
	}
	return b.report.print(os.Stdout)
}

// part is one thing that is measured.
type part struct {
	name string
	run  func(context.Context) error
}

func (b *bench) parts() []part {
	parts := []part{}
	for _, a := range arms {
		parts = append(parts, part{a.name, func(ctx context.Context) error { return b.faults(ctx, a) }})
	}
	return append(parts, part{"agents", b.agents}, part{"probes", b.manyProbes})
}
