// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

const (
	// leftoverGap is the least time between two looks for what Syncs left behind: a look
	// passes over all sockets that lbproxy translated. Where it has to pass over all open
	// files, it may take long: then the time between two is leftoverShare of that.
	leftoverGap   = 20 * time.Millisecond
	leftoverShare = 4

	// What could not be ended is tried again after retryFirst, at last each retryLast.
	retryFirst = 5 * time.Second
	retryLast  = time.Minute
)

// leftovers are what Syncs have left behind since the last look.
type leftovers struct {
	flows bool             // some lead to backends, or through frontends, that are gone
	early []lb.FrontendKey // of UDP, which nobody answered before: sockets may have connected to them
}

func (l *leftovers) any() bool { return l.flows || len(l.early) > 0 }

// answered returns frontends of want that nobody has answered and that are answered when
// c is committed. What was there before the first full Sync may be served by another
// proxy.
func (d *Dataplane) answered(c *change, want *dataplane.Service) (early []lb.FrontendKey) {
	if want.Name.Proto != lb.UDP || !d.complete {
		return nil
	}
	first := false // a pool gets its first backends
	for sc := range lb.Scope(scopes) {
		first = first || len(c.svc.ids[sc]) == 0 && len(c.pools[sc].ids) > 0
	}
	for _, f := range want.Frontends {
		if f.Ranged || len(c.pools[f.Inside].ids) == 0 {
			continue // processes that connect from now on may be meant to get no answer
		}
		if old, had := d.frontends[frontendKeyOf(f.FrontendKey)]; first || !had || old.Service != c.svc.id {
			early = append(early, f.FrontendKey)
		}
	}
	return early
}

// wakeLeftovers makes endLeftovers look, if there is something to look for. d.mu is held.
func (d *Dataplane) wakeLeftovers() {
	if d.left.any() {
		wake(d.gone)
	}
}

// takeLeftovers returns what to look for, and forgets it.
func (d *Dataplane) takeLeftovers() leftovers {
	d.mu.Lock()
	defer d.mu.Unlock()
	left := d.left
	d.left = leftovers{}
	return left
}

// endLeftovers ends, after Syncs that made them so, sockets that are connected to what is
// gone, or that connected before anybody answered; a sweep removes flows. What could not
// be ended is tried again after a while.
func (d *Dataplane) endLeftovers(ctx context.Context) error {
	var again <-chan time.Time
	wait := retryFirst
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.gone:
		case <-again:
			d.mu.Lock()
			d.left.flows = true
			d.mu.Unlock()
		}
		left := d.takeLeftovers()
		if left.flows {
			n, err := d.killer.killStale(ctx)
			wake(d.flush) // after it: a sweep walks whole tables, and takes the processor for that long
			d.tellKilled("connected to what is gone", n, err)
			if again = nil; err != nil && ctx.Err() == nil {
				again, wait = time.After(wait), min(2*wait, retryLast)
			} else {
				wait = retryFirst
			}
		}
		if len(left.early) > 0 {
			n, err := d.killer.killEarly(ctx, left.early)
			d.tellKilled("connected before anybody answered", n, err)
		}
		took := d.killer.walked
		d.killer.walked = 0
		if !sleep(ctx, max(leftoverGap, leftoverShare*took)) {
			return nil
		}
	}
}

func (d *Dataplane) tellKilled(what string, n int, err error) {
	switch {
	case err != nil:
		d.opts.Log.Warn("sockets were not all closed", "sockets", what, "closed", n, "error", err)
	case n > 0:
		d.opts.Log.Debug("sockets were closed", "sockets", what, "closed", n)
	}
}

// wake puts a value into a channel of capacity 1.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // it has one
	}
}
