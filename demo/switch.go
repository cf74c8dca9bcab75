// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// switchAlgorithm changes the algorithm of a Service to least-connection, and back,
// while connections to it are open. It takes the first that shows round-robin.
func (d *demo) switchAlgorithm(ctx context.Context) error {
	i := slices.IndexFunc(d.cluster.services, func(s *service) bool { return s.showcase && s.algorithm == "round-robin" })
	if i < 0 {
		return nil
	}
	e, err := newExhibit(d, d.cluster.services[i])
	if err != nil {
		return err
	}
	d.screen.heading("An algorithm changes under traffic: the annotation of " + e.svc.name)
	const to = "least-connection"
	if err := e.takeTurns(ctx, "held open"); err != nil {
		return err
	}
	busy := slices.Sorted(maps.Keys(e.weights()))[0]
	if err := e.release(ctx, []string{busy}); err != nil {
		return err
	}
	began := time.Now()
	undo, err := annotate(d.dir, e.svc, algorithmKey, to)
	if err != nil {
		return err
	}
	if err := e.become(ctx, to, began); err != nil {
		return err
	}
	n := len(e.held)
	if err := e.fill(ctx, inTurn(e.weights())-n, fmt.Sprintf("more beside the %d of %s", n, busy)); err != nil {
		return err
	}
	began = time.Now()
	if err := undo.undo(); err != nil {
		return err
	}
	if err := e.become(ctx, "round-robin", began); err != nil {
		return err
	}
	if err := e.takeTurns(ctx, "more beside these"); err != nil {
		return err
	}
	d.judge(e.trials)
	e.ping(ctx)
	return e.release(ctx, nil)
}

// takeTurns opens connections that make whole turns.
func (e *exhibit) takeTurns(ctx context.Context, how string) error {
	n := inTurn(e.weights())
	bounds := turns(e.weights(), n)
	t := e.addAll(n, fmt.Sprintf("%d %s", n, how), bounds.String()+", "+e.ratio())
	for i := range n {
		if _, err := e.open(ctx, t, e.clients[i%len(e.clients)]); err != nil {
			return err
		}
	}
	t.checkCounts(bounds)
	return nil
}

// become waits until an algorithm is in the kernel, and goes on with the manifest
// that says so. began is when the manifest was changed.
func (e *exhibit) become(ctx context.Context, algorithm string, began time.Time) error {
	for {
		v, err := e.view(ctx, e.to)
		if err != nil {
			return err
		}
		if v.Algorithm == algorithm {
			break
		}
		if time.Since(began) > changeTimeout {
			return fmt.Errorf("%s still is %s, %s after its annotation changed to %s", e.svc.name, v.Algorithm, changeTimeout, algorithm)
		}
		time.Sleep(pollInterval)
	}
	e.screen.line("  %s is in force at most %d ms after the file was renamed, with %d connections open",
		algorithm, time.Since(began).Milliseconds(), len(e.held))
	c, err := load(e.dir)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(c.services, func(s *service) bool { return s.name == e.svc.name })
	if i < 0 {
		return fmt.Errorf("%s is gone from the manifests", e.svc.name)
	}
	e.svc = c.services[i]
	return nil
}

// ping checks that all that is held still answers.
func (e *exhibit) ping(ctx context.Context) {
	e.checks++
	var dead error
	n := 0
	for _, h := range e.held {
		if err := h.conn.Ping(ctx); err != nil {
			dead = err
			n++
		}
	}
	if n > 0 {
		e.wrong++
		e.screen.line("  %s", e.screen.paint(red, fmt.Sprintf("!! of %d connections %d are broken: %v", len(e.held), n, dead), 0))
		return
	}
	e.screen.line("  all %d connections, opened under either algorithm, still answer  %s",
		len(e.held), e.screen.paint(green, "ok", 0))
}
