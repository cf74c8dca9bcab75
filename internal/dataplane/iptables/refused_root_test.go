// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestRefusalsAreHeard: a connection that is refused is told of at once, and counted. What
// ended otherwise is not.
func TestRefusalsAreHeard(t *testing.T) {
	r := newRig(t, labtest.New(t), nftBackend, nil)
	closed := []lb.Backend{{Addr: netip.AddrPortFrom(r.Lab.Host("backend1").Addr4, 9), Weight: lb.DefaultWeight, Local: true}}
	closed6 := []lb.Backend{{Addr: netip.AddrPortFrom(r.Lab.Host("backend1").Addr6, 9), Weight: lb.DefaultWeight, Local: true}}
	hole := []lb.Backend{{Addr: netip.MustParseAddrPort("10.244.2.99:80"), Weight: lb.DefaultWeight}}
	svcs := []*dataplane.Service{
		r.svc("four", lb.TCP, "random", closed, "10.96.0.1:80", "0.0.0.0:30080"),
		r.svc("six", lb.TCP, "random", closed6, "[fd00:96::1]:80"),
		r.svc("web", lb.TCP, "random", r.pods(lb.IPv4, "backend1"), "10.96.0.2:80"),
		r.svc("hole", lb.TCP, "random", hole, "10.96.0.3:80"),
	}
	for _, s := range svcs {
		s.Terms.Suspect = time.Hour // one symptom of each
	}
	r.sync(dataplane.Delta{Full: true, Put: svcs})
	labtest.Within(t, labtest.Patience, "the kernel tells of refusals", r.dp.witness.refusals.heard)
	next := func(patience time.Duration) (s lb.Symptom) {
		t.Helper()
		for late := time.After(patience); ; {
			select {
			case s = <-r.dp.Symptoms():
				if s.Service != svcs[3].Name || s.Kind != lb.Unanswered {
					return s
				}
			case <-late:
				return s
			}
		}
	}
	failed := func(backend netip.AddrPort) uint64 {
		o, ok := r.dp.Answered(backend)
		if !ok || o.NoRefusals {
			t.Errorf("%s: refusals are not known: %+v", backend, o)
		}
		return o.Failed
	}
	refused := func(from, to string) {
		t.Helper()
		if res := r.dial(from, lab.TCP, to); res.Kind != lab.Refused {
			t.Errorf("from %s to %s: %s %s, want a refusal", from, to, res.Kind, res.Err)
		}
	}

	// What is no refusal, or nobody's.
	r.answered("web", "client1", lab.TCP, "10.96.0.2:80")
	if err := r.open("client1", lab.TCP, "10.96.0.2:80").Close(t.Context(), "rst"); err != nil {
		t.Fatal(err)
	}
	refused("client1", closed[0].Addr.String()) // not through a Service
	r.Lab.Host("client1").Dial(t.Context(), lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort("10.96.0.3:80"), Timeout: 50 * time.Millisecond})

	labtest.Within(t, labtest.Patience, "connections are read", func() bool { o, ok := r.dp.Answered(closed[0].Addr); return ok && !o.At.IsZero() })
	for _, tc := range []struct {
		from, to string
		svc      *dataplane.Service
	}{
		{"client1", "10.96.0.1:80", svcs[0]},
		{lab.Node, "10.96.0.1:80", svcs[0]},
		{lab.Outside, netip.AddrPortFrom(lab.NodeAddr4, 30080).String(), svcs[0]},
		{"client1", "[fd00:96::1]:80", svcs[1]},
	} {
		what := fmt.Sprintf("from %s to %s", tc.from, tc.to)
		backend := tc.svc.Cluster.Backends[0].Addr
		r.dp.witness.calm(suspectKey{tc.svc.Name, backend}, 0)
		before, made := failed(backend), uint64(0)
		labtest.Within(t, labtest.Patience, what+": a symptom", func() bool { // of one way it is told once a second
			refused(tc.from, tc.to)
			made++
			s, want := next(20*time.Millisecond), lb.Symptom{Service: tc.svc.Name, Backend: backend, Kind: lb.Refused}
			if s != want && s != (lb.Symptom{}) {
				t.Errorf("%s: symptom %+v, want %+v", what, s, want)
			}
			return s == want
		})
		refused(tc.from, tc.to)
		labtest.Within(t, labtest.Patience, what+": all are counted", func() bool { return failed(backend) == before+made+1 })
		if s := next(0); s != (lb.Symptom{}) {
			t.Errorf("%s: symptom %+v, want no other", what, s)
		}
	}
}

// TestRefusalsThatTheKernelHides: where connection tracking is set to tell nothing, that is
// known.
func TestRefusalsThatTheKernelHides(t *testing.T) {
	n := labtest.New(t)
	err := n.Lab.Host(lab.Node).Do(func() error { return os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_events", []byte("0"), 0) })
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, n, nftBackend, nil)
	svc := r.svc("web", lb.TCP, "random", r.pods(lb.IPv4, "backend1"), "10.96.0.2:80")
	svc.Terms.Suspect = time.Second
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc}})
	backend := svc.Cluster.Backends[0].Addr
	labtest.Within(t, labtest.Patience, "connections are read", func() bool { o, ok := r.dp.Answered(backend); return ok && !o.At.IsZero() })
	if o, _ := r.dp.Answered(backend); !o.NoRefusals {
		t.Errorf("%+v: want it to say that refusals are not known", o)
	}
}
