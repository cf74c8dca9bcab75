// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// subject is an endpoint in the words of the oracle. Hints are "", "this" or "other".
type subject struct {
	ready, serving, terminating, here bool
	zone, node                        string
	weight                            uint16
}

func (s subject) String() string {
	var words []string
	for _, w := range []struct {
		on   bool
		word string
	}{
		{s.ready, "ready"}, {s.serving, "serving"}, {s.terminating, "terminating"}, {s.here, "here"},
		{s.zone != "", "zone=" + s.zone}, {s.node != "", "node=" + s.node}, {s.weight != lb.DefaultWeight, fmt.Sprint("weight=", s.weight)},
	} {
		if w.on {
			words = append(words, w.word)
		}
	}
	return "{" + strings.Join(words, " ") + "}"
}

// candidate is s as choose sees it, at the i-th address.
func (s subject) candidate(i int) candidate {
	c := candidate{addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80), weight: s.weight}
	for _, f := range []struct {
		on  bool
		bit flags
	}{
		{s.ready, ready}, {s.serving, serving}, {s.terminating, terminating}, {s.here, local},
		{s.node != "", hasNodeHints}, {s.node == "this", hintsThisNode},
	} {
		if f.on {
			c.flags |= f.bit
		}
	}
	if s.zone != "" {
		c.zones = makeZoneSet([]discovery.ForZone{{Name: "zone-" + s.zone}})
	}
	return c
}

// verdicts is what the oracle says: which subjects, by index.
type verdicts struct {
	cluster, local, draining []int
	drop                     bool
}

func pick(all []subject, want func(subject) bool) (out []int) {
	for i, s := range all {
		if want(s) {
			out = append(out, i)
		}
	}
	return out
}

// hinted returns who is hinted for here: by the ready ones, all of which must have a
// hint, and one must be for here and take connections.
func hinted(all []subject, hint func(subject) string) (out []int, ok bool) {
	for i, s := range all {
		switch {
		case !s.ready:
		case hint(s) == "":
			return nil, false
		case hint(s) == "this":
			out = append(out, i)
			ok = ok || s.weight > 0
		}
	}
	return out, ok
}

// oracle is section 1.2 of the semantics, one sentence after the other, and the
// refinements for weight 0 of docs/ANNOTATIONS.md.
func oracle(all []subject, useCluster, useLocal bool) (v verdicts) {
	// "Ready endpoints first. If none: endpoints serving && terminating."
	v.cluster = pick(all, func(s subject) bool { return s.ready })
	if len(v.cluster) == 0 {
		v.cluster = pick(all, func(s subject) bool { return s.serving && s.terminating })
	} else if byNode, ok := hinted(all, func(s subject) string { return s.node }); ok {
		// "If every ready endpoint has node hints and one names this node"
		v.cluster = byNode
	} else if byZone, ok := hinted(all, func(s subject) string { return s.zone }); ok {
		// "else if every ready endpoint has zone hints and one names this zone"
		v.cluster = byZone
	}
	// "Done independently for Cluster set and Local set." Hints do not matter.
	v.local = pick(all, func(s subject) bool { return s.here && s.ready })
	if len(v.local) == 0 {
		v.local = pick(all, func(s subject) bool { return s.here && s.serving && s.terminating })
	}
	// "has endpoints elsewhere but none here: DROP"
	v.drop = len(pick(all, func(s subject) bool {
		return !s.here && s.weight > 0 && (s.ready || s.serving && s.terminating)
	})) > 0
	if !useCluster {
		v.cluster = nil
	}
	if !useLocal {
		v.local, v.drop = nil, false
	}
	// Serving, but in no pool that is used.
	for i, s := range all {
		if s.serving && !slices.Contains(v.cluster, i) && !slices.Contains(v.local, i) {
			v.draining = append(v.draining, i)
		}
	}
	return v
}

