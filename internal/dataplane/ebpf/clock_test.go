// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

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
// affinity: nothing ends, nobody is forgotten, and what changes is programmed.
func TestClockJump(t *testing.T) {
	labtest.NeedClock(t)
	r := newRig(t, nil)
	const stickyVIP = "10.96.0.9:80"
	world := func(hosts ...string) dataplane.Delta {
		return dataplane.Delta{Full: true, Put: []*dataplane.Service{
			r.svc("dns", lb.IPv4, lb.UDP, "random", r.pods(lb.IPv4, "backend1"), frontend(lb.ClusterIP, lb.UDP, staleVIP4, lb.MasqueradeOffCluster)),
			sticky(r.svc("sticky", lb.IPv4, lb.TCP, "round-robin", r.pods(lb.IPv4, "backend1", "backend2", "backend3"),
				frontend(lb.ClusterIP, lb.TCP, stickyVIP, lb.MasqueradeOffCluster)), time.Hour),
			r.svc("web", lb.IPv4, lb.TCP, "random", r.pods(lb.IPv4, hosts...), frontend(lb.LoadBalancer, lb.TCP, vips[lb.IPv4], lb.MasqueradeAlways)),
		}}
	}
	r.sync(world("backend1"))
	held := map[string]*lab.Conn{}
	pinned := map[string]string{}
	for _, from := range []string{"client1", "client2", lab.Node, lab.Outside} {
		held["TCP from "+from] = r.open(from, lab.TCP, vips[lb.IPv4])
		if from == lab.Outside {
			continue
		}
		held["UDP from "+from] = r.open(from, lab.UDP, staleVIP4)
		pinned[from] = r.answersFrom(from, lab.TCP, stickyVIP, lab.OK).Backend
	}
	backends := []string{"backend1", "backend2"}
	for i, jump := range []time.Duration{10 * 365 * 24 * time.Hour, -20 * 365 * 24 * time.Hour, 10 * 365 * 24 * time.Hour} {
		what := fmt.Sprintf("after a jump of %s", jump)
		labtest.JumpBy(t, jump)
		next := world(backends[(i+1)%2])
		r.sync(next)
		if err := r.dp.Sweep(); err != nil {
			t.Fatal(err)
		}
		for name, c := range held {
			r.ping(c, what+", "+name)
		}
		for from, want := range pinned {
			if got := r.answersFrom(from, lab.TCP, stickyVIP, lab.OK).Backend; got != want {
				t.Errorf("%s: %s meets %s, want %s as before", what, from, got, want)
			}
		}
		if got := r.answersFrom(lab.Outside, lab.TCP, vips[lb.IPv4], lab.OK).Backend; got != backends[(i+1)%2] {
			t.Errorf("%s: a new connection meets %s, want the new backend", what, got)
		}
		if found := r.audit(next.Put); len(found) > 0 {
			t.Errorf("%s: found %q", what, found)
		}
		r.recountIsExact(what)
	}
}
