// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Addresses of the Services in this test, beside those of web.
const (
	hashVIP   = "10.96.0.21:80"
	leastVIP  = "10.96.0.22:80"
	stickyVIP = "10.96.0.23:80"
	edgeVIP   = "172.32.0.24:80"
	rangedVIP = "172.32.0.25:80"
)

// viewed is what the view is compared with: a Service of each kind.
func (r *rig) viewed() []*dataplane.Service {
	both := r.pods(lb.IPv4, "backend1", "remote1")
	least := r.svc("least", lb.TCP, "least-connection", both, leastVIP)
	sticky := r.svc("sticky", lb.TCP, "random", both, stickyVIP)
	sticky.Terms.Affinity = time.Minute
	edge := r.svc("edge", lb.TCP, "random", both, edgeVIP) // whose endpoints are all elsewhere, for those outside
	edge.Frontends[0].Type, edge.Frontends[0].Outside = lb.LoadBalancer, lb.ScopeLocal
	edge.Local.Empty = lb.Drop
	ranged := r.svc("ranged", lb.TCP, "random", both[:1], rangedVIP)
	ranged.Frontends[0].Type, ranged.Frontends[0].Ranged = lb.LoadBalancer, true
	ranged.Terms.SourceRanges = []netip.Prefix{netip.PrefixFrom(r.Lab.Host("client1").Addr4, 32)}
	return append(r.web(lb.TCP, "backend1", "remote1"),
		r.svc("hash", lb.TCP, "hash", both, hashVIP), least, sticky, edge, ranged,
		r.svc("empty", lb.TCP, "random", nil, empty4))
}

// view reads the node.
func (r *rig) view(do func(*View) error) {
	r.t.Helper()
	r.node(func() error {
		v, err := OpenView(r.opts)
		if err != nil {
			return err
		}
		return errors.Join(do(v), v.Close())
	})
}

// TestViewIsWhatWasProgrammed compares what rules say with what they were made from.
func TestViewIsWhatWasProgrammed(t *testing.T) {
	n := labtest.New(t)
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			r := newRig(t, n, backend, nil)
			want := r.viewed()
			r.sync(dataplane.Delta{Full: true, Put: want})
			c := r.open("client1", lab.TCP, leastVIP)
			r.view(func(v *View) error {
				views, err := v.Services()
				for _, svc := range want {
					i := slices.IndexFunc(views, func(w dataplane.ServiceView) bool { return w.Name == svc.Name.String() })
					if i < 0 {
						t.Errorf("no view of %s", svc.Name)
						continue
					}
					compareView(t, svc, views[i])
				}
				if len(views) != len(want) {
					t.Errorf("%d Services, want %d", len(views), len(want))
				}
				conns, errConns := v.Connections(0)
				if len(conns) != 1 || conns[0].Frontend != leastVIP || conns[0].State != "established" {
					t.Errorf("connections %+v, want the one to %s", conns, leastVIP)
				}
				return errors.Join(err, errConns)
			})
			if err := c.Close(t.Context(), "fin"); err != nil {
				t.Error(err)
			}
		})
	}
}

// compareView compares a view with what was programmed.
func compareView(t *testing.T, svc *dataplane.Service, view dataplane.ServiceView) {
	t.Helper()
	if view.Algorithm != svc.Balance.Algorithm {
		t.Errorf("%s: algorithm %q, want %q", view.Name, view.Algorithm, svc.Balance.Algorithm)
	}
	if approximate := svc.Balance.Algorithm == "least-connection"; (view.Approximation != "") != approximate {
		t.Errorf("%s: approximation %q, want some: %v", view.Name, view.Approximation, approximate)
	}
	var got, want []string
	for _, fe := range view.Frontends {
		got = append(got, fe.Address)
		if ranged := slices.Contains(fe.Flags, "source-ranges"); ranged != (view.Name == "default/ranged/TCP/IPv4") {
			t.Errorf("%s: %+v", view.Name, fe)
		}
	}
	for _, fe := range svc.Frontends {
		want = append(want, fe.FrontendKey.String())
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: frontends %q, want %q", view.Name, got, want)
	}
	shares := algo.Shares(svc.Cluster.Table)
	live := uint64(0)
	for i, be := range svc.Cluster.Backends {
		j := slices.IndexFunc(view.Backends, func(v dataplane.BackendView) bool { return v.Address == be.Addr.String() })
		if j < 0 {
			t.Errorf("%s: no backend %s in %+v", view.Name, be.Addr, view.Backends)
			continue
		}
		v := view.Backends[j]
		if math.Abs(v.Expected-shares[i]) > 0.03 || v.Pools != "cluster" || v.State != "active" { // a hash has places
			t.Errorf("%s: backend %+v, want a share of %.3f", view.Name, v, shares[i])
		}
		live += v.Live
	}
	if least := view.Name == "default/least/TCP/IPv4"; len(view.Backends) != len(svc.Cluster.Backends) || least != (live == 1) {
		t.Errorf("%s: backends %+v, %d connections", view.Name, view.Backends, live)
	}
}

