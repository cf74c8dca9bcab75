// SPDX-License-Identifier: Apache-2.0

package live

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/observe"
	"github.com/lbproxy/lbproxy/bench/result"
	"github.com/lbproxy/lbproxy/bench/scenario"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lab/nested"
)

// Options say what is run.
type Options struct {
	Set       string   // Quick or Full
	Scenarios string   // names or files, with commas; empty: all that have a live part
	Program   string   // lbproxy
	Out       string   // the file for the result, which is written after each scenario
	Command   []string // that repeats this run
}

// session is one run.
type session struct {
	Options
	programs map[string]string
	file     *result.File
	progress *progress
}

// Run runs scenarios in labs and writes what was measured.
func Run(ctx context.Context, o Options) (err error) {
	plans, err := choose(o.Set, o.Scenarios)
	if err != nil {
		return err
	}
	s := &session{Options: o, file: &result.File{
		Command: o.Command, Machine: observe.ThisMachine(), Quick: o.Set == Quick, Knobs: map[string]string{},
	}}
	if err := s.prepare(ctx, plans); err != nil {
		return err
	}
	var total time.Duration
	for i := range plans {
		total += plans[i].duration()
	}
	s.progress = newProgress(os.Stderr, total)
	for i := range plans {
		if err := s.scenario(ctx, &plans[i]); err != nil {
			return fmt.Errorf("scenario %s: %w", plans[i].sc.Name, err)
		}
		s.file.Machine.LoadAfter = observe.Load()
		if err := observe.Save(o.Out, s.file); err != nil {
			return err
		}
	}
	for _, w := range s.file.Warnings {
		s.progress.line("warning: " + w)
	}
	s.progress.line("written: " + o.Out)
	return nil
}

// prepare finds the programs, and notes what the numbers depend on.
func (s *session) prepare(ctx context.Context, plans []plan) error {
	program, err := filepath.Abs(s.Program)
	if err != nil {
		return fmt.Errorf("lbproxy: %w", err)
	}
	s.programs = map[string]string{"lbproxy": program}
	uses := func(prefix string) bool {
		return slices.ContainsFunc(plans, func(p plan) bool {
			return slices.ContainsFunc(p.arms, func(a arm) bool { return strings.HasPrefix(a.name, prefix) })
		})
	}
	if uses("kube-proxy") {
		paths, err := nested.Build(ctx, nested.Program{Dir: "bench/control/kube-proxy", Module: "k8s.io/kubernetes", Flags: nested.Kubernetes})
		if err != nil {
			return err
		}
		s.programs["kube-proxy"] = paths[0]
	}
	for name, args := range map[string][]string{
		program: {"version"}, s.programs["kube-proxy"]: {"--version"}, "nginx": {"-v"}, "haproxy": {"-v"},
		"nft": {"--version"}, "iptables": {"--version"},
	} {
		if base := filepath.Base(name); name != "" && (name == program || name == s.programs["kube-proxy"] || base == "nft" || base == "iptables" || uses(base)) {
			out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", base, err, out)
			}
			text, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
			base, _, _ = strings.Cut(base, "-v1.")
			s.file.Knobs[base] = text
		}
	}
	commit, _ := exec.CommandContext(ctx, "git", "rev-parse", "HEAD").Output() // there may be no repository
	s.file.Commit = strings.TrimSpace(string(commit))
	s.file.Knobs["processor time"] = "cpu.stat of the cgroup of the lab: clients, servers and the proxy, with the packets that the kernel handled on their time"
	s.file.Knobs["timeouts of nginx and haproxy"] = "connect 200 ms, idle 60 s; haproxy tries another server at once, checks each every 500 ms, and leaves one out after one failed connection"
	s.file.Knobs["a request waits"] = fmt.Sprintf("as the scenario says, or %s", patience)
	return nil
}

// scenario runs one, with each number of Services that it asks for.
func (s *session) scenario(ctx context.Context, p *plan) error {
	out := result.Scenario{Name: p.sc.Name, Question: p.sc.Question, About: p.sc.About, File: p.file, Mode: modeOf(p.sc)}
	for _, c := range p.sc.InOrder() {
		out.Events = append(out.Events, result.Event{At: c.At.Seconds(), What: describe(&c)})
	}
	curves := newCurves(p)
	for _, services := range p.sc.Live.Services {
		arms, order, err := s.measure(ctx, p, services)
		if err != nil {
			return err
		}
		s.warn(p, services, arms)
		if len(p.sc.Live.Services) > 1 {
			curves.add(services, arms)
		}
		out.Arms, out.Order = arms, order // of a curve, those with the most
	}
	s.file.Scenarios = append(s.file.Scenarios, out)
	s.file.Scales = append(s.file.Scales, curves.scales...)
	return nil
}

