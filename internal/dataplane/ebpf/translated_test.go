// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"net/netip"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestTranslatedOverRestarts: connections that netfilter translates pass as long as there
// may be some, over restarts too; where there are none, a restart writes nothing.
func TestTranslatedOverRestarts(t *testing.T) {
	l := labtest.NewLab(t, lab.Options{Pods: []lab.PodSpec{}})
	r := &rig{t: t, lab: l, opts: labOptions(t, l)}
	vip := frontend(lb.ClusterIP, lb.TCP, "10.96.0.1:80", lb.MasqueradeOffCluster)
	other := lb.FrontendKey{Addr: netip.MustParseAddrPort("172.30.0.11:9999"), Proto: lb.TCP}
	world := dataplane.Delta{Full: true, Put: []*dataplane.Service{r.svc("web", lb.IPv4, lb.TCP, "random",
		[]lb.Backend{{Addr: netip.MustParseAddrPort("10.0.0.1:80"), Weight: 1}}, vip)}}
	look := func(what string, at []lb.FrontendKey, again, four, six bool) {
		t.Helper()
		if got := r.dp.KeepTranslated(at); got != again {
			t.Errorf("%s: look again %t, want %t", what, got, again)
		}
		for i, want := range []bool{four, six} {
			if got := r.dp.maps.settings[0].Known[i]&uint32(lbKnownKNOWN_TRANSLATED) != 0; got != want {
				t.Errorf("%s: family %d passes %t, want %t", what, i, got, want)
			}
		}
	}
	node := lb.Node{Known: true, Addrs: []netip.Addr{lab.NodeAddr4, lab.NodeAddr6}}
	open := func(first bool) {
		t.Helper()
		if first {
			r.fresh()
		} else {
			r.reopen()
		}
		r.dp.SetNode(node)
		r.dp.syncSettings()
	}
	open(true)
	look("the first start", nil, true, true, true)
	r.sync(world)
	look("everything is known", nil, false, false, false)

	open(false)
	look("a restart", nil, true, false, false)
	r.sync(world)
	look("a restart, everything is known", nil, false, false, false)
	if n := r.dp.Writes(); n != 0 {
		t.Errorf("%d writes by a restart, want 0", n)
	}

	open(false)
	look("what is not a frontend may become one", []lb.FrontendKey{other}, true, true, false)
	r.sync(world)
	look("it did not", []lb.FrontendKey{other}, false, false, false)
	look("a connection to a frontend", []lb.FrontendKey{vip.FrontendKey}, true, true, false)
	open(false)
	look("a restart, what was found stays until everything is known", nil, true, true, false)
	r.sync(world)
	look("it has ended", nil, false, false, false)
	if err := r.dp.Close(); err != nil {
		t.Fatal(err)
	}
}