// TestExplainIsWhatHappens compares what is told with what packets meet.
func TestExplainIsWhatHappens(t *testing.T) {
	r := newRig(t, labtest.New(t), "nft", nil)
	r.sync(dataplane.Delta{Full: true, Put: r.viewed()})
	r.answered("before", "client1", lab.TCP, stickyVIP)
	for _, tc := range []struct {
		to, from, decision, says string
		masquerade               bool
		candidates               int
	}{
		{vip4, "client1", "forward", "one of 2 backends at random, in the cluster pool", false, 2},
		{vip4, lab.Outside, "forward", "one of 2 backends at random, in the cluster pool", true, 2},
		{vip4, lab.Node, "forward", "one of 2 backends at random, in the cluster pool", true, 2},
		{node4, "client1", "forward", "one of 2 backends at random, in the cluster pool", true, 2},
		{node4, lab.Outside, "forward", "one of 2 backends at random, in the cluster pool", true, 2},
		{vip6, "client1", "forward", "one of 2 backends at random, in the cluster pool", false, 2},
		{hashVIP, "client1", "forward", "the backend of this client by its hash, in the cluster pool", false, 1},
		{leastVIP, "client1", "forward", "one of 2 backends by least-connection, as shares", false, 2},
		{stickyVIP, "client1", "forward", "session affinity: ", false, 1},
		{stickyVIP, "client2", "forward", "one of 2 backends at random, in the cluster pool", false, 2},
		{edgeVIP, "client1", "forward", "one of 2 backends at random, in the cluster pool", false, 2},
		{edgeVIP, lab.Outside, "drop", "no backend on this node, and the traffic policy is Local", false, 0},
		{rangedVIP, "client1", "forward", "the only backend, in the cluster pool", false, 1},
		{rangedVIP, "client2", "drop", "is in none of the load balancer's source ranges", false, 0},
		{empty4, "client1", "reject", "the pool of this caller has no backends", false, 0},
		{empty4, lab.Node, "reject", "the pool of this caller has no backends", false, 0},
		{"10.96.0.10:81", "client1", "reject", "is a cluster IP, and has no port 81/TCP", false, 0},
		{"10.97.0.1:80", "client1", "pass", "is not a frontend", false, 0},
	} {
		t.Run(fmt.Sprintf("%s from %s", tc.to, tc.from), func(t *testing.T) {
			to := netip.MustParseAddrPort(tc.to)
			from := r.Lab.Host(tc.from).Addr4
			if to.Addr().Is6() {
				from = r.Lab.Host(tc.from).Addr6
			}
			var e dataplane.Explanation
			r.view(func(v *View) (err error) {
				e, err = v.Explain(from, lb.FrontendKey{Addr: to, Proto: lb.TCP})
				return err
			})
			if e.Decision != tc.decision || !strings.Contains(e.Reason, tc.says) || e.Masquerade != tc.masquerade || len(e.Candidates) != tc.candidates {
				t.Errorf("got %+v\nwant %s: %s, masquerade %v, %d candidates", e, tc.decision, tc.says, tc.masquerade, tc.candidates)
			}
			if (e.Decision == "forward" || e.Decision == "drop" || e.Decision == "reject") && len(e.Steps) == 0 {
				t.Error("no steps")
			}
			if steps := strings.Join(e.Steps, "\n"); tc.decision == "forward" &&
				(!strings.Contains(steps, " pool: ") || strings.Contains(steps, "not "+from.String()) != tc.masquerade ||
					strings.Contains(steps, "begin in OUTPUT") != (tc.from == lab.Node)) {
				t.Errorf("the steps lack the caller, the pool, or whom the backend sees:\n%s", steps)
			}
			r.happens(t, e, tc.from, to)
		})
	}
}

// happens dials, and compares with what was told.
func (r *rig) happens(t *testing.T, e dataplane.Explanation, from string, to netip.AddrPort) {
	t.Helper()
	patience := labtest.Silence
	if e.Decision == "forward" || e.Decision == "reject" {
		patience = labtest.Patience
	}
	for range 6 {
		res := r.Lab.Host(from).Dial(t.Context(), lab.Request{Proto: lab.TCP, To: to, Timeout: patience})
		want := map[string]lab.Kind{"forward": lab.OK, "reject": lab.Refused, "drop": lab.Timeout, "pass": res.Kind}[e.Decision]
		if res.Kind != want {
			t.Errorf("%s, but: %s %s", e.Decision, res.Kind, res.Err)
		}
		if e.Decision == "drop" || e.Decision == "pass" {
			return
		}
		if res.Kind != lab.OK {
			continue
		}
		addr := r.Lab.Host(res.Backend).Addr4
		if to.Addr().Is6() {
			addr = r.Lab.Host(res.Backend).Addr6
		}
		if !slices.ContainsFunc(e.Candidates, func(b dataplane.BackendView) bool {
			return netip.MustParseAddrPort(b.Address).Addr() == addr
		}) {
			t.Errorf("%s answers, the candidates are %+v", res.Backend, e.Candidates)
		}
	}
}
