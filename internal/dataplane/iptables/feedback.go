// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"log/slog"
	"maps"
	"math"
	"net/netip"
	"sync"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/lb"
)

const (
	// busy is the part of the time that may be spent on loads. If reading and writing
	// takes longer it is done less often.
	busy = 0.1
	// moved is by how much a share must differ from what the kernel has to be worth a
	// write: one connection of fifty. In pools of more than movedOf it is a fifth of an
	// equal share: with a fixed one those who get little would never be corrected.
	moved   = 0.02
	movedOf = 10
	// recent is how old a count of connections may be for those who only look at it.
	recent = 5 * time.Second
)

// poolKey names a pool.
type poolKey struct {
	name  lb.ServiceName
	scope lb.Scope
}

// loaded is a pool and where its connections come from.
type loaded struct {
	name      lb.ServiceName
	scope     lb.Scope
	frontends []lb.FrontendKey
	backends  []lb.Backend
	table     algo.Table
}

// feedback turns loads into shares. Its calls may be concurrent, but for tick, of which
// there is one at a time.
type feedback struct {
	list    func() []loaded
	latency func(netip.AddrPort) time.Duration
	apply   func(context.Context, map[poolKey][]float64) error
	log     *slog.Logger
	flows   func(lb.Family, lb.Proto, func(flow)) error
	close   func()

	// Only tick uses these.
	pools     map[poolKey]*poolLoad
	seen      seen
	last      time.Time // when flows were read; zero: never
	next      time.Time // not before then again
	told      string    // the error that was logged last
	stretched bool      // it was logged that reading takes long

	mu       sync.Mutex // guards what follows
	ticked   counts     // of load-driven Services
	tickedAt time.Time
	asked    counts // of all, when somebody asked
	askedAt  time.Time
}

// poolLoad is what is known of a pool from before.
type poolLoad struct {
	members []lb.Backend
	shares  []float64 // that the kernel has; nil: not known
	rate    float64   // moving average of new connections per second
}

// newFeedback returns a feedback that reads the connection tracking of the calling
// thread's network namespace, wherever it is used. list returns the pools whose shares
// depend on loads, and apply makes shares those of pools.
func newFeedback(
	list func() []loaded, latency func(netip.AddrPort) time.Duration,
	apply func(context.Context, map[poolKey][]float64) error, log *slog.Logger,
) *feedback {
	f := &feedback{list: list, latency: latency, apply: apply, log: log, pools: map[poolKey]*poolLoad{}}
	c, err := openConntrack()
	if err != nil {
		f.flows = func(lb.Family, lb.Proto, func(flow)) error { return err }
		f.close = func() {}
		return f
	}
	f.flows, f.close = c.flows, c.close
	return f
}

// tick reads loads and applies the shares that moved. It is called once a period, and
// does nothing if the time before took too long, or if no pool depends on loads.
func (f *feedback) tick(ctx context.Context) {
	now := time.Now()
	if now.Before(f.next) {
		if !f.stretched {
			f.stretched = true
			f.log.Info("loads are read less often than asked, because that takes long", "pause", f.next.Sub(f.last))
		}
		return
	}
	list := f.list()
	f.forget(list)
	if len(list) == 0 {
		f.last, f.seen = time.Time{}, seen{}
		return
	}
	f.tell(f.update(ctx, list, now))
	f.next = now.Add(time.Duration(float64(time.Since(now)) / busy))
}

// update reads loads and applies what moved.
func (f *feedback) update(ctx context.Context, list []loaded, now time.Time) error {
	var since time.Duration
	if !f.last.IsZero() {
		since = now.Sub(f.last)
	}
	f.last = now
	read, err := f.count(list, f.seen.next())
	if err != nil {
		f.last = time.Time{} // what is new next time is new since who knows when
		return err
	}
	f.mu.Lock()
	f.ticked, f.tickedAt = read, now
	f.mu.Unlock()
	changed := map[poolKey][]float64{}
	for i := range list {
		l := &list[i]
		p := f.pool(l)
		shares := f.sharesOf(l, p, read[l.name], since)
		if shares != nil && p.moved(shares) {
			changed[poolKey{l.name, l.scope}] = shares
		}
	}
	if len(changed) == 0 {
		return nil
	}
	if err := f.apply(ctx, changed); err != nil {
		return err
	}
	for key, shares := range changed {
		f.pools[key].shares = shares
	}
	return nil
}

// members returns the backends for which the shares of a pool are that apply is given.
func (f *feedback) members(key poolKey) []lb.Backend {
	if p := f.pools[key]; p != nil {
		return p.members
	}
	return nil
}

// forget drops what is known of pools that list does not have.
func (f *feedback) forget(list []loaded) {
	here := make(map[poolKey]bool, len(list))
	for i := range list {
		here[poolKey{list[i].name, list[i].scope}] = true
	}
	maps.DeleteFunc(f.pools, func(key poolKey, _ *poolLoad) bool { return !here[key] })
}

// pool returns what is known of a pool. If its Service was told anew, what the kernel has
// is not.
func (f *feedback) pool(l *loaded) *poolLoad {
	key := poolKey{l.name, l.scope}
	p := f.pools[key]
	if p == nil {
		p = &poolLoad{}
		f.pools[key] = p
	}
	if len(p.members) != len(l.backends) || len(l.backends) > 0 && &p.members[0] != &l.backends[0] {
		p.shares = nil
	}
	p.members = l.backends
	return p
}

// sharesOf computes the shares of a pool. since is the time from the reading before, 0:
// there was none. It expects at least one connection for each backend: fewer would all go
// to the one that has the fewest now.
func (f *feedback) sharesOf(l *loaded, p *poolLoad, read map[netip.AddrPort]*count, since time.Duration) []float64 {
	active := make([]float64, len(l.backends))
	var latency []time.Duration
	if l.table.Cost == algo.Time {
		latency = make([]time.Duration, len(l.backends))
	}
	var fresh float64
	for i, be := range l.backends {
		if c := read[be.Addr]; c != nil {
			active[i] = float64(c.live)
			fresh += float64(c.fresh)
		}
		if latency != nil {
			latency[i] = f.latency(be.Addr)
		}
	}
	if since > 0 {
		p.rate = (p.rate + fresh/since.Seconds()) / 2
	}
	return loadShares(l.table, active, latency, max(p.rate*since.Seconds(), float64(len(active))))
}

// moved tells whether shares differ enough from what the kernel has.
func (p *poolLoad) moved(shares []float64) bool {
	if len(p.shares) != len(shares) {
		return true
	}
	most := min(moved, moved*movedOf/float64(len(shares)))
	for i, s := range shares {
		if math.Abs(s-p.shares[i]) > most {
			return true
		}
	}
	return false
}

// tell logs an error, once.
func (f *feedback) tell(err error) {
	text := ""
	if err != nil {
		text = err.Error()
		if text != f.told {
			f.log.Error("shares do not follow loads", "error", err)
		}
	}
	f.told = text
}
