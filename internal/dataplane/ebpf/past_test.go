// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"net/netip"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestSumsNeverFall removes backends, and then the Service: what they had stays in the
// sums. The next agent begins at 0, whatever it finds.
func TestSumsNeverFall(t *testing.T) {
	r := newRig(t, nil)
	svc := func(hosts ...string) *dataplane.Service {
		return r.svc("web", lb.IPv4, lb.TCP, "round-robin", r.pods(lb.IPv4, hosts...), frontend(lb.ClusterIP, lb.TCP, "10.96.0.1:80", lb.MasqueradeOffCluster))
	}
	web := svc("backend1").Name
	// A connection's end is counted a moment after the client has seen it.
	want := func(what string, service, total uint64, listed bool) {
		t.Helper()
		var s dataplane.Stats
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
			var err error
			if s, err = r.dp.Stats(); err != nil {
				t.Fatal(err)
			}
			if s.Total.Closed == total {
				break
			}
		}
		got, there := s.Services[web]
		if wanted := (dataplane.Counts{Opened: service, Closed: service}); got != wanted || there != listed {
			t.Errorf("%s: the Service has %+v (there: %v), want %+v", what, got, there, wanted)
		}
		if wanted := (dataplane.Counts{Opened: total, Closed: total}); s.Total != wanted {
			t.Errorf("%s: the node has %+v, want %+v", what, s.Total, wanted)
		}
	}
	dial := func(n int) {
		t.Helper()
		r.dial("client1", lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort("10.96.0.1:80")}, n)
	}
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc("backend1", "backend2")}})
	dial(6)
	want("two backends", 6, 6, true)
	r.sync(dataplane.Delta{Put: []*dataplane.Service{svc("backend2")}})
	r.dp.reclaim(t.Context())
	want("one was removed", 6, 6, true)
	dial(2)
	want("the other serves", 8, 8, true)
	r.stop()
	r.start()
	want("a new agent", 0, 0, true)
	dial(3)
	want("a new agent, and connections", 3, 3, true)
	r.sync(dataplane.Delta{Put: []*dataplane.Service{svc("backend1")}})
	r.dp.reclaim(t.Context())
	dial(1)
	want("the backend that the new agent found was removed", 4, 4, true)
	r.sync(dataplane.Delta{Delete: []lb.ServiceName{web}})
	r.dp.reclaim(t.Context())
	want("the Service was removed", 0, 4, false)
}
