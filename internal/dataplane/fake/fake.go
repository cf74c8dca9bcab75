// SPDX-License-Identifier: Apache-2.0

// Package fake is a Dataplane in memory. It keeps its state in the pieces a kernel
// has (backends, tables, frontends), writes them one by one in the order in which
// a kernel commits them, and can fail any write.
package fake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// ErrInjected is wrapped by the error of every write that was made to fail.
var ErrInjected = errors.New("injected failure")

// The kinds of Write.
const (
	WriteBackend  = "backend"
	WriteTable    = "table"
	WriteFrontend = "frontend" // also its removal; this is the commit
)

// Write is one write to the pretended kernel.
type Write struct {
	Service lb.ServiceName
	Kind    string
	Key     string
}

// Options describe a fake. The zero value has no node address and never fails.
type Options struct {
	Nodes     []netip.Addr         // the node's addresses; loopback is one only if it is here
	NodePorts lb.NodePortAddresses // at which of them NodePorts answer
	Local     lb.LocalDetector     // which packets are those of pods
	Now       func() time.Time     // for session affinity; nil is time.Now
	FailEvery int                  // each so many writes one fails; 0 is never
	Rand      func() uint32        // for picks; nil is a fixed sequence
	OnWrite   func(Write)          // called after each write that succeeded, without locks
}

// Dataplane is the fake. All methods may be called from any goroutine, but Sync
// from one at a time.
type Dataplane struct {
	opts Options

	mu        sync.Mutex
	failEvery int
	failing   map[lb.ServiceName]error
	down      error
	writes    uint64
	syncs     uint64
	services  map[lb.ServiceName]*dataplane.Service
	installed map[lb.ServiceName]regions
	records   map[lb.FrontendKey]record
	node      lb.Node
	sticky    map[client]remembered
	seq       map[counter]uint32
	opened    map[connections]uint64
	live      map[connections]uint64
	drops     map[string]uint64
	suspects  map[connections]suspicion
	symptoms  chan lb.Symptom

	symptomsLost uint64
}

// region is a pool in the kernel: it is filled before a record points at it, and
// never changed after that.
type region struct {
	backends []lb.Backend
	table    algo.Table
	balance  lb.Balance
	empty    lb.Verdict
}

// regions are what a Service's records lead to, with its terms, which are shared as
// long as they are equal.
type regions struct {
	cluster, local *region
	terms          *lb.Terms
}

// record is what a frontend's key leads to.
type record struct {
	frontend lb.Frontend
	owner    lb.ServiceName
	regions  regions
}

// New returns an empty Dataplane.
func New(o Options) *Dataplane {
	if o.Rand == nil {
		state := uint32(1)
		o.Rand = func() uint32 { // Marsaglia's xorshift
			state ^= state << 13
			state ^= state >> 17
			state ^= state << 5
			return state
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Dataplane{
		opts:      o,
		failEvery: o.FailEvery,
		failing:   map[lb.ServiceName]error{},
		services:  map[lb.ServiceName]*dataplane.Service{},
		installed: map[lb.ServiceName]regions{},
		records:   map[lb.FrontendKey]record{},
		sticky:    map[client]remembered{},
		seq:       map[counter]uint32{},
		opened:    map[connections]uint64{},
		live:      map[connections]uint64{},
		drops:     map[string]uint64{},
		suspects:  map[connections]suspicion{},
		symptoms:  make(chan lb.Symptom, symptomsWaiting),
	}
}

// Reopen returns what an agent that starts again finds: all that the pretended
// kernel has. d is not to be used any more.
func (d *Dataplane) Reopen() *Dataplane {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := New(d.opts)
	n.services, n.installed, n.records = d.services, d.installed, d.records
	n.sticky, n.seq, n.opened, n.live, n.drops = d.sticky, d.seq, d.opened, d.live, d.drops
	n.suspects = d.suspects
	return n
}

// SetNode implements dataplane.NodeSetter.
func (d *Dataplane) SetNode(n lb.Node) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.node = n
}

// SetFailEvery changes Options.FailEvery.
func (d *Dataplane) SetFailEvery(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failEvery = n
}

// FailService makes every write for name fail with err, until err is nil.
func (d *Dataplane) FailService(name lb.ServiceName, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		delete(d.failing, name)
		return
	}
	d.failing[name] = err
}

// SetDown makes Sync return err and do nothing, until err is nil.
func (d *Dataplane) SetDown(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.down = err
}

// Writes returns how many writes were tried.
func (d *Dataplane) Writes() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.writes
}

// Syncs returns how often Sync was called.
func (d *Dataplane) Syncs() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.syncs
}

// Services returns what is in effect.
func (d *Dataplane) Services() map[lb.ServiceName]*dataplane.Service {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.services)
}

// Sync implements dataplane.Dataplane. What is put comes before what is deleted,
// so that a frontend that moves from one Service to another never stops to answer.
func (d *Dataplane) Sync(ctx context.Context, delta dataplane.Delta) error {
	if err := d.begin(ctx); err != nil {
		return err
	}
	next := make(map[lb.ServiceName]*dataplane.Service, len(delta.Put))
	for _, svc := range delta.Put {
		next[svc.Name] = svc
	}
	gone := d.gone(delta, next)
	var failed dataplane.SyncError
	for _, svc := range delta.Put {
		if err := d.put(svc, next, gone); err != nil {
			failed.Fail(svc.Name, err)
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(gone), lb.ServiceName.Compare) {
		if err := d.remove(name); err != nil {
			failed.Fail(name, err)
		}
	}
	return failed.OrNil()
}

func (d *Dataplane) begin(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.syncs++
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return d.down
}

// gone returns the names that delta takes away.
func (d *Dataplane) gone(
	delta dataplane.Delta, next map[lb.ServiceName]*dataplane.Service,
) map[lb.ServiceName]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	gone := map[lb.ServiceName]bool{}
	for _, name := range delta.Delete {
		gone[name] = true
	}
	if delta.Full {
		for name := range d.services {
			gone[name] = true
		}
	}
	for name := range next {
		delete(gone, name)
	}
	return gone
}

// write makes one write, unless it is to fail. apply runs under the lock.
func (d *Dataplane) write(w Write, apply func()) error {
	d.mu.Lock()
	d.writes++
	err := d.failing[w.Service]
	if err == nil && d.failEvery > 0 && d.writes%uint64(d.failEvery) == 0 {
		err = ErrInjected
	}
	if err == nil {
		apply()
	}
	d.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%s %s: %w", w.Kind, w.Key, err)
	}
	if d.opts.OnWrite != nil {
		d.opts.OnWrite(w)
	}
	return nil
}
