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

	Families [2]FamilyStatus // IPv4, IPv6

	Audits           uint64 // passes over everything
	AuditDifferences uint64 // found and repaired
	AuditFailures    uint64 // chunks that could not be compared

	// Failed says why Services are not what they should be. One that fails for
	// reasons of its own is not queued: it must not make the node unhealthy.
	Failed map[lb.ServiceName]error
}

// FamilyStatus is what concerns one IP family.
type FamilyStatus struct {
	QueuedSince time.Time // as Status has it
	LastQueued  time.Time // when its last change came in; zero: never
	LastSuccess time.Time // when the dataplane last changed something of it, or everything

	// NoLocal are Services that some callers cannot use because the traffic policy is
	// Local and their endpoints are all on other nodes.
	NoLocal NoLocal
}

// NoLocal counts Services by the traffic policy that is Local.
type NoLocal struct{ Internal, External int }

// Healthy tells whether every change was applied in time, as kube-proxy does with
// a limit of twice its sync period: 60 s by default.
func (s Status) Healthy(now time.Time, limit time.Duration) bool {
	return inTime(s.QueuedSince, now, limit)
}

// Healthy is Status.Healthy for the changes of one family.
func (f FamilyStatus) Healthy(now time.Time, limit time.Duration) bool {
	return inTime(f.QueuedSince, now, limit)
}

func inTime(queued, now time.Time, limit time.Duration) bool {
	return queued.IsZero() || now.Sub(queued) < limit
}

// Status returns the present state.
func (a *Agent) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, arrived := a.status, earlier(a.asked, a.opts.Source.Since())
	s.QueuedSince = earlier(s.QueuedSince, arrived)
	for i := range s.Families { // what has arrived and was not looked at may concern both
		s.Families[i].QueuedSince = earlier(s.Families[i].QueuedSince, arrived)
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
	a.status.QueuedSince, a.status.Failed = earlier(queued[0], queued[1]), failed
	for i := range a.status.Families {
		a.status.Families[i].QueuedSince = queued[i]
		a.status.Families[i].LastQueued = a.ledger.queued[i]
	}
	a.status.Services = len(a.applied)
	set(&a.status)
}

// count adds svc to what is counted by family, n times; nil is nothing. a.mu is held.
func (a *Agent) count(svc *dataplane.Service, n int) {
	if svc == nil {
		return
	}
	a.status.Backends += n * len(svc.Cluster.Backends)
	internal, external := noLocal(svc)
	counts := &a.status.Families[familyIndex(svc.Name.Family)].NoLocal
	if internal {
		counts.Internal += n
	}
	if external {
		counts.External += n
	}
}

// noLocal tells whether callers get silence because their traffic policy is Local and
// nobody is here: those of the cluster IP, and others.
func noLocal(svc *dataplane.Service) (internal, external bool) {
	if len(svc.Local.Backends) > 0 || svc.Local.Empty != lb.Drop {
		return false, false
	}
	for _, f := range svc.Frontends {
		if f.Type == lb.ClusterIP {
			internal = internal || f.Inside == lb.ScopeLocal
		} else {
			external = external || f.Outside == lb.ScopeLocal
		}
	}
	return internal, external
}

// Families tells which IP families d is about: IPv4, IPv6. One that is everything is
// about both.
func Families(d dataplane.Delta) (about [2]bool) {
	if d.Full {
		return [2]bool{true, true}
	}
	for _, svc := range d.Put {
		about[familyIndex(svc.Name.Family)] = true
	}
	for _, name := range d.Delete {
		about[familyIndex(name.Family)] = true
	}
	return about
}
