// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// second VIPs of the Service at vips.
var otherVIPs = map[lb.Family]string{lb.IPv4: "10.96.0.9:80", lb.IPv6: "[fd00:10:96::9]:80"}

var callers = []string{"client1", "client2", lab.Node, lab.Outside}

// stickyService is at a load balancer's and at a cluster IP.
func (r *rig) stickyService(f lb.Family, proto lb.Proto, hosts ...string) *dataplane.Service {
	return sticky(r.svc("web", f, proto, "round-robin", r.pods(f, hosts...),
		frontend(lb.LoadBalancer, proto, vips[f], lb.MasqueradeAlways),
		frontend(lb.ClusterIP, proto, otherVIPs[f], lb.MasqueradeOffCluster)), time.Hour)
}

// stays fails unless n connections from a host to all of at go to one backend, which
// it returns.
func (r *rig) stays(from, proto string, n int, at ...string) string {
	r.t.Helper()
	total := map[string]int{}
	for _, vip := range at {
		got, _ := r.dial(from, lab.Request{Proto: proto, To: netip.MustParseAddrPort(vip)}, n)
		for who, k := range got {
			total[who] += k
		}
	}
	if len(total) != 1 {
		r.t.Errorf("%s from %s to %v: answered by %v, want one backend", proto, from, at, total)
	}
	for who := range total {
		return who
	}
	return ""
}

func TestAffinity(t *testing.T) {
	r := newRig(t, nil)
	for f := range vips {
		for _, p := range []lb.Proto{lb.TCP, lb.UDP} {
			r.testAffinity(f, p, map[lb.Proto]string{lb.TCP: lab.TCP, lb.UDP: lab.UDP}[p])
		}
	}
}

func (r *rig) testAffinity(f lb.Family, p lb.Proto, proto string) {
	all := []string{"backend1", "backend2", "backend3", "remote1"}
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{r.stickyService(f, p, all...)}})
	kept := map[string]string{}
	used := map[string]bool{}
	for _, from := range callers {
		kept[from] = r.stays(from, proto, 5, vips[f], otherVIPs[f])
		used[kept[from]] = true
	}
	if len(used) < 2 {
		r.t.Errorf("all callers have %v: round-robin should give them different backends", used)
	}
	r.stop()
	r.start()
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{r.stickyService(f, p, all...)}})
	for _, from := range callers {
		if who := r.stays(from, proto, 5, vips[f], otherVIPs[f]); who != kept[from] {
			r.t.Errorf("%s was given to %s, and after a restart to %s", from, kept[from], who)
		}
	}
	var left []string // without the one that client1 keeps
	for _, h := range all {
		if h != kept["client1"] {
			left = append(left, h)
		}
	}
	r.sync(dataplane.Delta{Put: []*dataplane.Service{r.stickyService(f, p, left...)}})
	for _, from := range callers {
		who := r.stays(from, proto, 5, vips[f], otherVIPs[f])
		if kept[from] != kept["client1"] && who != kept[from] {
			r.t.Errorf("%s was given to %s, and to %s when another backend left", from, kept[from], who)
		}
		if who == kept["client1"] {
			r.t.Errorf("%s is given to %s, which has left", from, who)
		}
	}
	svc := r.stickyService(f, p, left...)
	for i := range svc.Cluster.Backends { // the one that client1 keeps now takes nothing new
		if r.lab.Host(r.stays("client1", proto, 1, vips[f])).Addr4 == svc.Cluster.Backends[i].Addr.Addr() {
			svc.Cluster.Backends[i].Weight = 0
		}
	}
	svc.Cluster = pool(r.t, "round-robin", lb.Reject, svc.Cluster.Backends)
	r.sync(dataplane.Delta{Put: []*dataplane.Service{svc}})
	for _, b := range svc.Cluster.Backends {
		if who := r.lab.Host(r.stays("client1", proto, 5, vips[f])); b.Weight == 0 && who.Addr4 == b.Addr.Addr() {
			r.t.Errorf("client1 is given to %s of weight 0", who.Name)
		}
	}
	r.sync(dataplane.Delta{Full: true})
}

