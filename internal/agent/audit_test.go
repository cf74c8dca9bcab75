// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// auditRig is a rig that can be audited.
type auditRig struct {
	*rig
	audits []auditCall // guarded by rig.mu, as what follows
	takes  time.Duration
	finds  map[lb.ServiceName]string
	fails  error
}

// auditCall is a call of Audit.
type auditCall struct {
	at    time.Duration // since the rig was made
	syncs int           // before it
	svcs  []*dataplane.Service
}

func (r *auditRig) Audit(ctx context.Context, svcs []*dataplane.Service) (found []string, err error) {
	r.mu.Lock()
	r.audits = append(r.audits, auditCall{time.Since(r.began), len(r.calls), svcs})
	takes := r.takes
	for _, svc := range svcs {
		if text, ok := r.finds[svc.Name]; ok {
			found = append(found, text)
			delete(r.finds, svc.Name)
		}
	}
	err = r.fails
	r.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(takes):
	}
	return found, err
}

// take returns the calls since the last take.
func (r *auditRig) take() []auditCall {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.audits
	r.audits = nil
	return out
}

// inAuditRig runs f with an Agent of n Services s0, s1 ... that is audited in a minute.
func inAuditRig(t *testing.T, n int, f func(r *auditRig)) {
	t.Helper()
	var svcs []*lb.Service
	for i := range n {
		svc := service(fmt.Sprint("s", i), "10.244.0.1:80")
		svc.Frontends[0].Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)}), 80)
		svcs = append(svcs, svc)
	}
	ar := &auditRig{finds: map[lb.ServiceName]string{}}
	inBubbleWith(t, func(r *rig, o *Options) {
		ar.rig = r
		o.Dataplane, o.AuditPeriod = ar, time.Minute
	}, func(*rig) { f(ar) }, svcs...)
}

func TestAuditSeesEverythingOnceInAPeriod(t *testing.T) {
	const n = 10*auditChunk + 1
	inAuditRig(t, n, func(r *auditRig) {
		r.pass(time.Minute)
		seen := map[lb.ServiceName]int{}
		last := time.Duration(0)
		calls := r.take()
		for _, c := range calls {
			if len(c.svcs) > auditChunk {
				t.Errorf("%d Services at a time, want at most %d", len(c.svcs), auditChunk)
			}
			if gap := c.at - last; gap < time.Minute/11 || gap > time.Minute/11+time.Microsecond {
				t.Errorf("%v between two chunks, want %v", gap, time.Minute/11)
			}
			last = c.at
			for _, svc := range c.svcs {
				seen[svc.Name]++
				if svc != r.agent.applied[svc.Name] {
					t.Errorf("%s is not what was applied", svc.Name)
				}
			}
		}
		for name, times := range seen {
			if times != 1 {
				t.Errorf("%s was audited %d times in a period, want once", name, times)
			}
		}
		if len(seen) != n || len(calls) != 11 {
			t.Errorf("%d Services in %d chunks, want %d in 11", len(seen), len(calls), n)
		}
		r.pass(time.Minute)
		if s := r.agent.Status(); s.Audits != 2 || s.AuditDifferences != 0 || s.AuditFailures != 0 {
			t.Errorf("status %+v, want two audits that found nothing", s)
		}
	})
}

// TestAuditWithoutServices: what is in the kernel then belongs to nobody.
func TestAuditWithoutServices(t *testing.T) {
	inAuditRig(t, 0, func(r *auditRig) {
		r.pass(5*time.Minute + time.Second)
		calls := r.take()
		for _, c := range calls {
			if len(c.svcs) > 0 {
				t.Errorf("%d Services were audited, want none", len(c.svcs))
			}
		}
		if s := r.agent.Status(); len(calls) != 5 || s.Audits != 5 {
			t.Errorf("%d calls in %d audits, want 5 in 5", len(calls), s.Audits)
		}
	})
}

func TestAuditReportsDifferences(t *testing.T) {
	inAuditRig(t, 40, func(r *auditRig) {
		r.mu.Lock()
		r.finds = map[lb.ServiceName]string{serviceName("s3"): "frontend missing", serviceName("s33"): "pool word differs"}
		r.mu.Unlock()
		r.pass(time.Minute)
		if s := r.agent.Status(); s.AuditDifferences != 2 || s.Audits != 1 {
			t.Errorf("%d differences in %d audits, want 2 in 1", s.AuditDifferences, s.Audits)
		}
		r.pass(time.Minute)
		if s := r.agent.Status(); s.AuditDifferences != 2 || s.Audits != 2 {
			t.Errorf("%d differences in %d audits, want 2 in 2", s.AuditDifferences, s.Audits)
		}
	})
}

// TestEventWaitsForOneChunk: whichever of a pass is under way, also the last.
func TestEventWaitsForOneChunk(t *testing.T) {
	const chunks, takes = 4, 20 * time.Second // longer than the 15 s between two
	inAuditRig(t, chunks*auditChunk, func(r *auditRig) {
		r.mu.Lock()
		r.takes = takes
		r.mu.Unlock()
		for i := range 3 * chunks {
			for len(r.take()) == 0 {
				r.pass(time.Second)
			}
			syncs, at := len(r.since(0)), time.Since(r.began)
			r.source.set("s1", service("s1", fmt.Sprintf("10.244.0.%d:80", 2+i)))
			r.pass(takes)
			if calls := r.since(syncs); len(calls) != 1 || calls[0].at > at+takes {
				t.Fatalf("event %d at %v: %d syncs within the time of a chunk, want 1", i, at, len(calls))
			}
			if later := r.take(); len(later) > 0 {
				t.Errorf("event %d: a chunk began at %v, before what came in at %v was applied", i, later[0].at, at)
			}
		}
		if s := r.agent.Status(); s.Audits < 2 {
			t.Errorf("%d passes, want more: the last chunk was not looked at", s.Audits)
		}
	})
}

