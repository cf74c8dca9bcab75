// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// patience is how long a request waits. One that waits in vain counts with it.
const patience = 3 * time.Second

// crowd is what an open loop knows of its requests under way.
type crowd struct {
	mu     sync.Mutex
	rng    *rand.Rand
	active []int // by target
	picks  []int
	took   []time.Duration
	failed int
}

// openLoop starts o.N requests at random times, o.Rate a second on average, each
// on a connection of its own, whether others are still under way or not. Times
// count from when a request should have started. With several targets a request
// goes to the one that it would leave first: with as few as possible under way,
// each weighed with its slowdown if o.Slowdown is given. Arrivals and needs depend
// on o.Seed only.
func openLoop(o order) (result, error) {
	if len(o.Targets) == 0 || o.Rate <= 0 {
		return result{}, fmt.Errorf("open loop: %d targets, %v requests a second", len(o.Targets), o.Rate)
	}
	c := &crowd{rng: rand.New(rand.NewPCG(o.Seed, 1)), active: make([]int, len(o.Targets)), picks: make([]int, len(o.Targets))}
	draws := rand.New(rand.NewPCG(o.Seed, 2))
	var wg sync.WaitGroup
	at := time.Now()
	for range o.N {
		at = at.Add(time.Duration(draws.ExpFloat64() / o.Rate * float64(time.Second)))
		need := time.Duration(draws.ExpFloat64() * float64(o.For))
		time.Sleep(time.Until(at))
		wg.Go(func() { c.request(o, at, need) })
	}
	wg.Wait()
	slices.Sort(c.took)
	return result{
		P50: quantile(c.took, 0.5), P99: quantile(c.took, 0.99), N: c.failed,
		Mean: mean(c.took), Counts: c.picks,
	}, nil
}

// request makes one exchange.
func (c *crowd) request(o order, at time.Time, need time.Duration) {
	target := c.enter(o)
	err := exchangeOnce(o.Targets[target], at, need)
	took := min(time.Since(at), patience)
	if err != nil {
		took = patience
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.active[target]--
	c.took = append(c.took, took)
	if err != nil {
		c.failed++
	}
}

// enter chooses a target. Of equal ones each is as likely.
func (c *crowd) enter(o order) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	best, cost := 0, 0.0
	for k, i := range c.rng.Perm(len(o.Targets)) {
		own := float64(c.active[i] + 1)
		if len(o.Slowdown) > 0 {
			own *= o.Slowdown[i]
		}
		if k == 0 || own < cost {
			best, cost = i, own
		}
	}
	c.active[best]++
	c.picks[best]++
	return best
}

func exchangeOnce(to netip.AddrPort, at time.Time, need time.Duration) error {
	deadline := at.Add(patience)
	d := net.Dialer{Deadline: deadline}
	conn, err := d.Dial("tcp", to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(need.Microseconds()))
	if _, err := conn.Write(b); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, b[:1])
	return err
}

// mean of durations, in ns.
func mean(ds []time.Duration) float64 {
	var sum time.Duration
	for _, d := range ds {
		sum += d
	}
	return float64(sum.Nanoseconds()) / float64(max(len(ds), 1))
}