// TestAffinityEnds waits for a short one to end, which new connections put off.
func TestAffinityEnds(t *testing.T) {
	r := newRig(t, nil)
	svc := r.stickyService(lb.IPv4, lb.TCP, "backend1", "backend2", "backend3")
	svc.Terms.Affinity = time.Second
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc}})
	for _, from := range []string{"client1", "client2"} {
		var last time.Time // before its last connection, so that it waited no longer than since then
		var who string
		for moved := false; !moved; { // each time the client waits for twice as long
			began := time.Now()
			now := r.stays(from, lab.TCP, 1, vips[lb.IPv4])
			waited := time.Since(last)
			moved = who != "" && now != who
			if moved && waited < time.Second {
				t.Errorf("%s moved from %s to %s after %v", from, who, now, waited)
			}
			if waited > 10*time.Second && !last.IsZero() && !moved {
				t.Errorf("%s is given to %s, %v after its last connection", from, now, waited)
				moved = true
			}
			pause := 2 * waited
			if last.IsZero() {
				pause = 200 * time.Millisecond
			}
			last, who = began, now
			if !moved {
				<-time.After(pause)
			}
		}
	}
}

// TestAffinityIsBounded has room for few clients: the others are served.
func TestAffinityIsBounded(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Sizes.Affinities = 4 })
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{
		r.stickyService(lb.IPv4, lb.TCP, "backend1", "backend2", "backend3"),
		sticky(r.svc("other", lb.IPv6, lb.TCP, "round-robin", r.pods(lb.IPv6, "backend1", "backend2"),
			frontend(lb.ClusterIP, lb.TCP, otherVIPs[lb.IPv6], lb.MasqueradeOffCluster)), time.Hour),
	}})
	for range 3 {
		for _, from := range callers {
			for _, vip := range []string{vips[lb.IPv4], otherVIPs[lb.IPv6]} {
				r.answersFrom(from, lab.TCP, vip, lab.OK)
			}
		}
	}
}

// answersFrom fails unless an exchange has the outcome want.
func (r *rig) answersFrom(from, proto, to string, want lab.Kind) lab.Result {
	r.t.Helper()
	return r.asksFor(lab.Request{Proto: proto, To: netip.MustParseAddrPort(to)}, from, want)
}

// asksFor is answersFrom for any exchange.
func (r *rig) asksFor(req lab.Request, from string, want lab.Kind) lab.Result {
	r.t.Helper()
	req.Timeout = patience
	if want == lab.Timeout {
		req.Timeout = silence
	}
	res := r.lab.Host(from).Dial(r.t.Context(), req)
	if res.Kind != want {
		r.t.Errorf("%s from %s to %s: %s %s, want %s", req.Proto, from, req.To, res.Kind, res.Err, want)
	}
	return res
}

func TestSourceRanges(t *testing.T) {
	r := newRig(t, nil)
	lbIP, cluster, port := "172.32.0.9:80", "10.96.0.9:80", "0.0.0.0:30080"
	serve := func(ranges ...string) {
		r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{ranged(
			r.svc("web", lb.IPv4, lb.TCP, "random", r.pods(lb.IPv4, "backend1", "remote1"),
				frontend(lb.LoadBalancer, lb.TCP, lbIP, lb.MasqueradeAlways),
				frontend(lb.ClusterIP, lb.TCP, cluster, lb.MasqueradeOffCluster),
				frontend(lb.NodePort, lb.TCP, port, lb.MasqueradeAlways)), ranges...)}})
	}
	host := func(name string) string { return r.lab.Host(name).Addr4.String() + "/32" }
	for _, tc := range []struct {
		ranges []string
		may    []string
	}{
		{nil, nil},
		{[]string{host(lab.Outside)}, []string{lab.Outside}},
		{[]string{"172.30.0.0/24"}, []string{lab.Outside, lab.Node}},
		{[]string{host("client1")}, []string{"client1"}},
		{[]string{host("client2")}, []string{"client2"}},
		{[]string{"10.244.0.0/16", "10.244.1.0/24"}, []string{"client1", "client2"}},
		{[]string{"192.0.2.0/24"}, nil},
	} {
		serve(tc.ranges...)
		for _, from := range callers {
			want := lab.Timeout
			for _, h := range tc.may {
				if h == from {
					want = lab.OK
				}
			}
			t.Log(tc.ranges, from)
			r.answersFrom(from, lab.TCP, lbIP, want)
			r.answersFrom(from, lab.TCP, cluster, lab.OK)
			r.answersFrom(from, lab.TCP, lab.NodeAddr4.String()+":30080", lab.OK)
		}
	}
	many := make([]string, 0, 5000) // one more is where outside is
	for i := range 4999 {
		many = append(many, fmt.Sprintf("100.%d.%d.0/24", 64+i/250, i%250))
	}
	serve(append(many, host(lab.Outside))...)
	r.answersFrom(lab.Outside, lab.TCP, lbIP, lab.OK)
	r.answersFrom("client2", lab.TCP, lbIP, lab.Timeout)
	if n := r.count(r.dp.maps.ranges()); n != 5000 {
		t.Errorf("%d ranges in the table, want 5000", n)
	}
	r.sync(dataplane.Delta{Full: true})
	if n := r.count(r.dp.maps.ranges()); n != 0 {
		t.Errorf("%d ranges in the table without Services, want 0", n)
	}
}

