// SPDX-License-Identifier: Apache-2.0

// The control bench measures how fast lbproxy follows a big cluster, beside a real
// kube-proxy on the same machine that is fed the same objects by the same API
// server. Everything happens in labs: nothing is sent outside of them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/node"
	"github.com/lbproxy/lbproxy/bench/internal/observe"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lab/nested"
)

func main() {
	floorMain()
	holderMain()
	node.AidMain()
	lab.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench-control:", err)
		stop()
		os.Exit(1)
	}
}

// plan is how much is measured.
type plan struct {
	scales  []scale
	changes int           // of lbproxy, alone
	blocks  int           // that these are made in, in turn at each scale
	rate    int           // of a storm, per second
	storm   time.Duration // how long it takes
	settle  time.Duration // until memory is looked at
	budget  time.Duration // for the changes of one kube-proxy
	cold    time.Duration // for one start
	long    time.Duration // after which no kube-proxy is begun, from the end of what is beside each other

	compare scale // of what is measured beside each other
	starts  int   // of each arm there
	firsts  int   // packets of each kind, arm and block there

	stale    scale // of what is removed with sockets connected to it
	holders  int   // network namespaces with such a socket
	removals int
}

var (
	quick = plan{
		scales: []scale{{1000, 10}}, changes: 60, blocks: 2, rate: 1000, storm: time.Second,
		settle: 2 * time.Second, budget: 3 * time.Second, cold: 30 * time.Second, long: 45 * time.Second,
		compare: scale{1000, 10}, starts: 1, firsts: 50,
		stale: scale{1000, 1}, holders: 10, removals: 5,
	}
	full = plan{
		scales:  []scale{{1000, 10}, {10_000, 10}, {44_000, 10}, {1, 5000}},
		changes: 300, blocks: 10, rate: 1000, storm: 5 * time.Second,
		settle: 6 * time.Second, budget: 12 * time.Second, cold: 150 * time.Second, long: 40 * time.Minute,
		compare: scale{10_000, 10}, starts: 3, firsts: 100,
		stale: scale{1000, 1}, holders: 50, removals: 100,
	}
)

// bench is one run.
type bench struct {
	plan
	arms   []arm
	rivals []arm
	worlds []*world // one for each scale
	end    time.Time
	most   map[string]int // Services with which a mode of kube-proxy could not start
	report *report
}

func run(ctx context.Context) error {
	program := flag.String("lbproxy", "bin/lbproxy", "the program to measure")
	isQuick := flag.Bool("quick", false, "only look whether everything runs")
	only := flag.String("only", ".", "measure the arms whose names match: lbproxy, lbproxy iptables, iptables 1s, nftables 0s and so on")
	sizes := flag.String("scales", ".", `measure at the scales whose names match, as in "10000 Services x 10"`)
	starts := flag.Int("starts", 0, "start each arm that is measured beside others so often; 0: as planned")
	out := flag.String("out", "bench/out/control.json", "file for all numbers")
	flag.Parse()
	b := &bench{plan: full, most: map[string]int{}, report: &report{Machine: observe.ThisMachine(), Quick: *isQuick}}
	if *isQuick {
		b.plan = quick
	}
	if *starts > 0 {
		b.starts = *starts
	}
	if err := b.choose(ctx, *program, *only, *sizes); err != nil {
		return err
	}
	if err := precise(); err != nil {
		return err
	}
	b.report.compared = b.compare
	if err := b.measure(ctx); err != nil {
		return err
	}
	b.report.Machine.LoadAfter = observe.Load()
	if err := b.report.save(*out); err != nil {
		return err
	}
	return b.report.print(os.Stdout)
}

// choose finds the programs, and keeps the arms and scales whose names match.
func (b *bench) choose(ctx context.Context, program, only, sizes string) error {
	match, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	matchScale, err := regexp.Compile(sizes)
	if err != nil {
		return fmt.Errorf("-scales: %w", err)
	}
	lbproxy, err := filepath.Abs(program)
	if err != nil {
		return fmt.Errorf("-lbproxy: %w", err)
	}
	paths, err := nested.Build(ctx, nested.Program{
		Dir: "bench/control/kube-proxy", Module: "k8s.io/kubernetes", Flags: nested.Kubernetes,
	})
	if err != nil {
		return err
	}
	if b.report.Tools, err = tools(ctx); err != nil {
		return err
	}
	b.scales = slices.DeleteFunc(slices.Clone(b.scales), func(s scale) bool { return !matchScale.MatchString(s.String()) })
	b.arms = slices.DeleteFunc(arms(lbproxy, paths[0]), func(a arm) bool { return !match.MatchString(a.name) })
	b.rivals = b.chooseRivals(rivals(lbproxy, paths[0], b.report.Quick), match, matchScale)
	if !matchScale.MatchString(b.stale.String()) {
		b.removals = 0
	}
	if (len(b.arms) == 0 || len(b.scales) == 0 && b.removals == 0) && len(b.rivals) == 0 {
		return errors.New("-only and -scales leave nothing to measure")
	}
	return nil
}

