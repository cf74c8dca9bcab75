// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// remembered is how long a backend is remembered to which there are no new connections.
const remembered = 10 * time.Minute

// answers counts, from one reading of connection tracking to the next, connections to
// backends that were answered, and those that were not. What it costs does not depend on
// how many Services there are.
type answers struct {
	seen   seen
	prune  time.Time // when to forget next
	mu     sync.Mutex
	failed bool      // connections cannot be read
	at     time.Time // of the last whole reading; zero: there is none
	counts map[netip.AddrPort]answered
}

// answered is what is known of the connections to one backend, whatever Service they are of.
type answered struct {
	some, none uint64    // that were answered, that were not
	at         time.Time // when there was one last
}

// read begins to take note of a reading; add takes note of a connection, again tells whether
// it was there, unanswered, at the reading before.
func (a *answers) read(now time.Time) (add func(fl *flow, again bool)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed = false
	if a.counts == nil {
		a.counts = map[netip.AddrPort]answered{}
	}
	if now.After(a.prune) {
		maps.DeleteFunc(a.counts, func(_ netip.AddrPort, n answered) bool { return now.Sub(n.at) > remembered })
		a.prune = now.Add(remembered / 10)
	}
	reading := a.seen.next()
	return func(fl *flow, again bool) {
		fresh := reading.add(fl.id)
		if !again && (!fresh || !fl.replied) {
			return
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		n := a.counts[fl.backend]
		n.at = now
		if again {
			n.none++
		} else {
			n.some++
		}
		a.counts[fl.backend] = n
	}
}

// refuse takes note of a connection that was refused.
func (a *answers) refuse(fl *flow) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.counts == nil { // nobody wants to know
		return
	}
	n := a.counts[fl.backend]
	n.none, n.at = n.none+1, time.Now()
	a.counts[fl.backend] = n
}

// done ends a reading that was begun then.
func (a *answers) done(began time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at = began
}

// stop forgets everything: nothing is read any more, because that failed or is not wanted.
func (a *answers) stop(failed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed, a.at, a.counts, a.seen = failed, time.Time{}, nil, seen{}
}

// Answered implements dataplane.Answers. One that is new at a reading and
// answered was opened; one that waits for an answer at two readings, a second apart or
// more, has failed, and so has one that was refused, if the kernel tells of those.
func (d *Dataplane) Answered(backend netip.AddrPort) (o lb.Outcomes, ok bool) {
	a := &d.witness.answers
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.counts[backend]
	return lb.Outcomes{Answered: n.some, Failed: n.none, At: a.at, NoRefusals: !d.witness.refusals.heard()}, !a.failed
}

var _ dataplane.Answers = (*Dataplane)(nil)
