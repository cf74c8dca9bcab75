// SPDX-License-Identifier: Apache-2.0

package health

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestTickDuringAStart: a backend for which only time had to pass shares its probe with one
// that is due in the same look. The probe is started once, and its failure counts once.
func TestTickDuringAStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newMonitorRig(t)
		passive := service("passive", 1, ask(lb.ProbeNone))
		r.src.put(change(service("active", 1, probeTCP())), change(passive))
		r.collect()
		now := time.Now().Add(time.Minute)
		r.m.see(lb.Symptom{Service: passive.Name, Backend: addr(0), Kind: lb.Refused}, now)
		probed := r.m.port(shopName("active", lb.TCP)).watch.backends[addr(0)]
		waits := r.m.port(passive.Name).watch.backends[addr(0)]
		if probed.aimed == nil || probed.aimed != waits.aimed {
			t.Fatal("they are not probed together")
		}
		probed.wish = wish{now, true}
		waits.mark = mark{Alarms: 2, Trust: now}
		waits.wish = wish{now, false}
		r.m.schedule.plan(probed.aimed)

		r.prober.set(errRefused, addr(0))
		_, _ = r.m.start(now)
		if got := r.prober.count(addr(0)); got != 1 {
			t.Errorf("%d probes were started, want 1", got)
		}
		if waits.mark.Alarms != 1 {
			t.Errorf("%d alarms after the tick, want 1", waits.mark.Alarms)
		}
		r.wait(time.Second)
		r.m.settle(now.Add(time.Second))
		if probed.mark.Bad != 1 {
			t.Errorf("%d failures, want 1", probed.mark.Bad)
		}
		next, ok := r.m.schedule.next()
		if !ok || !next.After(now) || len(r.m.schedule.queue) != 1 {
			t.Errorf("next at %v, %t, of %d; want one later than %v", next, ok, len(r.m.schedule.queue), now)
		}
	})
}
