// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"fmt"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestClockJump sets the clock years ahead and back, under connections, flows and session
// affinity: nothing ends, nobody is forgotten, what changes is programmed, and a chain
// that somebody flushes is noticed.
func TestClockJump(t *testing.T) {
	labtest.NeedClock(t)
	net := labtest.New(t)
	for _, backend := range []string{nftBackend, legacyBackend} {
		t.Run(backend, func(t *testing.T) {
			r := newRig(t, net, backend, nil)
			r.dp.watcher.mu.Lock()
			r.dp.watcher.spent = func() time.Duration { return 0 } // of a slow machine's looks
			r.dp.watcher.mu.Unlock()
			const dns, sticky = "10.96.0.53:53", "10.96.0.9:80"
			world := func(host string) []*dataplane.Service {
				svcs := append(r.web(lb.TCP, host),
					r.svc("dns", lb.UDP, "random", r.pods(lb.IPv4, "backend1"), dns),
					r.svc("sticky", lb.TCP, "random", r.pods(lb.IPv4, "backend1", "backend2", "backend3"), sticky))
				svcs[3].Terms.Affinity = time.Hour
				return svcs
			}
			r.sync(dataplane.Delta{Full: true, Put: world("backend1")})
			held, pinned := map[string]*lab.Conn{}, map[string]string{}
			for _, from := range []string{"client1", "client2", lab.Node} {
				held["TCP from "+from] = r.open(from, lab.TCP, vip4)
				held["UDP from "+from] = r.open(from, lab.UDP, dns)
				pinned[from] = r.dial(from, lab.TCP, sticky).Backend
			}
			pool := (&renderer{id: world("backend1")[3].Name.String()}).poolName(lb.ScopeCluster)
			for i, jump := range []time.Duration{10 * 365 * 24 * time.Hour, -20 * 365 * 24 * time.Hour, 10 * 365 * 24 * time.Hour} {
				what, host := fmt.Sprintf("after a jump of %s", jump), []string{"backend2", "backend1"}[i%2]
				labtest.JumpBy(t, jump)
				next := world(host)
				r.sync(dataplane.Delta{Full: true, Put: next})
				for name, c := range held {
					if err := c.Ping(t.Context()); err != nil {
						t.Errorf("%s, %s: %v", what, name, err)
					}
				}
				for from, want := range pinned {
					if res := r.dial(from, lab.TCP, sticky); res.Backend != want {
						t.Errorf("%s: %s meets %q (%s), want %q as before", what, from, res.Backend, res.Kind, want)
					}
				}
				if res := r.dial(lab.Outside, lab.TCP, node4); res.Backend != host {
					t.Errorf("%s: a new connection meets %q (%s), want %q", what, res.Backend, res.Kind, host)
				}
				r.refresh()
				r.audit(next)
				before := r.saved(backend)
				r.output("iptables-"+backend, "-w", "-t", "nat", "-F", pool)
				labtest.Within(t, labtest.Patience, what+" the flushed chain is back", func() bool { return r.saved(backend) == before })
			}
		})
	}
}