// everySubject returns each combination of conditions and hints, with these weights.
func everySubject(weights ...uint16) (out []subject) {
	hints := []string{"", "this", "other"}
	for bits := range 16 {
		for _, zone := range hints {
			for _, node := range hints {
				for _, w := range weights {
					out = append(out, subject{bits&1 != 0, bits&2 != 0, bits&4 != 0, bits&8 != 0, zone, node, w})
				}
			}
		}
	}
	return out
}

func indexes(bs []lb.Backend) (out []int) {
	for _, b := range bs {
		out = append(out, int(b.Addr.Addr().As4()[3]))
	}
	return out
}

// checkChoice compares choose with the oracle, for each set of pools that is used.
func checkChoice(t *testing.T, all []subject) {
	t.Helper()
	cs := make([]candidate, len(all))
	for i, s := range all {
		cs[i] = s.candidate(i)
	}
	for uses := range 4 {
		w := wish{zone: "zone-this", cluster: uses&1 != 0, local: uses&2 != 0, draining: true}
		want := oracle(all, w.cluster, w.local)
		s := choose(cs, w)
		var draining []int
		for _, a := range s.draining {
			draining = append(draining, int(a.Addr().As4()[3]))
		}
		got := verdicts{indexes(s.cluster.Backends), indexes(s.local.Backends), draining, s.local.Empty == lb.Drop}
		if !slices.Equal(got.cluster, want.cluster) || !slices.Equal(got.local, want.local) ||
			!slices.Equal(got.draining, want.draining) || got.drop != want.drop || s.cluster.Empty != lb.Reject {
			t.Fatalf("endpoints %v, cluster pool used: %t, local pool used: %t:\ngot  %+v\nwant %+v", all, w.cluster, w.local, got, want)
		}
		for _, bs := range [][]lb.Backend{s.cluster.Backends, s.local.Backends} {
			for _, b := range bs {
				if i := b.Addr.Addr().As4()[3]; b.Weight != all[i].weight || b.Local != all[i].here || b.Addr.Port() != 80 {
					t.Fatalf("endpoints %v: backend %+v", all, b)
				}
			}
		}
		if w.draining = false; choose(cs, w).draining != nil {
			t.Fatalf("endpoints %v: draining ones that nobody asked for", all)
		}
	}
}

// TestChoiceOfEveryCombination has each combination of ready, serving, terminating,
// local, zone hint and node hint for up to three endpoints: 144 for one, 20,736 for
// two, and for three the 508,080 that differ in more than their order, in two orders.
func TestChoiceOfEveryCombination(t *testing.T) {
	every := everySubject(lb.DefaultWeight)
	checkChoice(t, nil)
	for i, a := range every {
		checkChoice(t, []subject{a})
		for _, b := range every {
			checkChoice(t, []subject{a, b})
		}
		for j, b := range every[i:] {
			for _, c := range every[i+j:] {
				checkChoice(t, []subject{a, b, c})
				if (i+j)%3 == 0 {
					checkChoice(t, []subject{c, a, b})
				}
			}
		}
	}
}

// TestChoiceOfEveryCombinationWithWeights has two endpoints, each with weight 0 or not.
func TestChoiceOfEveryCombinationWithWeights(t *testing.T) {
	every := everySubject(0, 7)
	for _, a := range every {
		checkChoice(t, []subject{a})
		for _, b := range every {
			checkChoice(t, []subject{a, b})
		}
	}
}

func TestChoiceWithoutZone(t *testing.T) {
	a, b := subject{ready: true, zone: "this", weight: 1}, subject{ready: true, zone: "other", weight: 1}
	for zone, want := range map[string]int{"": 2, "zone-elsewhere": 2, "zone-this": 1, "zone-other": 1, "zone": 2} {
		cs := []candidate{a.candidate(1), b.candidate(2)}
		if got := choose(cs, wish{zone: zone, cluster: true}).cluster.Backends; len(got) != want {
			t.Errorf("zone %q: backends %v, want %d", zone, got, want)
		}
	}
}

