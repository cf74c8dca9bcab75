// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"iter"
	"maps"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// auditChunk is how many Services are audited at a time: no event waits longer than
// that takes.
const auditChunk = 16

// auditor compares the kernel with what was applied, all of it once in a period,
// spread over the period. It is owned by Run.
type auditor struct {
	plane  dataplane.Auditor // nil: there are no audits
	period time.Duration

	at     time.Time     // when the next chunk is due; zero: there was no full Sync yet
	every  time.Duration // between the chunks of a pass
	next   func() (lb.ServiceName, *dataplane.Service, bool)
	stop   func()
	ahead  lb.ServiceName // what next returned last, if more
	more   bool
	broken string // the last failure that was logged
}

// AuditPeriod returns how long a comparison of everything with the kernel takes.
func (a *Agent) AuditPeriod() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.auditPeriod
}

// SetAuditPeriod changes how long a comparison of everything with the kernel takes; 0:
// there is none.
func (a *Agent) SetAuditPeriod(d time.Duration) {
	a.mu.Lock()
	a.auditPeriod = d
	a.mu.Unlock()
	a.nudge()
}

// takePeriod begins anew if the period is another one. It belongs to Run.
func (a *Agent) takePeriod() {
	a.mu.Lock()
	period := a.auditPeriod
	a.mu.Unlock()
	if period != a.audits.period {
		a.audits.end()
		a.audits = newAuditor(a.opts.Dataplane, period)
	}
}

func newAuditor(dp dataplane.Dataplane, period time.Duration) auditor {
	plane, _ := dp.(dataplane.Auditor)
	if period <= 0 {
		plane = nil
	}
	return auditor{plane: plane, period: period}
}

// begin starts a pass over applied at now. Services may be added to it and removed
// from it meanwhile, between calls of chunk.
func (au *auditor) begin(applied map[lb.ServiceName]*dataplane.Service, now time.Time) {
	chunks := max(1, (len(applied)+auditChunk-1)/auditChunk)
	au.every = au.period / time.Duration(chunks)
	au.at = now.Add(au.every)
	au.next, au.stop = iter.Pull2(maps.All(applied))
	au.ahead, _, au.more = au.next()
}

// end stops a pass that is under way.
func (au *auditor) end() {
	if au.stop != nil {
		au.stop()
	}
	au.next, au.stop = nil, nil
}

// chunk returns the next Services of the pass as applied has them, which may be none;
// last says that the pass is over.
func (au *auditor) chunk(applied map[lb.ServiceName]*dataplane.Service) (svcs []*dataplane.Service, last bool) {
	for au.more && len(svcs) < auditChunk {
		if svc := applied[au.ahead]; svc != nil { // it may have gone since
			svcs = append(svcs, svc)
		}
		au.ahead, _, au.more = au.next()
	}
	return svcs, !au.more
}

// auditTimer returns when the next chunk of an audit is due. Nothing is sure before a
// full Sync, or while the dataplane as a whole fails.
func (a *Agent) auditTimer() <-chan time.Time {
	if a.audits.plane == nil || a.ledger.full || a.broken != "" {
		return nil
	}
	if a.audits.next == nil {
		a.audits.begin(a.applied, time.Now())
	}
	return time.After(time.Until(a.audits.at))
}

// audit compares one chunk. A Service whose last change failed has what it had.
func (a *Agent) audit(ctx context.Context) {
	svcs, last := a.audits.chunk(a.applied)
	found, err := a.audits.plane.Audit(ctx, svcs)
	if ctx.Err() != nil {
		return
	}
	for _, text := range found {
		a.log.Warn("kernel was not as it should be, repaired", "difference", text)
	}
	switch {
	case err == nil && a.audits.broken != "" && last:
		a.audits.broken = ""
	case err != nil && err.Error() != a.audits.broken:
		a.audits.broken = err.Error()
		a.log.Error("audit failed; will go on", "error", err)
	}
	a.publish(func(s *Status) {
		s.AuditDifferences += uint64(len(found))
		if err != nil {
			s.AuditFailures++
		}
		if last {
			s.Audits++
		}
	})
	a.audits.at = time.Now().Add(a.audits.every)
	if last {
		a.audits.end() // the next pass begins with the next wait
	}
}
