// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"sync"
	"time"

	"github.com/lbproxy/lbproxy/internal/agent"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// observer is told of Syncs.
type observer struct {
	ready  <-chan struct{} // the first Sync waits until it is closed
	before func(dataplane.Delta)
	after  func(dataplane.Delta, error)
	took   func(d time.Duration, changed [2]bool, full bool) // which families it was about: IPv4, IPv6
}

// timed is a dataplane whose Syncs are observed.
type timed struct {
	dataplane.Dataplane
	observer
}

// Sync applies d.
func (t timed) Sync(ctx context.Context, d dataplane.Delta) error {
	select {
	case <-t.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	t.before(d)
	begin := time.Now()
	err := t.Dataplane.Sync(ctx, d)
	t.took(time.Since(begin), agent.Families(d), d.Full)
	t.after(d, err)
	return err
}

// auditedAndTimed is a timed dataplane that can be audited.
type auditedAndTimed struct {
	timed
	dataplane.Auditor
}

// observed returns dp with its Syncs observed.
func observed(dp dataplane.Dataplane, o observer) dataplane.Dataplane {
	t := timed{dp, o}
	if auditor, ok := dp.(dataplane.Auditor); ok {
		return auditedAndTimed{t, auditor}
	}
	return t
}

// ownNode hands on what the own Node says. Its methods may be called from any
// goroutine.
type ownNode struct {
	mu        sync.Mutex
	heard     chan struct{} // closed with the first news; see ready
	known     bool          // heard is closed
	last      lb.Node
	listeners []func(lb.Node)
}

// set takes over what the Node says now.
func (o *ownNode) set(n lb.Node) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = n
	for _, tell := range o.listeners {
		tell(n)
	}
	if !o.known {
		o.known = true
		close(o.ready())
	}
}

// tell calls listener whenever the Node says something else, and at once if it has
// said something. It must not block.
func (o *ownNode) tell(listener func(lb.Node)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.listeners = append(o.listeners, listener)
	if o.known {
		listener(o.last)
	}
}

// told returns what is closed when the listeners have heard of the Node, or that there
// is none.
func (o *ownNode) told() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.ready()
}

// ready returns o.heard, which is made when it is needed. o.mu is held.
func (o *ownNode) ready() chan struct{} {
	if o.heard == nil {
		o.heard = make(chan struct{})
	}
	return o.heard
}