// TestEventGoesBeforeTheNextChunk: at the end of a Sync that took longer than the time
// between two chunks there is one that is due, and an event.
func TestEventGoesBeforeTheNextChunk(t *testing.T) {
	inAuditRig(t, 10*auditChunk, func(r *auditRig) {
		r.setDuration(10 * time.Second)
		for i := range 20 {
			syncs := len(r.since(0))
			r.source.set("s1", service("s1", fmt.Sprintf("10.244.0.%d:80", 2+i)))
			r.pass(time.Second)
			r.source.set("s2", service("s2", fmt.Sprintf("10.244.0.%d:80", 2+i)))
			r.take()
			r.pass(30 * time.Second)
			if n := len(r.since(syncs)); n != 2 {
				t.Fatalf("round %d: %d syncs, want 2", i, n)
			}
			audits := r.take()
			if len(audits) == 0 {
				t.Fatalf("round %d: no audit", i)
			}
			if first := audits[0]; first.syncs != syncs+2 {
				t.Errorf("round %d: a chunk after %d syncs, want it after both", i, first.syncs-syncs)
			}
		}
	})
}

func TestAuditFollowsChanges(t *testing.T) {
	inAuditRig(t, 4*auditChunk, func(r *auditRig) {
		r.pass(20 * time.Second) // one chunk
		first := r.take()
		if len(first) != 1 {
			t.Fatalf("%d chunks, want 1", len(first))
		}
		for i := range 4 * auditChunk { // all are others now, and the even ones gone
			name := fmt.Sprint("s", i)
			if i%2 == 0 {
				r.source.set(name)
			} else {
				r.source.set(name, service(name, "10.244.0.9:80"))
			}
		}
		synctest.Wait()
		r.pass(41 * time.Second)
		seen := map[lb.ServiceName]bool{}
		for _, c := range r.take() {
			for _, svc := range c.svcs {
				if svc != r.agent.applied[svc.Name] {
					t.Errorf("%s was audited against what it was before", svc.Name)
				}
				seen[svc.Name] = true
			}
		}
		for _, svc := range first[0].svcs {
			seen[svc.Name] = true
		}
		for i := 1; i < 4*auditChunk; i += 2 {
			if name := serviceName(fmt.Sprint("s", i)); !seen[name] {
				t.Errorf("%s was not audited", name)
			}
		}
	})
}

func TestAuditErrors(t *testing.T) {
	inAuditRig(t, 2*auditChunk, func(r *auditRig) {
		r.mu.Lock()
		r.fails = errors.New("map is gone")
		r.mu.Unlock()
		r.pass(2 * time.Minute)
		if s := r.agent.Status(); s.AuditFailures != 4 || s.Audits != 2 {
			t.Errorf("%d failures in %d audits, want 4 in 2: it goes on", s.AuditFailures, s.Audits)
		}
	})
}

func TestNoAuditWhileTheDataplaneFails(t *testing.T) {
	inAuditRig(t, 3, func(r *auditRig) {
		r.SetDown(errFault)
		r.source.set("s1", service("s1", "10.244.0.2:80"))
		synctest.Wait()
		r.take()
		r.pass(10 * time.Minute)
		if calls := r.take(); len(calls) > 0 {
			t.Errorf("%d audits while nothing is sure, want none", len(calls))
		}
		r.SetDown(nil)
		r.pass(2 * time.Minute)
		if calls := r.take(); len(calls) == 0 {
			t.Error("no audit after the dataplane came back")
		}
	})
}

func TestAuditCanBeOff(t *testing.T) {
	ar := &auditRig{}
	inBubbleWith(t, func(r *rig, o *Options) { ar.rig, o.Dataplane = r, ar }, func(r *rig) {
		r.pass(time.Hour)
		if calls := ar.take(); len(calls) > 0 {
			t.Errorf("%d audits with a period of 0", len(calls))
		}
	}, service("a", "10.244.0.1:80"))
}

// TestAuditPeriodCanChange: also to never, and back, in the middle of a pass.
func TestAuditPeriodCanChange(t *testing.T) {
	inAuditRig(t, 3*auditChunk, func(r *auditRig) {
		r.pass(50 * time.Second) // two of three chunks
		if calls := r.take(); len(calls) != 2 {
			t.Errorf("%d chunks, want 2", len(calls))
		}
		for _, step := range []struct {
			period, pass time.Duration
			chunks       int
		}{{3 * time.Second, 9 * time.Second, 9}, {0, time.Hour, 0}, {time.Minute, time.Minute, 3}, {time.Minute, time.Minute, 3}} {
			r.agent.SetAuditPeriod(step.period)
			synctest.Wait()
			r.pass(step.pass)
			if calls := r.take(); len(calls) != step.chunks {
				t.Errorf("every %v: %d chunks in %v, want %d", step.period, len(calls), step.pass, step.chunks)
			}
			if got := r.agent.AuditPeriod(); got != step.period {
				t.Errorf("the period is %v, want %v", got, step.period)
			}
		}
	})
}