// TestWhoGetsWhichPool has the two short-circuits of externalTrafficPolicy Local: pods
// and processes of the node get endpoints of the whole cluster, others local ones.
func TestWhoGetsWhichPool(t *testing.T) {
	all := []func(*v1.Service){nodePort(30080), balancer("203.0.113.1"), func(s *v1.Service) { s.Spec.ExternalIPs = []string{"198.51.100.7"} }}
	external := []lb.FrontendType{lb.NodePort, lb.LoadBalancer, lb.ExternalIP}
	for _, tc := range []struct {
		name                             string
		edit                             []func(*v1.Service)
		endpoints                        []string
		clusterIP, extInside, extOutside string // the answers at each type of address
	}{
		{"no policy", nil, []string{"10.0.0.1", "10.0.0.2 remote"}, "1! 2", "1! 2", "1! 2"},
		{"external local", []func(*v1.Service){externalLocal}, []string{"10.0.0.1", "10.0.0.2 remote"}, "1! 2", "1! 2", "1!"},
		{"external local, none here", []func(*v1.Service){externalLocal}, []string{"10.0.0.2 remote"}, "2", "2", "drop"},
		{"external local, none", []func(*v1.Service){externalLocal}, nil, "reject", "reject", "reject"},
		{"internal local", []func(*v1.Service){internalLocal}, []string{"10.0.0.1", "10.0.0.2 remote"}, "1!", "1! 2", "1! 2"},
		{"internal local, none here", []func(*v1.Service){internalLocal}, []string{"10.0.0.2 remote"}, "drop", "2", "2"},
		{"both local", []func(*v1.Service){internalLocal, externalLocal}, []string{"10.0.0.1", "10.0.0.2 remote"}, "1!", "1! 2", "1!"},
		{"both local, none here", []func(*v1.Service){internalLocal, externalLocal}, []string{"10.0.0.2 remote"}, "drop", "2", "drop"},
		{
			"external local, each pool falls back by itself", []func(*v1.Service){externalLocal},
			[]string{"10.0.0.1 terminating", "10.0.0.2 remote"}, "2", "2", "1!",
		},
		{
			"external local, topology is for the cluster pool", []func(*v1.Service){externalLocal},
			[]string{"10.0.0.1 zone=zone-b", "10.0.0.2 remote zone=zone-a"}, "2", "2", "1!",
		},
	} {
		in := testSlice("web", "web-1", tc.endpoints...)
		got, _ := Resolve(testService("web", append(slices.Clone(all), tc.edit...)...), []*discovery.EndpointSlice{in}, lb.Node{Zone: thisZone}, testOptions())
		if len(got) != 1 || len(got[0].Frontends) != 4 {
			t.Fatalf("%s: got %v, want one Service with 4 frontends", tc.name, showFrontends(got))
		}
		for _, fe := range got[0].Frontends {
			inside, outside := tc.clusterIP, tc.clusterIP
			if slices.Contains(external, fe.Type) {
				inside, outside = tc.extInside, tc.extOutside
			}
			if s := show(*got[0].Pool(fe.Inside)); s != inside {
				t.Errorf("%s: %s, callers inside: %q, want %q", tc.name, fe.Type, s, inside)
			}
			if s := show(*got[0].Pool(fe.Outside)); s != outside {
				t.Errorf("%s: %s, callers outside: %q, want %q", tc.name, fe.Type, s, outside)
			}
		}
	}
}

// TestPodAddressReuse has a new Pod with the address of one that still terminates.
func TestPodAddressReuse(t *testing.T) {
	old := testSlice("web", "web-1", "10.0.0.1 terminating remote")
	for name, tc := range map[string]struct{ next, want string }{
		"the new one is ready":     {"10.0.0.1", "1!"},
		"the new one is not ready": {"10.0.0.1 notready", "reject"},
		"both terminate":           {"10.0.0.1 terminating", "1"}, // the first: nobody knows better
	} {
		for _, other := range []string{"web-0", "web-2"} {
			next := testSlice("web", other, tc.next)
			want := tc.want
			if name == "both terminate" && other == "web-0" {
				want = "1!"
			}
			got, _ := Resolve(testService("web"), []*discovery.EndpointSlice{old, next}, lb.Node{}, testOptions())
			if s := show(got[0].Cluster); s != want {
				t.Errorf("%s, in slice %s: got %q, want %q", name, other, s, want)
			}
		}
	}
}

