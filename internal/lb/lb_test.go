// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestParseProto(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want Proto
		ok   bool
	}{
		{"", TCP, true},
		{"TCP", TCP, true},
		{"tcp", TCP, true},
		{"Udp", UDP, true},
		{"SCTP", SCTP, true},
		{"ICMP", 0, false},
		{" TCP", 0, false},
		{"6", 0, false},
	} {
		got, err := ParseProto(tc.in)
		if got != tc.want || (err == nil) != tc.ok {
			t.Errorf("ParseProto(%q) = %v, %v, want %v, error %t", tc.in, got, err, tc.want, !tc.ok)
		}
	}
	for _, p := range []Proto{TCP, UDP, SCTP} {
		if got, err := ParseProto(p.String()); got != p || err != nil {
			t.Errorf("ParseProto(%q) = %v, %v, want %v", p.String(), got, err, p)
		}
	}
}

func TestFamilyOf(t *testing.T) {
	for in, want := range map[string]Family{
		"10.0.0.1": IPv4, "0.0.0.0": IPv4, "::": IPv6, "fd00::1": IPv6, "::ffff:10.0.0.1": IPv6,
	} {
		if got := FamilyOf(netip.MustParseAddr(in)); got != want {
			t.Errorf("FamilyOf(%s) = %v, want %v", in, got, want)
		}
	}
	for _, f := range []Family{IPv4, IPv6} {
		if got := FamilyOf(f.Unspecified()); got != f {
			t.Errorf("FamilyOf(%v.Unspecified()) = %v", f, got)
		}
		if !f.Unspecified().IsUnspecified() {
			t.Errorf("%v.Unspecified() = %v", f, f.Unspecified())
		}
	}
}

func TestServiceNameString(t *testing.T) {
	obj := Object{Namespace: "shop", Name: "cart"}
	for _, tc := range []struct {
		name ServiceName
		want string
	}{
		{ServiceName{obj, "http", TCP, IPv4}, "shop/cart:http/TCP/IPv4"},
		{ServiceName{obj, "", UDP, IPv6}, "shop/cart/UDP/IPv6"},
		{ServiceName{obj, "s-1", SCTP, IPv4}, "shop/cart:s-1/SCTP/IPv4"},
	} {
		if got := tc.name.String(); got != tc.want {
			t.Errorf("String of %#v = %q, want %q", tc.name, got, tc.want)
		}
		got, err := ParseServiceName(tc.want)
		if got != tc.name || err != nil {
			t.Errorf("ParseServiceName(%q) = %#v, %v, want %#v", tc.want, got, err, tc.name)
		}
	}
}

func TestParseServiceNameErrors(t *testing.T) {
	for _, in := range []string{"", "a/b", "a/b/TCP", "a/b/TCP/IPv5", "a/b/ICMP/IPv4", "a/b/c/TCP/IPv4", "a/b/TCP/ipv4"} {
		if got, err := ParseServiceName(in); err == nil {
			t.Errorf("ParseServiceName(%q) = %v, want an error", in, got)
		}
	}
}

func FuzzParseServiceName(f *testing.F) {
	f.Add("shop/cart:http/TCP/IPv4")
	f.Add("shop/cart/udp/IPv6")
	f.Add("//:/IPv4")
	f.Fuzz(func(t *testing.T, in string) {
		n, err := ParseServiceName(in)
		if err != nil {
			return
		}
		again, err := ParseServiceName(n.String())
		if err != nil || again != n {
			t.Errorf("%q is %#v, its String %q is %#v, %v", in, n, n.String(), again, err)
		}
	})
}

func TestServiceNameOrder(t *testing.T) {
	name := func(ns, n, port string, p Proto, f Family) ServiceName {
		return ServiceName{Object{ns, n}, port, p, f}
	}
	want := []ServiceName{
		name("a", "a", "", TCP, IPv4),
		name("a", "a", "", TCP, IPv6),
		name("a", "a", "", UDP, IPv4),
		name("a", "a", "http", TCP, IPv4),
		name("a", "b", "", TCP, IPv4),
		name("b", "a", "", TCP, IPv4),
	}
	seed := uint64(time.Now().UnixNano())
	got := slices.Clone(want)
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
	slices.SortFunc(got, ServiceName.Compare)
	if !slices.Equal(got, want) {
		t.Errorf("seed %d: sorted %v, want %v", seed, got, want)
	}
	checkOrder(t, want, ServiceName.Compare)
}

func TestFrontendOrder(t *testing.T) {
	fe := func(addr string, p Proto) Frontend {
		return Frontend{FrontendKey: FrontendKey{Addr: netip.MustParseAddrPort(addr), Proto: p}}
	}
	checkOrder(t, []Frontend{
		fe("10.0.0.1:80", TCP), fe("10.0.0.1:80", UDP), fe("10.0.0.1:443", TCP),
		fe("10.0.0.2:80", TCP), fe("10.0.0.10:80", TCP), fe("[fd00::1]:80", TCP),
	}, Frontend.Compare)
}

func TestBackendOrder(t *testing.T) {
	be := func(addr string) Backend { return Backend{Addr: netip.MustParseAddrPort(addr)} }
	checkOrder(t, []Backend{
		be("10.0.0.2:80"), be("10.0.0.2:8080"), be("10.0.0.10:80"), be("[fd00::1]:80"),
	}, Backend.Compare)
}

// checkOrder compares each pair of want, which is sorted and has no equals.
func checkOrder[T any](t *testing.T, want []T, compare func(a, b T) int) {
	t.Helper()
	for i, a := range want {
		for j, b := range want {
			got := compare(a, b)
			if (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("compare(%v, %v) = %d", a, b, got)
			}
		}
	}
}

func TestStrings(t *testing.T) {
	key := FrontendKey{Addr: netip.MustParseAddrPort("[fd00::1]:80"), Proto: UDP}
	for _, tc := range []struct{ got, want string }{
		{key.String(), "[fd00::1]:80/UDP"},
		{Proto(1).String(), "proto-1"},
		{Family(5).String(), "family-5"},
		{ClusterIP.String(), "ClusterIP"},
		{NodePort.String(), "NodePort"},
		{LoadBalancer.String(), "LoadBalancer"},
		{ExternalIP.String(), "ExternalIP"},
		{FrontendType(0).String(), "frontend-type-0"},
		{Reject.String(), "reject"},
		{Drop.String(), "drop"},
	} {
		if tc.got != tc.want {
			t.Errorf("String() = %q, want %q", tc.got, tc.want)
		}
	}
}

func TestPoolOfScope(t *testing.T) {
	var svc Service
	if svc.Pool(ScopeCluster) != &svc.Cluster || svc.Pool(ScopeLocal) != &svc.Local {
		t.Error("Pool does not return the pool of its scope")
	}
}