func TestUnknownPort(t *testing.T) {
	r := newRig(t, nil)
	svc := func(name, vip string) *dataplane.Service {
		return r.svc(name, lb.FamilyOf(netip.MustParseAddrPort(vip).Addr()), lb.TCP, "random",
			r.pods(lb.FamilyOf(netip.MustParseAddrPort(vip).Addr()), "backend1"),
			frontend(lb.ClusterIP, lb.TCP, vip, lb.MasqueradeOffCluster))
	}
	a, b, c := svc("a", "10.96.0.9:80"), svc("b", "10.96.77.1:80"), svc("c", "[fd00:10:96::9]:80")
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{a, b, c}})
	check := func(want lab.Kind, hosts ...string) {
		t.Helper()
		for _, from := range callers {
			for _, h := range hosts {
				r.answersFrom(from, lab.TCP, h+":81", want)
				if want == lab.Refused && from == lab.Node {
					continue // its connected socket sends to the VIP, which nobody answers
				}
				r.asksFor(lab.Request{ // an error comes to connected sockets only
					Proto: lab.UDP, To: netip.MustParseAddrPort(h + ":80"), Connected: from != "client1",
				}, from, want)
			}
		}
	}
	check(lab.Refused, "10.96.0.9", "10.96.77.1", "[fd00:10:96::9]")
	check(lab.Timeout, "10.96.0.8", "10.96.78.1")
	for i, c := range r.dp.maps.settings[0].Cluster {
		if c == noRange {
			t.Errorf("family %d has no cluster IP", i)
		}
	}
	r.answersFrom("client1", lab.TCP, "10.96.0.9:80", lab.OK)
	r.stop()
	r.start()
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{b, c}})
	check(lab.Refused, "10.96.77.1", "[fd00:10:96::9]")
	check(lab.Timeout, "10.96.0.9")
}

// TestDraining moves flows of UDP when their backend is gone, not while it drains.
func TestDraining(t *testing.T) {
	r := newRig(t, nil)
	vip := vips[lb.IPv4]
	serve := func(hosts, draining []string) {
		svc := r.svc("web", lb.IPv4, lb.UDP, "random", r.pods(lb.IPv4, hosts...),
			frontend(lb.LoadBalancer, lb.UDP, vip, lb.MasqueradeAlways))
		for _, b := range r.pods(lb.IPv4, draining...) {
			svc.Terms.Draining = append(svc.Terms.Draining, b.Addr)
		}
		r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc}})
	}
	serve([]string{"backend1"}, nil)
	held := map[string]*lab.UDPSocket{}
	ask := func(want string) {
		t.Helper()
		for from, c := range held {
			if res := c.Exchange(t.Context(), netip.MustParseAddrPort(vip), nil); res.Kind != lab.OK || res.Backend != want {
				t.Errorf("from %s: %s by %s %s, want %s", from, res.Kind, res.Backend, res.Err, want)
			}
		}
	}
	for _, from := range callers {
		var err error
		if held[from], err = r.lab.Host(from).OpenUDP(t.Context(), lab.Request{To: netip.MustParseAddrPort(vip), Timeout: patience}); err != nil {
			t.Fatal(err)
		}
	}
	ask("backend1")
	serve([]string{"backend2"}, []string{"backend1"})
	ask("backend1")
	if got, _ := r.dial("client2", lab.Request{Proto: lab.UDP, To: netip.MustParseAddrPort(vip)}, 3); got["backend2"] != 3 {
		t.Errorf("new flows went to %v, want backend2", got)
	}
	r.stop()
	r.start()
	serve([]string{"backend2"}, []string{"backend1"})
	ask("backend1")
	serve([]string{"backend2"}, nil)
	ask("backend2")
}

