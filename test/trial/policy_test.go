// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// nft changes the rules of a pod.
func (r *rig) nft(pod, commands string) {
	r.t.Helper()
	h := r.lab.Host(pod)
	cmd := h.Command(r.bounded(), "nft", commands)
	cmd.Stderr = os.Stderr
	err := h.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		r.t.Fatalf("%v: %v", cmd.Args, err)
	}
}

// forbid has a pod refuse or drop what begins a connection from hosts, as a NetworkPolicy
// may that lets others in. how is a statement of nft.
func (r *rig) forbid(pod, how string, hosts ...netip.Addr) {
	r.t.Helper()
	commands := "add table inet forbid; delete table inet forbid; add table inet forbid; " +
		"add chain inet forbid in { type filter hook input priority 0; }; "
	for _, host := range hosts {
		commands += fmt.Sprintf("add rule inet forbid in ip saddr %s tcp flags syn %s; ", host, how)
	}
	r.nft(pod, commands)
}

// The ways in which a policy forbids a connection.
const (
	drops   = "drop"
	refuses = "reject with tcp reset"
)

// podClients are those whose connections such a policy lets in.
var podClients = []string{"client1", "client2"}

// A policy that forbids probes takes no backend away that serves, however it forbids them
// and whatever they are.
func TestForbiddenProbes(t *testing.T) {
	eachDataplane(t, func(t *testing.T, flags []string) {
		r := newRig(t)
		all := []string{"backend1", "backend2", "backend3"}
		for _, pod := range all {
			r.web(pod)
		}
		plain := r.manifest("web", webVIP, all...)
		r.put("web.yaml", plain)
		a := r.run(flags...)
		r.settles(webVIP, all...)
		for _, tc := range []struct{ probe, how, says string }{
			{byTCP, drops, "tcp: no answer"},
			{byGRPC, drops, "grpc: cannot connect: no answer"},
			{byGRPC, refuses, "grpc: connection refused"},
		} {
			r.put("web.yaml", plain)
			eventually(t, "what was thought of backend1 is forgotten", func() bool {
				return !strings.Contains(r.lbproxy("get", "health").stdout, r.backend("backend1"))
			})
			r.forbid("backend1", tc.how, lab.NodeAddr4)
			// So many failures that connections are seen before, on a busy machine too: what
			// probes have put out nobody meets for minutes.
			probe := strings.Replace(tc.probe, "health-check-fall: '2'", "health-check-fall: '8'", 1)
			r.put("web.yaml", says(plain, probe, "lbproxy.io/health-check-timeout: 500ms"))
			var failed int
			serve := func() bool {
				got, bad := r.answered(webVIP, podClients, 6)
				failed += bad
				return slices.Equal(got, all)
			}
			eventually(t, "an Event says that probes are blocked", func() bool {
				serve()
				return a.log.line("level=INFO", "reason=ProbeBlocked", r.backend("backend1"), tc.says) != ""
			})
			for range 5 {
				if !serve() {
					t.Errorf("%s: not all backends serve pods", tc.says)
				}
			}
			if failed > 0 {
				t.Errorf("%s: %d connections of pods failed", tc.says, failed)
			}
		}
		if line := a.log.line("reason=BackendEjected"); line != "" {
			t.Error(line)
		}
	})
}

// A policy that refuses probes and some clients takes a backend away from the others for 2 s
// at most: their connections tell that it is well.
func TestForbiddenProbesAndClient(t *testing.T) {
	eachDataplane(t, func(t *testing.T, flags []string) {
		r := newRig(t)
		all := []string{"backend1", "backend2", "backend3"}
		plain := r.manifest("web", webVIP, all...)
		r.put("web.yaml", plain)
		a := r.run(flags...)
		r.settles(webVIP, all...) // else probes may put backend1 out before anybody has met it
		r.forbid("backend1", refuses, lab.NodeAddr4, r.lab.Host("client2").Addr4)
		r.put("web.yaml", says(plain, byTCP))
		may := func() []string {
			got, failed := r.answered(webVIP, []string{"client1"}, 6)
			if failed > 0 {
				t.Errorf("%d connections of client1 failed", failed)
			}
			return got
		}
		eventually(t, "an Event says that probes are blocked", func() bool {
			may()
			return a.log.line("reason=ProbeBlocked", r.backend("backend1")) != ""
		})
		refused := 0
		both := func() []string {
			_, failed := r.answered(webVIP, []string{"client2"}, 3)
			refused += failed
			return may()
		}
		eventually(t, "backend1 answers client1, whatever client2 meets", func() bool {
			for range 10 {
				if !slices.Equal(both(), all) {
					return false
				}
			}
			return refused > 0
		})
		told := a.log.line("reason=BackendEjected", r.backend("backend1"))
		for range 100 {
			both()
		}
		// Once, but where a slow machine tells of refusals long before it tells of answers.
		if n := strings.Count(a.log.String(), "reason=BackendEjected"); n > 3 || told == "" {
			t.Errorf("backend1 was ejected %d times, want once or little more: %s", n, told)
		}
		if got := both(); !slices.Equal(got, all) {
			t.Errorf("%v answer client1, want all", got)
		}
		t.Logf("%d connections of client2 were refused", refused)
	})
}
