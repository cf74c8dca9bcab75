// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/lab"
)

var (
	podClient  = &client{host: &lab.Host{Name: "client2", Addr4: netip.MustParseAddr("10.244.1.2")}, inside: true}
	sockClient = &client{host: &lab.Host{Name: "client1", Addr4: netip.MustParseAddr("10.244.1.3")}, inside: true, socket: true}
	outClient  = &client{host: &lab.Host{Name: lab.Outside, Addr4: lab.OutsideAddr4}}
)

func loadDemo(t *testing.T) map[string]*service {
	t.Helper()
	c, err := load("manifests")
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*service{}
	for _, s := range c.services {
		byName[strings.TrimPrefix(s.name, "demo/")] = s
	}
	return byName
}

func TestManifestsSayWhoMayAnswer(t *testing.T) {
	services := loadDemo(t)
	for _, tc := range []struct {
		service, addr, typ string
		from               *client
		kind               lab.Kind
		servers, source    string
	}{
		{"shop", "10.96.0.10:80", "ClusterIP", podClient, lab.OK, "backend1 backend2 backend3 remote1", "10.244.1.2"},
		{"shop", "172.32.0.10:80", "LoadBalancer", podClient, lab.OK, "backend1 backend2 backend3 remote1", "172.30.0.11"},
		{"shop", "172.32.0.10:80", "LoadBalancer", sockClient, lab.OK, "backend1 backend2 backend3 remote1", "10.244.1.3"},
		{"shop", "10.96.0.10:80", "ClusterIP", outClient, lab.OK, "backend1 backend2 backend3 remote1", "172.30.0.11"},
		{"edge", "172.32.0.20:80", "LoadBalancer", outClient, lab.OK, "backend1 backend2", "172.30.0.1"},
		{"edge", "172.32.0.20:80", "LoadBalancer", podClient, lab.OK, "backend1 backend2 remote1", "10.244.1.2"},
		{"edge", "172.30.0.11:30081", "NodePort", outClient, lab.OK, "backend1 backend2", "172.30.0.1"},
		{"database", "10.244.1.13:5432", "pod", outClient, lab.OK, "backend3", "172.30.0.1"},
		{"maintenance", "10.96.0.30:80", "ClusterIP", outClient, lab.Refused, "", ""},
	} {
		s := services[tc.service]
		i := slices.IndexFunc(s.frontends(), func(f frontend) bool { return f.addr.String() == tc.addr && f.typ == tc.typ })
		if i < 0 {
			t.Errorf("%s: no %s %s in %v", tc.service, tc.typ, tc.addr, s.frontends())
			continue
		}
		got := s.expect(s.frontends()[i], tc.from)
		servers := strings.Join(slices.Sorted(maps.Keys(got.servers)), " ")
		var source string
		if len(got.sources) > 0 {
			source = got.sources[0].String()
		}
		if got.kind != tc.kind || servers != tc.servers || source != tc.source {
			t.Errorf("%s to %s: got %s by %q from %s, want %s by %q from %s", tc.from.host.Name, tc.addr,
				got.kind, servers, source, tc.kind, tc.servers, tc.source)
		}
	}
}

func TestEveryDeviationIsAFault(t *testing.T) {
	vip, server := netip.MustParseAddrPort("10.96.0.1:80"), netip.MustParseAddrPort("10.244.1.9:8080")
	good := lab.Result{
		Kind: lab.OK, Backend: "b", ServerLocal: server, Peer: vip,
		Seen: netip.MustParseAddrPort("10.244.1.2:1234"),
	}
	for _, tc := range []struct {
		name   string
		change func(*lab.Result)
		fault  string
	}{
		{"as it should be", func(*lab.Result) {}, ""},
		{"timeout", func(r *lab.Result) { *r = lab.Result{Kind: lab.Timeout} }, "timeout instead of ok"},
		{"stranger", func(r *lab.Result) { r.Backend = "c" }, "is no backend"},
		{"port", func(r *lab.Result) { r.ServerLocal = vip }, "answered at"},
		{"peer", func(r *lab.Result) { r.Peer = server }, "as its peer"},
		{"late once", func(r *lab.Result) { r.Took = resent }, ""},
		{"late twice", func(r *lab.Result) { r.Took = resent }, "packets were lost"},
		{"source", func(r *lab.Result) { r.Seen = vip }, "as its client"},
	} {
		r := &row{
			to:      frontend{addr: vip},
			want:    want{kind: lab.OK, servers: map[string]netip.AddrPort{"b": server}, sources: []netip.Addr{good.Seen.Addr()}},
			answers: map[string]int{}, other: map[lab.Kind]int{},
			peers: map[netip.AddrPort]int{}, sources: map[netip.Addr]int{},
		}
		res := good
		tc.change(&res)
		r.note(res)
		if strings.HasSuffix(tc.name, "twice") {
			r.note(res)
		}
		if got := strings.Join(r.faults, "; "); (got == "") != (tc.fault == "") || !strings.Contains(got, tc.fault) {
			t.Errorf("%s: got fault %q, want %q", tc.name, got, tc.fault)
		}
	}
}

func TestRemovedEndpointComesBack(t *testing.T) {
	dir := t.TempDir() + "/manifests"
	if err := copyManifests("manifests", dir); err != nil {
		t.Fatal(err)
	}
	names := func() string {
		c, err := load(dir)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(c.services[0].podNames(), " ")
	}
	c, err := load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := names(), "backend1 backend2 backend3 remote1"; c.services[0].name != "demo/shop" || got != want {
		t.Fatalf("%s: got %q, want %q", c.services[0].name, got, want)
	}
	e, err := removeEndpoint(dir, c.services[0], "backend2")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := names(), "backend1 backend3 remote1"; got != want {
		t.Errorf("removed: got %q, want %q", got, want)
	}
	if err := e.undo(); err != nil {
		t.Fatal(err)
	}
	if got, want := names(), "backend1 backend2 backend3 remote1"; got != want {
		t.Errorf("back: got %q, want %q", got, want)
	}
}
