// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	patience = 2 * time.Second        // of a client
	slow     = time.Second            // a connection that takes longer counts as failed
	stretch  = 500 * time.Millisecond // of connections that are asked for at a time
	ahead    = 100 * time.Millisecond // so long before they are due
)

// sample is one connection: made, answered and closed.
type sample struct {
	Node    int           `json:"node"`
	Client  string        `json:"client"`
	Begun   time.Time     `json:"begun"`
	Late    time.Duration `json:"late"` // than it was due: the machine is busy
	Took    time.Duration `json:"took"`
	Kind    lab.Kind      `json:"kind"`
	Backend string        `json:"backend,omitempty"`
}

// failed tells whether it did, or was answered too late.
func (s sample) failed() bool { return s.Kind != lab.OK || s.Took > slow }

// load is connections that begin at fixed times, whatever becomes of those before.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	samples []sample
	errs    []error
}

// load begins rate connections a second on each of some nodes, half of them from each
// client. Nodes and clients take turns.
func (s *site) load(ctx context.Context, rate int, nodes ...int) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{cancel: cancel}
	start := time.Now().Add(2 * ahead)
	every := 2 * time.Second / time.Duration(rate)
	for n, i := range nodes {
		for k, name := range clientsOf(i) {
			turn := every * time.Duration(2*n+k) / time.Duration(2*len(nodes))
			l.wg.Go(func() { l.keep(ctx, s.lab.Host(name), i, start.Add(turn), every) })
		}
	}
	return l
}

// all are the numbers of the nodes.
func (s *site) all() (nodes []int) {
	for i := range s.nodes {
		nodes = append(nodes, i)
	}
	return nodes
}

// keep asks for one stretch of a client's connections after the other.
func (l *load) keep(ctx context.Context, client *lab.Host, node int, start time.Time, every time.Duration) {
	n := max(1, int(stretch/every))
	for {
		if sleep(ctx, time.Until(start.Add(-ahead))) != nil {
			return
		}
		begin := start
		l.wg.Go(func() {
			paced, err := client.DialPaced(context.WithoutCancel(ctx), lab.Request{Proto: lab.TCP, To: vip, Timeout: patience}, begin, every, n)
			l.note(client.Name, node, paced, err)
		})
		start = start.Add(time.Duration(n) * every)
	}
}

func (l *load) note(client string, node int, paced []lab.Paced, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range paced {
		l.samples = append(l.samples, sample{node, client, p.Begun, p.Begun.Sub(p.Due), p.Took, p.Kind, p.Backend})
	}
	if err != nil {
		l.errs = append(l.errs, err)
	}
}

// stop waits for the last connections of loads and returns all, in the order of their
// beginning.
func stop(loads ...*load) (all []sample, err error) {
	for _, l := range loads {
		l.cancel()
		l.wg.Wait()
		all = append(all, l.samples...)
		err = errors.Join(err, errors.Join(l.errs...))
	}
	slices.SortFunc(all, func(a, b sample) int { return cmp.Compare(a.Begun.UnixNano(), b.Begun.UnixNano()) })
	return all, err
}
