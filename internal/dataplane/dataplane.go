// SPDX-License-Identifier: Apache-2.0

// Package dataplane describes what a node's kernel should do, as values, and the
// contract of the things that make a kernel do it.
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// ErrFull is wrapped by an error that says a table of the dataplane has no room
// for a Service.
var ErrFull = errors.New("no room")

// Pool is a compiled lb.Pool: its backends and the table to pick from.
type Pool struct {
	Backends []lb.Backend // sorted by address
	Table    algo.Table   // indexes into Backends
	Empty    lb.Verdict   // what callers get when Backends is empty
}

// Service is what the kernel should do for one Service port of one family.
// It is never changed after it was handed to a Dataplane.
type Service struct {
	Name      lb.ServiceName
	Balance   lb.Balance // with the cluster's defaults filled in; the kernel knows only Table.Kind
	Frontends []lb.Frontend
	Cluster   Pool
	Local     Pool
	Terms     lb.Terms
}

// Pool returns the pool of scope sc.
func (s *Service) Pool(sc lb.Scope) *Pool {
	if sc == lb.ScopeLocal {
		return &s.Local
	}
	return &s.Cluster
}

// Delta is a set of Services whose present state may differ from the kernel's.
// Services it does not name keep what they have, unless Full is set.
type Delta struct {
	Put    []*Service
	Delete []lb.ServiceName
	Full   bool // Put is everything: whatever it does not name must go
}

// Dataplane makes the kernel serve what it is told. Calls are idempotent and
// come from one goroutine.
type Dataplane interface {
	// Sync makes every Service of d what d says. A Service that cannot be
	// programmed costs only itself: it keeps what it had, or is absent if it is
	// new, and is named in the returned *SyncError; all others are applied.
	Sync(ctx context.Context, d Delta) error
}

// SyncError tells which Services could not be programmed, and why.
type SyncError struct {
	Failed map[lb.ServiceName]error
	Other  error // what concerns no single Service
}

// Error names the first failed Service and counts the others.
func (e *SyncError) Error() string {
	names := e.Names()
	if len(names) == 0 {
		return fmt.Sprintf("sync: %v", e.Other)
	}
	first := fmt.Sprintf("service %s: %v", names[0], e.Failed[names[0]])
	if n := len(names); n > 1 {
		first = fmt.Sprintf("%s (and %d more)", first, n-1)
	}
	if e.Other != nil {
		return fmt.Sprintf("%s; %v", first, e.Other)
	}
	return first
}

// Names returns the failed Services in order.
func (e *SyncError) Names() []lb.ServiceName {
	names := make([]lb.ServiceName, 0, len(e.Failed))
	for n := range e.Failed {
		names = append(names, n)
	}
	slices.SortFunc(names, lb.ServiceName.Compare)
	return names
}

// Unwrap returns every cause.
func (e *SyncError) Unwrap() []error {
	errs := make([]error, 0, len(e.Failed)+1)
	for _, n := range e.Names() {
		errs = append(errs, e.Failed[n])
	}
	if e.Other != nil {
		errs = append(errs, e.Other)
	}
	return errs
}

// Fail records err for name.
func (e *SyncError) Fail(name lb.ServiceName, err error) {
	if e.Failed == nil {
		e.Failed = map[lb.ServiceName]error{}
	}
	e.Failed[name] = err
}

// OrNil returns e, or nil when nothing failed.
func (e *SyncError) OrNil() error {
	if len(e.Failed) == 0 && e.Other == nil {
		return nil
	}
	return e
}

// BackendStats counts one backend of one Service since it was added.
type BackendStats struct {
	Service lb.ServiceName
	Backend netip.AddrPort
	Live    uint64 // connections (UDP: flows) that have not ended
	Leaving bool   // no longer takes new connections

	Counted  bool   // the dataplane counts them; otherwise the following are 0
	Opened   uint64 // connections that were given to it
	Closed   uint64 // of those, how many have ended
	Failed   uint64 // of those, how many ended before they were established
	Answered uint64 // connections that were established; flows of UDP sockets are not among them

	Latency time.Duration // moving average; 0: not measured
}

// MapUsage is the fill of one kernel table.
type MapUsage struct {
	Name string
	Used uint64
	Max  uint64
}

// Counts are connections and UDP flows since the agent started, also those of backends
// that have been removed: they never fall.
type Counts struct {
	Opened uint64
	Closed uint64
	Failed uint64
}

// Stats is what a dataplane has counted.
type Stats struct {
	Backends []BackendStats
	Services map[lb.ServiceName]Counts // nil: the dataplane does not count
	Total    Counts                    // also of Services that have been removed
	Maps     []MapUsage
	Drops    map[string]uint64 // packets and calls not served, by reason

	// Corrections is by how many connections the counts of backends were found
	// wrong; anything but 0 is a bug.
	Corrections uint64

	// SymptomsLost is how many symptoms nobody took in time: see Witness.
	SymptomsLost uint64

	Rules []RuleStats // of dataplanes with rules, by family
}

// NodeSetter is implemented by dataplanes that depend on the Node object. SetNode may
// be called from any goroutine, at any time; what it tells is used soon after.
type NodeSetter interface {
	SetNode(lb.Node)
}

// AddressSetter is implemented by dataplanes that take over other addresses while they
// run: the ranges of the cluster's pods, which count where callers are told by them, and
// where NodePorts answer. SetAddresses may be called from any goroutine; what it tells is
// used soon after.
type AddressSetter interface {
	SetAddresses(pods []netip.Prefix, nodePorts lb.NodePortAddresses)
}

// Auditor is implemented by dataplanes that can compare the kernel with what it
// should have.
type Auditor interface {
	// Audit compares what the kernel has for svcs, which are those of the last Syncs and
	// may be none, repairs what differs, and returns what that was, in words. Each call
	// also looks at a bounded number of entries that may belong to no Service, and goes
	// on behind them in the next. It is not interrupted by changes: how many svcs there
	// are says how long they wait. Calls come from the goroutine that calls Sync.
	Audit(ctx context.Context, svcs []*Service) ([]string, error)
}

// StatsReader is implemented by dataplanes that count. It may be called from any
// goroutine, at any time.
type StatsReader interface {
	Stats() (Stats, error)
}
