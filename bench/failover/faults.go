// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// What a kubelet does by default: Kubernetes documentation, "Configure Liveness,
// Readiness and Startup Probes", of which the period is part of the plan.
const (
	kubeletFailures = 3
	kubeletTimeout  = time.Second
	propagation     = time.Second // from the kubelet to every node's proxy; a guess
)

const (
	warm  = time.Second // of connections before a fault
	dense = time.Second // of many more on one node, half of it before the fault
)

// fault is what happens to a backend.
type fault struct {
	name   string
	strike func(ctx context.Context, s *site, backend string) error
	heal   func(ctx context.Context, s *site, backend string) error
	probe  time.Duration // that the kubelet's takes to fail
}

var allFaults = []fault{
	{
		name:   "killed",
		strike: func(_ context.Context, s *site, backend string) error { s.lab.Host(backend).Kill(); return nil },
		heal: func(ctx context.Context, s *site, backend string) error {
			if err := s.lab.Host(backend).Restart(); err != nil {
				return err
			}
			return s.serve(ctx, backend)
		},
	},
	{
		name: "blackholed",
		strike: func(ctx context.Context, s *site, backend string) error {
			return nft(ctx, s.lab.Host(backend), "add table inet hole; add chain inet hole in { type filter hook input priority 0; policy drop; }")
		},
		heal: func(ctx context.Context, s *site, backend string) error {
			return nft(ctx, s.lab.Host(backend), "delete table inet hole")
		},
		probe: kubeletTimeout,
	},
}

// nft changes the rules of a host.
func nft(ctx context.Context, h *lab.Host, commands string) error {
	cmd := h.Command(ctx, "nft", commands)
	cmd.Stderr = os.Stderr
	if err := h.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("host %s: %s: %w", h.Name, cmd, err)
	}
	return nil
}

// removal is how long after a fault the kubelet's third probe has failed and every proxy
// knows, where the first one begins half a period after the fault, as it does on average.
func (b *bench) removal(f fault) time.Duration {
	return b.period/2 + (kubeletFailures-1)*b.period + f.probe + propagation
}

// faults strikes backends in turn, with clients that go on.
func (b *bench) faults(ctx context.Context, a arm) (err error) {
	s, err := b.newSite(ctx, a)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	rounds := b.rounds
	switch {
	case a.blind:
		rounds = 1
	case a.name != arms[0].name: // which are slow
		rounds = min(rounds, 3)
	}
	for round := range rounds {
		for _, f := range allFaults {
			o, err := b.strike(ctx, s, f, round)
			if err != nil {
				return fmt.Errorf("%s, round %d: %w", f.name, round+1, err)
			}
			b.report.Outcomes = append(b.report.Outcomes, o)
			b.log("%s: %s", a.name, o)
		}
	}
	return nil
}

// strike has one fault strike one backend, and heals it. In each round it is another
// backend, and another node that has many more connections than the others.
func (b *bench) strike(ctx context.Context, s *site, f fault, round int) (*outcome, error) {
	victim := backend(round % backendCount)
	o := &outcome{Arm: s.arm.name, Fault: f.name, Victim: victim, Dense: round % len(s.nodes)}
	l := s.load(ctx, b.rate, s.all()...)
	loads := []*load{l}
	err := inTurn(
		func() error { return sleep(ctx, warm-dense/2) },
		func() error {
			more := s.load(ctx, b.burst, o.Dense)
			loads = append(loads, more)
			time.AfterFunc(dense, more.cancel)
			return sleep(ctx, dense/2)
		},
		func() error {
			o.Struck = time.Now()
			err := f.strike(ctx, s, victim)
			o.Complete = time.Now()
			return err
		},
		func() error {
			if !s.arm.blind {
				return nil
			}
			err := sleep(ctx, b.removal(f))
			if err == nil {
				err = s.ready(victim, false)
				o.Removed = time.Since(o.Complete)
			}
			return err
		},
		func() error {
			if s.arm.says == probe { // what they may take, and as long again
				return sleep(ctx, 2*b.watch)
			}
			return sleep(ctx, b.watch)
		},
	)
	samples, lerr := stop(loads...)
	if err = errors.Join(err, lerr); err != nil {
		return nil, err
	}
	o.judge(samples, len(s.nodes))
	b.explain(s, o)
	return o, b.mend(ctx, s, f, o)
}

// explain tells what the agents of nodes said where connections failed late.
func (b *bench) explain(s *site, o *outcome) {
	for i, n := range o.Nodes {
		if s.arm.blind || n.Last <= lastSilent {
			continue
		}
		for line := range strings.Lines(s.agents[i].Log()) {
			if strings.Contains(line, "msg=health") {
				b.log("%s: %s", s.nodes[i], strings.TrimSpace(line))
			}
		}
		b.log("%s: the fault was at %s", s.nodes[i], o.Complete.UTC().Format("15:04:05.000"))
	}
}

// mend heals what a fault did.
func (b *bench) mend(ctx context.Context, s *site, f fault, o *outcome) (err error) {
	victim := o.Victim
	if err := f.heal(ctx, s, victim); err != nil {
		return err
	}
	if s.arm.blind {
		if err := s.ready(victim, true); err != nil {
			return err
		}
	}
	o.Healed, err = s.heals(ctx, victim)
	return err
}

func (b *bench) log(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench-failover: "+format+"\n", args...)
}
