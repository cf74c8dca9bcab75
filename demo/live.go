// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	changeTimeout = 30 * time.Second
	quietDials    = 60 // without an answer from a removed backend: it is out
)

// open is a connection that stays open through the whole story.
type open struct {
	from *client
	conn *lab.Conn
}

// story is the part of the demo in which things change.
type story struct {
	*demo
	svc    *service
	victim string // the pod that is removed
	to     frontend
	open   []open
}

// newStory chooses what to change: the first Service with two backends that
// everybody may dial over TCP, and get each of. It returns nil if there is none.
func newStory(d *demo) *story {
	for _, s := range d.cluster.services {
		if s.showcase || s.sticky() {
			continue
		}
		for _, f := range s.frontends() {
			pool := s.pool(f, false)
			if f.typ != "ClusterIP" || f.proto != lab.TCP || len(pool) < 2 {
				continue
			}
			for _, pod := range s.podNames()[1:] {
				if _, ok := pool[pod]; ok {
					return &story{demo: d, svc: s, victim: pod, to: f}
				}
			}
		}
	}
	return nil
}

// run tells the story.
func (t *story) run(ctx context.Context) error {
	for _, step := range []func(context.Context) error{t.hold, t.remove, t.crash, t.restart} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// hold opens a connection to the victim on each path.
func (t *story) hold(ctx context.Context) error {
	for _, c := range t.clients {
		conn, err := t.openTo(ctx, c)
		if err != nil {
			return err
		}
		t.open = append(t.open, open{c, conn})
	}
	return nil
}

// openTo opens connections until the victim gets one, and only then closes the
// others: where load decides they make it the victim's turn.
func (t *story) openTo(ctx context.Context, c *client) (found *lab.Conn, err error) {
	var others []*lab.Conn
	defer func() {
		for _, conn := range others {
			err = errors.Join(err, conn.Close(ctx, "fin"))
		}
	}()
	for range 100 {
		conn, res := c.host.Open(ctx, lab.Request{Proto: lab.TCP, To: t.to.addr})
		if conn == nil {
			return nil, fmt.Errorf("%s opens %s: %s", c.host.Name, t.to.addr, res.Err)
		}
		if res.Backend == t.victim {
			return conn, nil
		}
		others = append(others, conn)
	}
	return nil, fmt.Errorf("%s dials %s: %s never answers", c.host.Name, t.to.addr, t.victim)
}

// remove takes the victim out of the slices.
func (t *story) remove(ctx context.Context) error {
	t.screen.heading("A backend leaves: " + t.victim + " is removed from the EndpointSlices of " + t.svc.name)
	began := time.Now()
	undo, err := removeEndpoint(t.dir, t.svc, t.victim)
	if err != nil {
		return err
	}
	t.undo = undo
	last, err := t.awaitSilence(ctx, began)
	if err != nil {
		return err
	}
	t.screen.line("  its last new connection came %d ms after the file was renamed", last.Milliseconds())
	if err := t.reload(); err != nil {
		return err
	}
	return t.show(ctx)
}

// awaitSilence dials until the victim stays silent. It returns when it last
// answered, from began.
func (t *story) awaitSilence(ctx context.Context, began time.Time) (last time.Duration, err error) {
	quiet := 0
	for quiet < quietDials {
		if time.Since(began) > changeTimeout {
			return 0, fmt.Errorf("%s still gets connections %s after it was removed", t.victim, changeTimeout)
		}
		res := t.clients[0].host.Dial(ctx, lab.Request{Proto: lab.TCP, To: t.to.addr})
		if res.Kind != lab.OK {
			return 0, fmt.Errorf("%s dials %s during the change: %s", t.clients[0].host.Name, t.to.addr, res.Err)
		}
		quiet++
		if res.Backend == t.victim {
			quiet, last = 0, time.Since(began)
		}
	}
	return last, nil
}

// crash kills the agent and shows that nobody notices.
func (t *story) crash(ctx context.Context) error {
	t.screen.heading("The agent dies: SIGKILL")
	if err := t.agent.kill(); err != nil {
		return err
	}
	t.screen.line("  lbproxy: %s; what it left in the kernel goes on", t.agent.state)
	return t.show(ctx)
}

// restart puts the endpoint back and starts the agent again.
func (t *story) restart(ctx context.Context) error {
	t.screen.heading("The agent comes back: in the meantime " + t.victim + " has returned to the EndpointSlices")
	if err := t.undo.undo(); err != nil {
		return err
	}
	took, err := t.agent.start(ctx)
	if err != nil {
		return err
	}
	t.screen.line("  ready %d ms after its start, on the maps and programs that were there", took.Milliseconds())
	if err := t.reload(); err != nil {
		return err
	}
	if err := t.show(ctx); err != nil {
		return err
	}
	return t.revisit(ctx)
}

// reload reads the manifests again and finds the Service in them.
func (t *story) reload() error {
	c, err := load(t.dir)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(c.services, func(s *service) bool { return s.name == t.svc.name })
	if i < 0 {
		return errors.New(t.svc.name + " is gone from the manifests")
	}
	t.svc = c.services[i]
	return nil
}

// show prints new connections to one address of the Service, and that the old
// ones live.
func (t *story) show(ctx context.Context) error {
	rs := slices.DeleteFunc(rows(t.svc, t.clients, t.n), func(r *row) bool { return r.to != t.to })
	if err := t.measure(ctx, t.svc, rs); err != nil {
		return err
	}
	var dead int
	for _, o := range t.open {
		if err := o.conn.Ping(ctx); err != nil {
			dead++
			t.wrong++
			t.screen.line("  %s", t.screen.paint(red, fmt.Sprintf("!! the connection %s has open to %s: %v", o.from.host.Name, t.victim, err), 0))
		}
	}
	t.checks += len(t.open)
	if dead == 0 {
		t.screen.line("\n  the %d connections opened to %s in the beginning still answer  %s", len(t.open), t.victim, t.screen.paint(green, "ok", 0))
	}
	return nil
}
