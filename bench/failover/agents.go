// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"time"
)

// alone is what clients notice of a fault where all agents are killed, before or after it.
type alone struct {
	Outcome *outcome      `json:"outcome"`
	Killed  time.Duration `json:"killed"` // after the fault; negative: before it
	For     time.Duration `json:"for"`    // nobody but the kernel was there
	Then    int           `json:"then"`   // connections that failed in that time, of all nodes
	Worst   int           `json:"worst"`  // of one node

	// Back counts the connections that the backend had when it worked again, before there
	// were agents, and Others those of all backends in that time.
	Back   int `json:"back"`
	Others int `json:"others"`
	// Found is how long it took from the start of the agents until every client had
	// connections to the backend.
	Found time.Duration `json:"found"`
}

// agents kills all agents: when a backend is out, and before another one fails.
func (b *bench) agents(ctx context.Context) (err error) {
	s, err := b.newSite(ctx, arms[0])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for i, after := range []time.Duration{2 * time.Second, -time.Second} {
		got, err := b.leave(ctx, s, backend(i), after)
		if err != nil {
			return err
		}
		b.report.Alone = append(b.report.Alone, got)
		b.log("agents killed %s after the fault: %d connections failed then, %d of one node; the backend had %d of %d when it was back, and all %s after the agents' start",
			got.Killed, got.Then, got.Worst, got.Back, got.Others, millis(got.Found))
	}
	return nil
}

// leave has a backend's process killed, and all agents so long after it.
func (b *bench) leave(ctx context.Context, s *site, victim string, after time.Duration) (*alone, error) {
	f := allFaults[0]
	got := &alone{Killed: after, For: b.alone, Outcome: &outcome{Arm: s.arm.name, Fault: f.name, Victim: victim}}
	l := s.load(ctx, b.rate, s.all()...)
	steps := []func() error{
		func() error { return sleep(ctx, warm) },
		func() error {
			got.Outcome.Struck = time.Now()
			err := f.strike(ctx, s, victim)
			got.Outcome.Complete = time.Now()
			return err
		},
		func() error { return sleep(ctx, max(after, 0)) },
	}
	if after < 0 {
		s.kill()
	}
	err := inTurn(steps...)
	s.kill()
	from := time.Now()
	if err == nil {
		err = sleep(ctx, b.alone)
	}
	until := time.Now()
	if err == nil {
		err = inTurn(func() error { return f.heal(ctx, s, victim) }, func() error { return sleep(ctx, b.alone) })
	}
	samples, lerr := stop(l)
	if err = errors.Join(err, lerr); err != nil {
		return nil, err
	}
	got.count(samples, victim, from, until)
	got.Outcome.judge(samples, len(s.nodes))
	begin := time.Now()
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	got.Outcome.Healed, err = s.heals(ctx, victim)
	got.Found = time.Since(begin)
	return got, err
}

// count counts what failed from then until the backend was back, and what went to it
// after that.
func (a *alone) count(samples []sample, victim string, from, until time.Time) {
	nodes := map[int]int{}
	for _, s := range samples {
		switch {
		case s.Begun.Before(from):
		case s.Begun.Before(until):
			if s.failed() {
				a.Then++
				nodes[s.Node]++
				a.Worst = max(a.Worst, nodes[s.Node])
			}
		default:
			a.Others++
			if s.Backend == victim {
				a.Back++
			}
		}
	}
}

func inTurn(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
