// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// network is what targets a test's Connects dials.
type network struct {
	mu       sync.Mutex
	takes    map[netip.AddrPort]time.Duration // others refuse
	dials    map[netip.AddrPort][]time.Time
	now, max int // how many go on
	longest  time.Duration
}

func newNetwork() *network {
	return &network{takes: map[netip.AddrPort]time.Duration{}, dials: map[netip.AddrPort][]time.Time{}}
}

func (n *network) dial(ctx context.Context, to netip.AddrPort) error {
	n.mu.Lock()
	takes, ok := n.takes[to]
	n.dials[to] = append(n.dials[to], time.Now())
	n.now++
	n.max = max(n.max, n.now)
	n.mu.Unlock()
	start := time.Now()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.now--
		n.longest = max(n.longest, time.Since(start))
	}()
	if !ok {
		return errors.New("refused")
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(takes):
		return nil
	}
}

func (n *network) set(to netip.AddrPort, takes time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.takes[to] = takes
}

func (n *network) of(to netip.AddrPort) []time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.dials[to])
}

// run runs a Connects of n in a bubble while f runs.
func run(t *testing.T, n *network, f func(c *Connects)) {
	synctest.Test(t, func(t *testing.T) {
		c := NewConnects(n.dial)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		f(c)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.now != 0 {
			t.Errorf("%d connects go on after Run returned", n.now)
		}
	})
}

func addr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)
}

// TestLatency: the average follows what connects take; failures and silence count as a
// second.
func TestLatency(t *testing.T) {
	n := newNetwork()
	fast, silent, refusing := addr(1), addr(2), addr(3)
	n.set(fast, 3*time.Millisecond)
	n.set(silent, time.Hour)
	run(t, n, func(c *Connects) {
		c.Set([]netip.AddrPort{fast, silent, refusing})
		if got := c.Latency(fast); got != 0 {
			t.Errorf("before the first connect: %v", got)
		}
		<-time.After(3 * time.Second)
		for to, want := range map[netip.AddrPort]time.Duration{fast: 3 * time.Millisecond, silent: time.Second, refusing: time.Second, addr(4): 0} {
			if got := c.Latency(to); got != want {
				t.Errorf("latency of %s is %v, want %v", to, got, want)
			}
		}
		n.mu.Lock()
		if n.longest != time.Second {
			t.Errorf("a connect took %v, want at most a second", n.longest)
		}
		n.mu.Unlock()
		n.set(fast, 83*time.Millisecond)
		before := len(n.of(fast))
		for len(n.of(fast)) == before {
			<-time.After(connectTick)
		}
		<-time.After(connectPeriod / 2)
		if got, want := c.Latency(fast), 8*time.Millisecond; got != want {
			t.Errorf("after one slow connect: %v, want %v", got, want)
		}
	})
}

// TestPace: each target is dialled once a second, and not all at the same time.
func TestPace(t *testing.T) {
	const targets, seconds = 200, 20
	n := newNetwork()
	var all []netip.AddrPort
	for i := range targets {
		all = append(all, addr(i))
		n.set(addr(i), time.Millisecond)
	}
	run(t, n, func(c *Connects) {
		c.Set(all)
		<-time.After(seconds*time.Second + connectTick)
		at := map[time.Time]int{}
		for _, a := range all {
			dials := n.of(a)
			if len(dials) < seconds || len(dials) > seconds+1 {
				t.Errorf("%s was dialled %d times in %d s", a, len(dials), seconds)
			}
			for i, d := range dials {
				at[d]++
				if i > 0 && d.Sub(dials[i-1]) != connectPeriod {
					t.Errorf("%s: %v between two connects", a, d.Sub(dials[i-1]))
				}
			}
		}
		for when, count := range at {
			if count > targets/4 {
				t.Errorf("%d of %d targets were dialled at %v", count, targets, when)
			}
		}
	})
}

// TestLimit: many silent targets are dialled a few at a time.
func TestLimit(t *testing.T) {
	n := newNetwork()
	var all []netip.AddrPort
	for i := range 5 * connectLimit {
		all = append(all, addr(i))
		n.set(addr(i), time.Hour)
	}
	run(t, n, func(c *Connects) {
		c.Set(all)
		<-time.After(10 * time.Second)
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.max != connectLimit {
			t.Errorf("%d connects at a time, want %d", n.max, connectLimit)
		}
		if len(n.dials) != len(all) {
			t.Errorf("%d targets were dialled, want all %d", len(n.dials), len(all))
		}
	})
}

// TestSet: what leaves is not dialled and not known any more; what stays is as it was.
func TestSet(t *testing.T) {
	n := newNetwork()
	a, b := addr(1), addr(2)
	n.set(a, 5*time.Millisecond)
	n.set(b, 7*time.Millisecond)
	run(t, n, func(c *Connects) {
		c.Set([]netip.AddrPort{a, b})
		// Between two ticks, and when what the last one began has ended: at a tick, the order
		// of Run and of this test is nobody's business.
		<-time.After(3*time.Second + connectTick/2)
		c.Set([]netip.AddrPort{b})
		gone, stays := len(n.of(a)), len(n.of(b))
		if got, want := c.Latency(b), 7*time.Millisecond; c.Latency(a) != 0 || got != want {
			t.Errorf("latencies %v and %v, want 0 and %v", c.Latency(a), got, want)
		}
		<-time.After(5 * time.Second)
		if g, s := len(n.of(a))-gone, len(n.of(b))-stays; g != 0 || s != 5 {
			t.Errorf("then %d connects to what left and %d to what stayed, want 0 and 5", g, s)
		}
	})
}

// TestDialTCP connects to this machine's loopback.
func TestDialTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := l.Addr().(*net.TCPAddr).AddrPort()
	if err := dialTCP(t.Context(), to); err != nil {
		t.Errorf("somebody listens: %v", err)
	}
	l.Close()
	if err := dialTCP(t.Context(), to); err == nil {
		t.Error("nobody listens, and there is no error")
	}
}
