// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane/dptest"
	"github.com/lbproxy/lbproxy/internal/lab"
)

// Dial implements flowtest.Harness.
func (n *Net) Dial(ctx context.Context, f dptest.Flow) (dptest.Outcome, error) {
	rs, err := n.exchanges(ctx, f)
	if err != nil {
		return dptest.Outcome{}, err
	}
	return outcome(rs)
}

// Try implements dptest.Harness.
func (n *Net) Try(t *testing.T, f dptest.Flow) dptest.Outcome {
	t.Helper()
	rs, err := n.exchanges(t.Context(), f)
	if err != nil {
		t.Fatalf("%s: %v", f, err)
	}
	for _, r := range rs {
		if r.Kind != lab.OK && r.Kind != lab.Refused && !f.Silence {
			t.Logf("lost, from %s %s after %v: %s", f.From, r.Local, r.Took, r.Err)
			if n.Lost != nil {
				n.Lost(t, f.From, r)
			}
		}
	}
	out, err := outcome(rs)
	if err != nil {
		t.Fatalf("%s: %v", f, err)
	}
	return out
}

// outcome sums up results.
func outcome(rs []lab.Result) (dptest.Outcome, error) {
	out := dptest.Outcome{Backends: map[netip.AddrPort]int{}}
	for i, r := range rs {
		var v dptest.Verdict
		switch r.Kind {
		case lab.OK:
			v = dptest.OK
			out.Backends[r.ServerLocal]++
			out.Seen = append(out.Seen, r.Seen.Addr())
			out.Peer = r.Peer
		case lab.Refused:
			v = dptest.Refused
		case lab.Timeout, lab.Unreachable:
			v = dptest.Dropped
		case lab.Failed:
			return out, fmt.Errorf("dial: %s", r.Err)
		}
		if i > 0 && v != out.Verdict {
			v = dptest.Mixed
		}
		out.Verdict = v
	}
	return out, nil
}

// Open implements dptest.Harness for TCP. ended, which may be nil, waits until the
// dataplane knows that the connection has ended; it is called before the end, too.
func (n *Net) Open(t *testing.T, f dptest.Flow, ended func() (wait func())) dptest.Held {
	t.Helper()
	c, res := n.Lab.Host(Hosts[f.From]).Open(t.Context(), lab.Request{Proto: lab.TCP, To: f.To, Timeout: Patience})
	if res.Kind != lab.OK {
		t.Fatalf("%s: %s %s", f, res.Kind, res.Err)
	}
	return dptest.Held{
		Backend: res.ServerLocal,
		Check:   func() error { return c.Ping(t.Context()) },
		Close: sync.OnceFunc(func() {
			wait := func() {}
			if ended != nil {
				wait = ended()
			}
			if err := c.Close(context.Background(), "rst"); err != nil {
				t.Error(err)
			}
			wait()
		}),
	}
}

// OpenFlow implements dptest.FlowHolder.
func (n *Net) OpenFlow(t *testing.T, f dptest.Flow) dptest.HeldFlow {
	t.Helper()
	host := n.Lab.Host(Hosts[f.From])
	req := lab.Request{Proto: lab.UDP, To: f.To, From: n.from(f), Timeout: Patience}
	if !n.connects(f) {
		return openUnconnected(t, host, f, req)
	}
	c, first := host.Open(t.Context(), req)
	if first.Kind != lab.OK {
		t.Fatalf("%s: %s %s", f, first.Kind, first.Err)
	}
	return dptest.HeldFlow{
		Backend: first.ServerLocal, Connected: n.hooked(f.From),
		Again: func(silence bool) (netip.AddrPort, error) {
			return answer(c.Exchange(t.Context(), nil, timeoutOf(silence)))
		},
		Close: sync.OnceFunc(func() { _ = c.Close(context.Background(), "fin") }), // it may be destroyed
	}
}

func openUnconnected(t *testing.T, host *lab.Host, f dptest.Flow, req lab.Request) dptest.HeldFlow {
	t.Helper()
	u, err := host.OpenUDP(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	again := func(silence bool) (netip.AddrPort, error) {
		ctx, cancel := context.WithTimeout(t.Context(), timeoutOf(silence))
		defer cancel()
		return answer(u.Exchange(ctx, f.To, nil))
	}
	be, err := again(false)
	if err != nil {
		t.Fatalf("%s: %v", f, err)
	}
	return dptest.HeldFlow{Backend: be, Again: again, Close: func() {
		if err := u.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}}
}

func answer(r lab.Result) (netip.AddrPort, error) {
	if r.Kind != lab.OK {
		return netip.AddrPort{}, errors.New(r.Err)
	}
	return r.ServerLocal, nil
}