// measure measures every arm. This process collects its garbage between the
// measurements only.
func (b *bench) measure(ctx context.Context) error {
	debug.SetGCPercent(-1)
	begin := time.Now()
	if err := b.beside(ctx, b.rivals); err != nil {
		return fmt.Errorf("beside: %w", err)
	}
	b.log("beside: all took %s", time.Since(begin).Round(time.Second))
	b.end = time.Now().Add(b.long)
	for _, s := range b.scales {
		w, err := newWorld(s, false)
		if err != nil {
			return err
		}
		b.worlds = append(b.worlds, w)
	}
	for _, a := range b.arms {
		runtime.GC()
		begin := time.Now()
		var err error
		if a.ebpf() {
			err = errors.Join(b.together(ctx, a), b.destroy(ctx, a))
		} else {
			err = b.oneByOne(ctx, a)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		b.log("%s: all took %s", a.name, time.Since(begin).Round(time.Second))
	}
	return nil
}

func (b *bench) log(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench-control: "+format+"\n", args...)
}

// together runs lbproxy at every scale at once, in a lab each, so that changes at
// one scale are compared with those at another of the same moments.
func (b *bench) together(ctx context.Context, a arm) (err error) {
	if len(b.worlds) == 0 {
		return nil
	}
	var sites []*site
	defer func() {
		for _, s := range sites {
			err = errors.Join(err, s.close())
		}
	}()
	for _, w := range b.worlds {
		s, err := cold(ctx, a, w, b.cold)
		if err != nil {
			return err
		}
		sites = append(sites, s)
		b.log("%s, %s: started in %.2f s", a.name, w.scale, s.results[rowStart].Of)
	}
	f, err := newFloor(ctx, b.worlds[0])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	if err := node.Sleep(ctx, b.settle); err != nil {
		return err
	}
	for range b.blocks {
		runtime.GC()
		for _, s := range append(sites, f) {
			if err := s.alone(ctx, b.changes/b.blocks, time.Minute); err != nil {
				return err
			}
		}
	}
	f.summarize()
	b.report.add(f)
	for _, s := range sites {
		err := b.finish(ctx, s)
		if err == nil {
			err = s.restart(ctx, b.cold)
		}
		b.report.add(s)
		if err := b.failed(ctx, s.arm, s.place.world, err); err != nil {
			return err
		}
	}
	return nil
}

// failed notes an error of one arm at one scale. It returns one if that is the end
// of everything.
func (b *bench) failed(ctx context.Context, a arm, w *world, err error) error {
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	line := fmt.Sprintf("%s, %s: %v", a.name, w.scale, err)
	b.log("%s", line)
	b.report.Failed = append(b.report.Failed, line)
	return nil
}

// oneByOne runs a kube-proxy at one scale after the other. A mode that could not
// start at one is not tried at larger ones.
func (b *bench) oneByOne(ctx context.Context, a arm) error {
	for _, w := range b.worlds {
		var err error
		most, failed := b.most[a.Mode]
		switch left := time.Until(b.end); {
		case failed && w.services >= most:
			err = errTooMany
		case left < b.budget:
			err = errLate
		default:
			err = b.one(ctx, a, w, min(b.cold, left))
		}
		if err := b.failed(ctx, a, w, err); err != nil {
			return err
		}
	}
	return nil
}

// Why something is left out.
var (
	errTooMany = errors.New("not tried, because it failed with as many Services before, or with fewer")
	errLate    = errors.New("not tried, because the run has taken long enough")
)

func (b *bench) one(ctx context.Context, a arm, w *world, limit time.Duration) (err error) {
	runtime.GC()
	s, err := cold(ctx, a, w, limit)
	if err != nil {
		b.most[a.Mode] = w.services
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	b.log("%s, %s: started in %.2f s", a.name, w.scale, s.results[rowStart].Of)
	defer b.report.add(s)
	if err := node.Sleep(ctx, b.settle); err != nil {
		return err
	}
	if err := s.alone(ctx, b.changes, b.budget); err != nil {
		return err
	}
	return b.finish(ctx, s)
}

// finish measures what follows changes made alone.
func (b *bench) finish(ctx context.Context, s *site) error {
	s.summarize()
	if err := s.memory(ctx, b.settle); err != nil {
		return err
	}
	if s.place.world.services < b.rate {
		return nil // a storm of changes of one Service is another question
	}
	b.log("%s, %s: %d changes/s", s.name, s.place.world.scale, b.rate)
	return s.storm(ctx, b.rate, b.storm)
}