func TestOneAddressWithTwoPortsIsTwoBackends(t *testing.T) {
	a, b := testSlice("web", "web-1", "10.0.0.1", "10.0.0.2"), testSlice("web", "web-2", "10.0.0.2", "10.0.0.1")
	b.Ports[0].Port = ptr(int32(8081)) // a named target port that differs from Pod to Pod
	got, _ := Resolve(testService("web"), []*discovery.EndpointSlice{b, a}, lb.Node{}, testOptions())
	var addrs []string
	for _, be := range got[0].Cluster.Backends {
		addrs = append(addrs, be.Addr.String())
	}
	want := []string{"10.0.0.1:8080", "10.0.0.1:8081", "10.0.0.2:8080", "10.0.0.2:8081"}
	if !slices.Equal(addrs, want) {
		t.Errorf("got %q, want %q", addrs, want)
	}
}

// TestSeveralPortsInSeveralSlices has ports that only some slices have.
func TestSeveralPortsInSeveralSlices(t *testing.T) {
	svc := testService("web", func(s *v1.Service) {
		s.Spec.Ports = []v1.ServicePort{
			{Name: "http", Port: 80}, {Name: "admin", Port: 81}, {Name: "dns", Port: 53, Protocol: v1.ProtocolUDP}, {Name: "dns-tcp", Port: 53},
		}
	})
	both := testSlice("web", "web-2", "10.0.0.9", "10.0.0.2")
	both.Ports = append(both.Ports, discovery.EndpointPort{Name: ptr("admin"), Port: ptr(int32(9000))},
		discovery.EndpointPort{Name: ptr("dns"), Protocol: ptr(v1.ProtocolUDP), Port: ptr(int32(5353))})
	got, ps := Resolve(svc, []*discovery.EndpointSlice{testSlice("web", "web-1", "10.0.0.3", "10.0.0.1"), both}, lb.Node{}, testOptions())
	var lines []string
	for _, s := range got {
		lines = append(lines, s.Name.Port+" "+show(s.Cluster))
	}
	want := []string{"admin 2! 9!", "dns 2! 9!", "dns-tcp reject", "http 1! 2! 3! 9!"}
	if !slices.Equal(lines, want) || len(ps) > 0 {
		t.Errorf("got %q, problems %v; want %q", lines, ps, want)
	}
}

// TestManyEndpointsInManySlices has all addresses twice, in slices of 1,000, in no
// order, and compares with a set.
func TestManyEndpointsInManySlices(t *testing.T) {
	for _, size := range []int{100, 1000} {
		sls := wideSlices(5000, size)
		want := map[netip.AddrPort]bool{}
		for _, sl := range sls {
			for i := range sl.Endpoints {
				want[netip.AddrPortFrom(netip.MustParseAddr(sl.Endpoints[i].Addresses[0]), 8080)] = true
			}
		}
		last := sls[len(sls)-1].DeepCopy()
		last.Name = "copy"
		for i := range last.Endpoints {
			last.Endpoints[i].Conditions.Terminating = ptr(true) // the others win
			last.Endpoints[i].Conditions.Ready = ptr(false)
		}
		got, ps := Resolve(testService("wide"), append(sls, last), lb.Node{}, testOptions())
		bs := got[0].Cluster.Backends
		for _, b := range bs {
			if !want[b.Addr] {
				t.Fatalf("slices of %d: %s is there twice, or is none of them", size, b.Addr)
			}
			delete(want, b.Addr)
		}
		if len(ps) > 0 || len(want) > 0 || !slices.IsSortedFunc(bs, lb.Backend.Compare) || cap(bs) != len(bs) {
			t.Errorf("slices of %d: problems %v, %d missing, %d backends, room for %d", size, ps, len(want), len(bs), cap(bs))
		}
	}
}