// TestReset resets connections of the packet path to a backend that is gone, where the
// Service wants it.
func TestReset(t *testing.T) {
	r := newRig(t, nil)
	for _, reset := range []bool{false, true} {
		for _, f := range []lb.Family{lb.IPv4, lb.IPv6} {
			serve := func(hosts, draining []string) {
				svc := r.svc("web", f, lb.TCP, "random", r.pods(f, hosts...),
					frontend(lb.LoadBalancer, lb.TCP, vips[f], lb.MasqueradeAlways))
				svc.Terms.Reset = reset
				for _, b := range r.pods(f, draining...) {
					svc.Terms.Draining = append(svc.Terms.Draining, b.Addr)
				}
				r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc}})
			}
			serve([]string{"backend1"}, nil)
			conns := map[string]*lab.Conn{}
			for _, from := range callers {
				conns[from] = r.open(from, lab.TCP, vips[f])
			}
			serve([]string{"backend2"}, []string{"backend1"})
			if err := r.dp.Sweep(); err != nil { // what would end them, at the latest
				t.Fatal(err)
			}
			for from, c := range conns {
				r.ping(c, "from "+from+" to a backend that drains")
			}
			serve([]string{"backend2"}, nil)
			for from, c := range conns {
				if !reset {
					r.ping(c, "from "+from+" to a backend that is gone")
					continue
				}
				r.eventually("the connection from "+from+" is reset", func() bool { return c.Ping(t.Context()) != nil })
			}
			for _, c := range conns {
				_ = c.Close(t.Context(), "rst") // some are closed
			}
		}
	}
}

func TestClusterRange(t *testing.T) {
	r := noRange
	in := func(a string) bool {
		k := addrOf(netip.MustParseAddr(a))
		for i := range k.W {
			if (k.W[i]^r.Bits.W[i])&r.Mask.W[i] != 0 {
				return false
			}
		}
		return true
	}
	r = r.widened(addrOf(netip.MustParseAddr("10.96.0.1")))
	if !in("10.96.0.1") || in("10.96.0.2") || in("0.0.0.0") {
		t.Errorf("range of one address: %+v", r)
	}
	r = r.widened(addrOf(netip.MustParseAddr("10.96.3.1")))
	if !in("10.96.0.1") || !in("10.96.3.1") || in("10.97.0.1") || in("10.96.4.1") {
		t.Errorf("range of two addresses: %+v", r)
	}
	before := r
	if r = r.widened(addrOf(netip.MustParseAddr("10.96.1.1"))); r != before {
		t.Errorf("an address within changed %+v to %+v", before, r)
	}
}

// TestStaleFlowsOfPorts removes a port of a Service whose backends stay: flows of UDP to
// it end on the packet path, and those to the other port do not.
func TestStaleFlowsOfPorts(t *testing.T) {
	r := newRig(t, nil)
	put := func(ports ...string) {
		var fes []lb.Frontend
		for _, p := range ports {
			fes = append(fes, frontend(lb.LoadBalancer, lb.UDP, "172.32.0.9:"+p, lb.MasqueradeAlways))
		}
		r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{r.svc("web", lb.IPv4, lb.UDP, "random", r.pods(lb.IPv4, "backend1"), fes...)}})
	}
	put("53", "54")
	for _, from := range []string{"client1", "client2", lab.Outside} {
		for i, port := range []string{"53", "54"} {
			src := r.lab.Host(from).Addr4
			res := r.lab.Host(from).Dial(t.Context(), lab.Request{
				Proto: lab.UDP, To: netip.MustParseAddrPort("172.32.0.9:" + port), Timeout: patience,
				From: netip.AddrPortFrom(src, uint16(61000+i)), Connected: from != "client1",
			})
			if res.Kind != lab.OK {
				t.Fatalf("from %s to port %s: %s %s", from, port, res.Kind, res.Err)
			}
		}
	}
	forwards := func() map[uint16]int {
		n := map[uint16]int{}
		var key lbTuple
		var c lbConn
		for it := r.dp.maps.byName[lbMapConns].Iterate(); it.Next(&key, &c); {
			if c.Flags&uint32(lbConnFlagsCONN_FORWARD) != 0 {
				n[swap16(key.Dport)]++
			}
		}
		return n
	}
	if n := forwards(); n[53] != 2 || n[54] != 2 {
		t.Fatalf("connections by port: %v, want 2 of each", n)
	}
	put("54")
	r.eventually("flows to the port that is gone have ended", func() bool { n := forwards(); return n[53] == 0 && n[54] == 2 })
}
