// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
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

const warm = time.Second // of connections before a fault

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
	if a.blind {
		rounds = 1
	}
	for round := range rounds {
		for _, f := range allFaults {
			o, err := b.strike(ctx, s, f, backend(round%backendCount))
			if err != nil {
				return fmt.Errorf("%s, round %d: %w", f.name, round+1, err)
			}
			b.report.Outcomes = append(b.report.Outcomes, o)
			b.log("%s: %s", a.name, o)
		}
	}
	return nil
}

// strike has one fault strike one backend, and heals it.
func (b *bench) strike(ctx context.Context, s *site, f fault, victim string) (*outcome, error) {
	l := s.load(ctx, b.rate)
	o := &outcome{Arm: s.arm.name, Fault: f.name, Victim: victim}
	err := sleep(ctx, warm)
	if err == nil {
		o.Struck = time.Now()
		err = f.strike(ctx, s, victim)
		o.Complete = time.Now()
	}
	if err == nil && s.arm.blind {
		if err = sleep(ctx, b.removal(f)); err == nil {
			err = s.ready(victim, false)
			o.Removed = time.Since(o.Complete)
		}
	}
	if err == nil {
		err = sleep(ctx, b.watch)
	}
	samples, lerr := l.stop()
	if err = errors.Join(err, lerr); err != nil {
		return nil, err
	}
	o.judge(samples, len(s.nodes))
	if err := f.heal(ctx, s, victim); err != nil {
		return nil, err
	}
	if s.arm.blind {
		if err := s.ready(victim, true); err != nil {
			return nil, err
		}
	}
	o.Healed, err = s.heals(ctx, victim)
	return o, err
}

func (b *bench) log(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench-failover: "+format+"\n", args...)
}
