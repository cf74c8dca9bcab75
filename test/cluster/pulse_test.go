// SPDX-License-Identifier: Apache-2.0

//go:build root

package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	pulsePeriod = 20 * time.Millisecond // between the calls of one caller of one target
	badShown    = 10                    // failures of a pulse that are reported one by one
	openTries   = 100
)

// held are open connections to a Service, one from each caller to each target.
type held []heldConn

type heldConn struct {
	probe
	conn *lab.Conn
}

// open connects every caller to every target, to the given backend.
func (s *stage) open(t *testing.T, backend string, ts ...target) held {
	t.Helper()
	var conns held
	for _, p := range s.probes(ts) {
		if !p.connect {
			continue
		}
		conn, err := p.open(t.Context(), backend)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, heldConn{p, conn})
	}
	t.Cleanup(func() {
		for _, c := range conns {
			_ = c.conn.Close(context.Background(), "fin") // the host may be gone
		}
	})
	return conns
}

// open tries until the connection is one to backend.
func (p probe) open(ctx context.Context, backend string) (*lab.Conn, error) {
	for range openTries {
		conn, res := p.lab.Host(p.host).Open(ctx, lab.Request{Proto: p.proto, To: p.to})
		switch {
		case res.Kind != lab.OK:
			return nil, fmt.Errorf("%s: open: %s %s", p, res.Kind, res.Err)
		case res.Backend == backend:
			return conn, nil
		}
		if err := conn.Close(ctx, "rst"); err != nil {
			return nil, fmt.Errorf("%s: close: %w", p, err)
		}
	}
	return nil, fmt.Errorf("%s: open: never got %s", p, backend)
}

// ping fails the test unless every connection still carries data both ways.
func (h held) ping(t *testing.T) {
	t.Helper()
	for _, c := range h {
		if err := c.conn.Ping(t.Context()); err != nil {
			t.Errorf("open connection, %s: %v", c, err)
		}
	}
}

// pulse calls a Service all the time, from everywhere. Not one call may fail.
type pulse struct {
	quit  chan struct{}
	once  sync.Once
	wg    sync.WaitGroup
	calls atomic.Int64

	mu  sync.Mutex
	bad []error
}

// pulse starts calls of every target by every caller, each of which has to be
// answered by one of w, and pings on the open connections of h.
func (s *stage) pulse(t *testing.T, w want, h held, ts ...target) *pulse {
	t.Helper()
	p := &pulse{quit: make(chan struct{})}
	for _, probe := range s.probes(ts) {
		p.wg.Go(func() {
			p.run(t.Context(), func(ctx context.Context) error {
				rs, err := probe.dial(ctx, 1, 0)
				if err == nil && w.allow(rs[0]) != nil {
					err = fmt.Errorf("%s: %w", probe, w.allow(rs[0]))
				}
				return err
			})
		})
	}
	for _, c := range h {
		p.wg.Go(func() {
			p.run(t.Context(), func(ctx context.Context) error {
				if err := c.conn.Ping(ctx); err != nil {
					return fmt.Errorf("open connection, %s: %w", c, err)
				}
				return nil
			})
		})
	}
	t.Cleanup(p.stop)
	return p
}

// run calls f every pulsePeriod until p ends.
func (p *pulse) run(ctx context.Context, f func(context.Context) error) {
	tick := time.NewTicker(pulsePeriod)
	defer tick.Stop()
	for {
		began := time.Now()
		err := f(ctx)
		if ctx.Err() != nil {
			return // the test has failed already
		}
		p.calls.Add(1)
		if err != nil {
			p.mu.Lock()
			p.bad = append(p.bad, fmt.Errorf("at %s: %w", began.Format("15:04:05.000"), err))
			p.mu.Unlock()
		}
		select {
		case <-p.quit:
			return
		case <-tick.C:
		}
	}
}

// stop returns when the last call is over.
func (p *pulse) stop() {
	p.once.Do(func() { close(p.quit) })
	p.wg.Wait()
}

// beats waits for n more calls.
func (p *pulse) beats(t *testing.T, n int64) {
	t.Helper()
	end := p.calls.Load() + n
	if err := poll(agentTimeout, func() error {
		if p.calls.Load() < end {
			return errors.New("too few calls")
		}
		return nil
	}); err != nil {
		t.Fatalf("pulse: %v", err)
	}
}

// end stops the calls and fails the test if one of them has failed.
func (p *pulse) end(t *testing.T) {
	t.Helper()
	p.stop()
	for _, err := range p.bad[:min(len(p.bad), badShown)] {
		t.Error(err)
	}
	if len(p.bad) > 0 {
		t.Fatalf("%d of %d calls failed", len(p.bad), p.calls.Load())
	}
	t.Logf("%-40s %d calls, none failed", "meanwhile", p.calls.Load())
}