// measure builds a lab for each proxy and lets all take turns.
func (s *session) measure(ctx context.Context, p *plan, services int) (arms []result.Arm, order []int, err error) {
	sites, err := s.build(ctx, p, services)
	defer func() {
		closed := map[*site]bool{} // several arms may have one
		for _, st := range sites {
			if !closed[st] {
				closed[st] = true
				err = errors.Join(err, st.Close())
			}
		}
	}()
	if err != nil {
		return nil, nil, err
	}
	var there []arm
	for _, a := range p.arms {
		if sites[a] != nil {
			there = append(there, a)
			arms = append(arms, result.Arm{Name: a.name, Algorithm: a.algorithm})
		}
	}
	order = turns(len(there), p.sc.Live.Rounds)
	each := p.duration() / time.Duration(max(1, len(order))*len(p.sc.Live.Services))
	for i, k := range order {
		s.progress.step(fmt.Sprintf("%s: %s, block %d of %d", p.sc.Name, arms[k].Label(), i+1, len(order)), each)
		b, err := sites[there[k]].block(ctx, there[k].algorithm, i/(2*len(there))%runtime.NumCPU())
		if err != nil {
			return nil, nil, err
		}
		arms[k].Blocks = append(arms[k].Blocks, *b)
		s.progress.done(fmt.Sprintf("%s: %s: %s", p.sc.Name, arms[k].Label(), brief(p.sc, b)))
	}
	return arms, order, nil
}

// build makes a site for each arm. A proxy that does not start is left out, with a
// warning: kube-proxy's iptables may need longer than anybody waits.
func (s *session) build(ctx context.Context, p *plan, services int) (map[arm]*site, error) {
	sites := map[arm]*site{}
	for _, group := range p.sites() {
		s.progress.step(fmt.Sprintf("%s: %s with %d Services starts", p.sc.Name, group[0].name, services), 0)
		var algorithms []string
		for _, a := range group {
			algorithms = append(algorithms, a.algorithm)
		}
		st, err := newSite(ctx, p.sc, group[0].name, algorithms, max(services, len(algorithms)), s.programs)
		if ctx.Err() != nil || err != nil && group[0].name == "direct" {
			return sites, errors.Join(ctx.Err(), err)
		}
		if err != nil {
			w := fmt.Sprintf("scenario %s, %d Services: left out: %v", p.sc.Name, services, err)
			s.file.Warnings = append(s.file.Warnings, w)
			s.progress.line("warning: " + w)
			continue
		}
		for _, a := range group {
			sites[a] = st
		}
		s.knobs(st)
	}
	return sites, nil
}

// knobs notes what holds in the labs.
func (s *session) knobs(st *site) {
	_ = st.Lab.Host(lab.Node).Do(func() error { // it reads only
		for _, name := range []string{"ipv4/tcp_congestion_control", "ipv4/ip_local_port_range", "ipv4/tcp_tw_reuse", "core/somaxconn"} {
			s.file.Knobs["net."+strings.ReplaceAll(name, "/", ".")] = observe.ReadWord("/proc/sys/net/" + name)
		}
		s.file.Machine.Congestion = s.file.Knobs["net.ipv4.tcp_congestion_control"]
		return nil
	})
}

// figure is what says how fast a block was: more is better.
func figure(sc *scenario.Scenario, b *result.Block) float64 {
	switch {
	case sc.Live.Traffic == scenario.Streamed:
		return float64(b.Bytes) / b.Seconds
	case !sc.Live.Paced():
		return float64(b.Requests-failures(b)) / b.Seconds
	}
	return 1e9 / float64(b.Latency.ValueAtQuantile(50))
}

func failures(b *result.Block) (n uint64) {
	for _, of := range b.Failed {
		n += uint64(of)
	}
	return n
}

// modeOf tells what makes requests begin.
func modeOf(sc *scenario.Scenario) string {
	if !sc.Live.Paced() {
		return result.Fast
	}
	return sc.Live.Mode
}

// brief is a block in a few words.
func brief(sc *scenario.Scenario, b *result.Block) string {
	failed := failures(b)
	switch {
	case sc.Live.Traffic == scenario.Streamed:
		return fmt.Sprintf("%.2f GB/s", figure(sc, b)/1e9)
	case !sc.Live.Paced():
		return fmt.Sprintf("%.0f/s, %d failed", figure(sc, b), failed)
	}
	ms := func(q float64) float64 { return float64(b.Latency.ValueAtQuantile(q)) / 1e6 }
	text := fmt.Sprintf("%d requests, p50 %.1f ms, p99 %.1f ms, %d failed", b.Requests, ms(50), ms(99), failed)
	if b.Moved != nil {
		text += fmt.Sprintf(", %.1f %% of the clients moved", 100**b.Moved)
	}
	return text
}

// mostDrift is how much the halves of the baseline may differ.
const mostDrift = 0.03

// warn says so if the machine was another one in the second half.
func (s *session) warn(p *plan, services int, arms []result.Arm) {
	for i := range arms {
		if arms[i].Name != "direct" || arms[i].Algorithm != "" {
			continue
		}
		if d := drift(p.sc, arms[i].Blocks); d > mostDrift {
			s.file.Warnings = append(s.file.Warnings, fmt.Sprintf(
				"scenario %s, %d Services: the two halves of the direct blocks differ by %.1f %%, more than 3 %%: the machine was busy with something else",
				p.sc.Name, services, 100*d))
		}
	}
}

// drift is how much the first half of blocks differs from the second.
func drift(sc *scenario.Scenario, blocks []result.Block) float64 {
	n := len(blocks) / 2
	if n == 0 {
		return 0
	}
	var halves [2]float64
	for i := range blocks[:2*n] {
		halves[i/n] += figure(sc, &blocks[i])
	}
	return math.Abs(halves[0]/halves[1] - 1)
}
