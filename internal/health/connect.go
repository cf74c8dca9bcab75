// SPDX-License-Identifier: Apache-2.0

// Package health looks at backends from this node.
package health

import (
	"context"
	"hash/maphash"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
)

const (
	connectPeriod  = time.Second // between two connects to one target
	connectTimeout = time.Second // what takes longer is taken for as long
	connectLimit   = 64          // connects at the same time
	connectTick    = 50 * time.Millisecond
)

// Connects measures how long TCP connections to targets take to be established: each
// about once a second, at times that differ between targets. It sends nothing over
// them.
type Connects struct {
	dial func(context.Context, netip.AddrPort) error
	seed maphash.Seed

	mu      sync.Mutex
	targets map[netip.AddrPort]*target
}

// target is what is known of one.
type target struct {
	addr    netip.AddrPort
	due     time.Time // of the next connect
	busy    bool      // one is going on
	average uint32    // µs; 0: not known
	at      time.Time // of the last one
}

// NewConnects returns a Connects without targets. dial makes a connection and ends it;
// nil: by TCP, in the network namespace of the process.
func NewConnects(dial func(context.Context, netip.AddrPort) error) *Connects {
	if dial == nil {
		dial = dialTCP
	}
	return &Connects{dial: dial, seed: maphash.MakeSeed(), targets: map[netip.AddrPort]*target{}}
}

func dialTCP(ctx context.Context, to netip.AddrPort) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	return conn.Close()
}

// Set replaces the targets. What is known of those that stay is kept.
func (c *Connects) Set(targets []netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := make(map[netip.AddrPort]*target, len(targets))
	now := time.Now()
	for _, addr := range targets {
		t := c.targets[addr]
		if t == nil {
			t = &target{addr: addr, due: now.Add(c.share(addr, connectPeriod))}
		}
		next[addr] = t
	}
	c.targets = next
}

// share returns a part of d that depends on the target.
func (c *Connects) share(addr netip.AddrPort, d time.Duration) time.Duration {
	return time.Duration(maphash.Comparable(c.seed, addr) % uint64(d))
}

// Latency returns the moving average of a target; 0: not known. An attempt that fails
// counts as one that took the time of patience, a second. It may be called at any time.
func (c *Connects) Latency(addr netip.AddrPort) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.targets[addr]
	if t == nil {
		return 0
	}
	return time.Duration(t.average) * time.Microsecond
}

// Run measures until ctx is done. It returns nil when no connect is going on any more.
func (c *Connects) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	room := make(chan struct{}, connectLimit)
	tick := time.NewTicker(connectTick)
	defer tick.Stop()
	for {
		for _, t := range c.due(time.Now()) {
			select {
			case <-ctx.Done():
				return nil
			case room <- struct{}{}:
			}
			all.Go(func() {
				defer func() { <-room }()
				c.measure(ctx, t)
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// due returns the targets whose time has come, in no order, and marks them as busy.
func (c *Connects) due(now time.Time) []*target {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*target
	for _, t := range c.targets {
		if !t.busy && !t.due.After(now) {
			t.busy = true
			list = append(list, t)
		}
	}
	return list
}

// measure connects once. The next time is a period after it was due, so that targets
// stay apart, or after now if that is past.
func (c *Connects) measure(ctx context.Context, t *target) {
	limited, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	start := time.Now()
	err := c.dial(limited, t.addr)
	now := time.Now()
	took := now.Sub(start)
	if err != nil {
		took = connectTimeout
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() != nil {
		return // it was not let finish
	}
	var idle time.Duration
	if !t.at.IsZero() {
		idle = now.Sub(t.at)
	}
	t.average = algo.NextLatency(t.average, micros(took), uint32(idle/time.Millisecond))
	t.busy, t.at = false, now
	if t.due = t.due.Add(connectPeriod); t.due.Before(now) {
		t.due = now.Add(connectPeriod)
	}
}

func micros(d time.Duration) uint32 { return uint32(min(max(d, 0), connectTimeout) / time.Microsecond) }
