// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"context"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestMend damages single chains: the next look finds it, and writes these chains and
// no other. A change of others that damages nothing changes nothing.
func TestMend(t *testing.T) {
	for _, backend := range []string{nftBackend, legacyBackend} {
		t.Run(backend, func(t *testing.T) {
			ownNetns(t)
			d := openBackend(t, backend, filepath.Join(t.TempDir(), "lock"))
			defer d.Close()
			clock := time.Unix(1e9, 0)
			d.watcher.now = func() time.Time { clock = clock.Add(time.Minute); return clock }
			svcs := []*dataplane.Service{
				plainService(t, "web", lb.IPv4, "10.96.0.1:80"), plainService(t, "sticky", lb.IPv4, "10.96.0.2:80"),
				plainService(t, "six", lb.IPv6, "[fd00:10:96::3]:80"),
			}
			for i := range byte(40) {
				svcs = append(svcs, plainService(t, "other-"+string('a'+i), lb.IPv4, "10.96.1."+string('0'+i%10)+":8"+string('0'+i/10)))
			}
			svcs[0].Cluster = testPool(t, "random", endpoints(10, 1, lb.IPv4))
			svcs[1].Terms.Affinity = time.Hour
			mustSync(t, d, dataplane.Delta{Full: true, Put: svcs})
			look := func() {
				t.Helper()
				if err := d.watch(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			look()
			web := &renderer{id: svcs[0].Name.String()}
			six := &renderer{id: svcs[2].Name.String()}
			for _, row := range []struct {
				name, args string
				f          lb.Family
				most       uint64 // chains that are written: nft does not tell those from it that a chain led to
			}{
				{"a pool", "-t nat -F " + web.poolName(lb.ScopeCluster), lb.IPv4, 1},
				{"one rule of a pool", "-t nat -D " + web.poolName(lb.ScopeCluster) + " 3", lb.IPv4, 1},
				{"a pool of IPv6", "-t nat -F " + six.poolName(lb.ScopeCluster), lb.IPv6, 1},
				{"the tree's root", "-t nat -F " + hashName("T-", "vips"), lb.IPv4, 3},
				{"a chain of session affinity", "-t nat -F " + hashName("U-", svcs[1].Name.String()), lb.IPv4, 1},
				{"a constant chain", "-t nat -F " + masqueradeChain, lb.IPv4, 1},
				{"a rule that leads to a pool", "-t nat -A PREROUTING -j " + web.poolName(lb.ScopeCluster), lb.IPv4, 0},
				{"somebody else's", "-t nat -N KUBE-X", lb.IPv4, 0},
			} {
				r := d.families[row.f].runner
				before, restored := r.saved(t), d.restored.Load()
				do(t, r.program, strings.Fields("-w "+row.args)...)
				for range 2 { // the second one has nothing to do
					look()
					if n := d.restored.Load() - restored; n > row.most {
						t.Errorf("%s: %d chains were written, want at most %d", row.name, n, row.most)
					}
				}
				if after := r.saved(t); row.most > 0 && after != before {
					t.Errorf("%s: rules after the repair:\n%s\nbefore:\n%s", row.name, after, before)
				}
			}
		})
	}
}

// TestMendEndsFlows: a flow that began while a chain was empty that all Services share is
// served when the chain is back, though connection tracking knows it as another one.
func TestMendEndsFlows(t *testing.T) {
	net := labtest.New(t)
	for _, backend := range []string{nftBackend, legacyBackend} {
		t.Run(backend, func(t *testing.T) {
			r := newRig(t, net, backend, nil)
			const dns = "172.30.0.11:30053" // the node's: to a cluster IP, connection tracking would not keep the flow
			svc := r.svc("dns", lb.UDP, "random", r.pods(lb.IPv4, "backend1"), "0.0.0.0:30053")
			r.sync(dataplane.Delta{Full: true, Put: append(r.web(lb.TCP, "backend1"), svc)})
			pool := (&renderer{id: svc.Name.String()}).poolName(lb.ScopeCluster)
			for _, chain := range []string{servicesChain, hashName("T-", "ports"), nodePortsChain, pool} {
				u, err := r.Lab.Host(lab.Outside).OpenUDP(t.Context(), lab.Request{Proto: lab.UDP, To: netip.MustParseAddrPort(dns)})
				if err != nil {
					t.Fatal(err)
				}
				answers := func() bool {
					ctx, cancel := context.WithTimeout(t.Context(), labtest.Silence)
					defer cancel()
					return u.Exchange(ctx, netip.MustParseAddrPort(dns), nil).Kind == lab.OK
				}
				r.dp.mu.Lock() // nothing is repaired yet
				r.output("iptables-"+backend, "-w", "-t", "nat", "-F", chain)
				if answers() {
					t.Errorf("%s answers without the rules of %s", dns, chain)
				}
				r.dp.mu.Unlock()
				labtest.Within(t, labtest.Patience, "an answer when "+chain+" is back", answers)
				if err := u.Close(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
