// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"maps"
	"slices"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Status says how far the kernel is from what it should be.
type Status struct {
	Synced      bool      // everything there was at start has been handed over once
	QueuedSince time.Time // when the oldest change came in that is not applied; zero if none
	LastSuccess time.Time // when the dataplane last did its work
	Services    int       // applied
	Backends    int       // in them, over their cluster pools
	Syncs       uint64
	Errors      uint64 // Syncs that failed, for one Service or for all

	// Failed says why Services are not what they should be. One that fails for
	// reasons of its own is not queued: it must not make the node unhealthy.
	Failed map[lb.ServiceName]error
}

// Healthy tells whether every change was applied in time, as kube-proxy does with
// a limit of twice its sync period: 60 s by default.
func (s Status) Healthy(now time.Time, limit time.Duration) bool {
	return s.QueuedSince.IsZero() || now.Sub(s.QueuedSince) <= limit
}

// Status returns the present state.
func (a *Agent) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.status
	if !a.arrived.IsZero() && (s.QueuedSince.IsZero() || a.arrived.Before(s.QueuedSince)) {
		s.QueuedSince = a.arrived
	}
	return s
}

// Services returns what the dataplane was told and has, sorted by name.
func (a *Agent) Services() []*dataplane.Service {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.SortedFunc(maps.Values(a.applied), func(x, y *dataplane.Service) int {
		return x.Name.Compare(y.Name)
	})
}

// publish makes the ledger's state visible, together with what set changes.
func (a *Agent) publish(set func(*Status)) {
	queued, failed := a.ledger.queuedSince(), a.ledger.failures()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status.QueuedSince, a.status.Failed = queued, failed
	a.status.Services = len(a.applied)
	set(&a.status)
}
