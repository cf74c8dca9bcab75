// SPDX-License-Identifier: Apache-2.0

package agent

import "time"

// A pacer lets paceCount Syncs pass at once and then at most as many in any
// paceWindow, without ever holding one back for longer than paceWait. In a storm
// of events a Sync then covers up to 10 ms of them.
const (
	paceCount  = 10
	paceWindow = 100 * time.Millisecond
	paceWait   = 10 * time.Millisecond
)

// pacer remembers when the last Syncs began.
type pacer struct {
	begun [paceCount]time.Time // a ring
	next  int                  // the oldest entry
}

// wait returns how long a Sync at now should wait for more events.
func (p *pacer) wait(now time.Time) time.Duration {
	return min(max(p.begun[p.next].Add(paceWindow).Sub(now), 0), paceWait)
}

// mark notes that a Sync begins.
func (p *pacer) mark(now time.Time) {
	p.begun[p.next] = now
	p.next = (p.next + 1) % paceCount
}
