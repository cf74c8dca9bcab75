// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/lb"
)

func TestCompile(t *testing.T) {
	svc := service("a", "10.244.0.1:80", "10.244.0.2:80")
	svc.Cluster.Backends[0].Weight = 300
	svc.Local = lb.Pool{Empty: lb.Drop}
	for _, tc := range []struct{ own, cluster, want string }{
		{"", "random", "random"},
		{"", "round-robin", "round-robin"},
		{"round-robin", "random", "round-robin"},
	} {
		in := *svc
		in.Balance.Algorithm = tc.own
		got, err := Compile(&in, Defaults{Algorithm: tc.cluster}, nil)
		if err != nil {
			t.Fatalf("own %q, default %q: %v", tc.own, tc.cluster, err)
		}
		if got.Balance.Algorithm != tc.want {
			t.Errorf("own %q, default %q: algorithm %q, want %q", tc.own, tc.cluster, got.Balance.Algorithm, tc.want)
		}
		table, err := algo.Build(tc.want, []algo.Member{{Weight: 300}, {Weight: 100}})
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got.Cluster.Table, table) {
			t.Errorf("table %+v, want %+v", got.Cluster.Table, table)
		}
		if !reflect.DeepEqual(got.Cluster.Backends, in.Cluster.Backends) || !reflect.DeepEqual(got.Frontends, in.Frontends) {
			t.Errorf("compiled %+v from %+v", got, in)
		}
		if got.Local.Table.N != 0 || got.Local.Empty != lb.Drop {
			t.Errorf("empty pool: %+v", got.Local)
		}
	}
}

// TestCompileHandsOnRamps compares with what each algorithm makes of its members.
func TestCompileHandsOnRamps(t *testing.T) {
	svc := service("a", "10.244.0.1:80", "10.244.0.2:80", "10.244.0.3:80")
	svc.Cluster.Backends[2].Weight = 300
	svc.Local.Backends = svc.Cluster.Backends[1:]
	ramps := map[netip.AddrPort]uint16{netip.MustParseAddrPort("10.244.0.2:80"): 6554, netip.MustParseAddrPort("10.244.9.9:80"): 1}
	for _, name := range algo.Names() {
		got, err := Compile(svc, Defaults{Algorithm: name}, ramps)
		if err != nil {
			t.Fatal(err)
		}
		for _, sc := range []lb.Scope{lb.ScopeCluster, lb.ScopeLocal} {
			var ms []algo.Member
			for _, be := range svc.Pool(sc).Backends {
				ms = append(ms, algo.Member{ID: memberID(be.Addr), Weight: be.Weight, Ramp: ramps[be.Addr]})
			}
			want, err := algo.Build(name, ms)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got.Pool(sc).Table, want) {
				t.Errorf("%s, scope %d:\n got %+v\nwant %+v", name, sc, got.Pool(sc).Table, want)
			}
		}
	}
}

func TestCompileFillsInDefaults(t *testing.T) {
	for _, tc := range []struct{ own, cluster, want time.Duration }{
		{0, 0, lb.NoSlowStart},
		{0, time.Minute, time.Minute},
		{time.Second, time.Minute, time.Second},
		{lb.NoSlowStart, time.Minute, lb.NoSlowStart},
	} {
		svc := service("a", "10.244.0.1:80")
		svc.Balance = lb.Balance{Signal: lb.SignalLastByte, SlowStart: tc.own}
		got, err := Compile(svc, Defaults{Algorithm: "random", SlowStart: tc.cluster}, nil)
		want := svc.Balance
		want.Algorithm, want.SlowStart = "random", tc.want
		if err != nil || got.Balance != want {
			t.Errorf("own %v, default %v: got %+v, %v, want %+v", tc.own, tc.cluster, got.Balance, err, want)
		}
	}
}

func TestCompileErrorNamesTheService(t *testing.T) {
	svc := service("a", "10.244.0.1:80")
	svc.Balance.Algorithm = "no-such"
	_, err := Compile(svc, Defaults{Algorithm: "random"}, nil)
	if !errors.Is(err, algo.ErrUnknown) || !strings.Contains(err.Error(), svc.Name.String()) {
		t.Errorf("error %v, want ErrUnknown for %s", err, svc.Name)
	}
}

// TestMemberIDIsStable pins the hash: another value would move every connection
// of hashing algorithms when a node is upgraded.
func TestMemberIDIsStable(t *testing.T) {
	if got, want := memberID(netip.MustParseAddrPort("10.244.0.1:80")), uint64(0x2f05f2ee9b6ef3ba); got != want {
		t.Errorf("memberID = %#x, want %#x", got, want)
	}
	ids := map[uint64]string{}
	for _, addr := range []string{"10.244.0.1:80", "10.244.0.1:81", "10.244.0.1:20480", "10.244.0.2:80", "[fd00::1]:80"} {
		id := memberID(netip.MustParseAddrPort(addr))
		if ids[id] != "" {
			t.Errorf("memberID(%s) = memberID(%s)", addr, ids[id])
		}
		ids[id] = addr
	}
	if a, b := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("[::ffff:10.0.0.1]:80"); memberID(a) != memberID(b) {
		t.Errorf("memberID differs for %s and %s", a, b)
	}
}

// TestSettingsOfOtherAlgorithmsAreDropped: dataplanes read a key and a prefix wherever
// a table is hashed.
func TestSettingsOfOtherAlgorithmsAreDropped(t *testing.T) {
	all := lb.Balance{HashKey: lb.HashTuple, Prefix4: 24, Prefix6: 64}
	for algorithm, want := range map[string]lb.Balance{
		"hash":        {HashKey: lb.HashTuple},
		"ip-hash":     {Prefix4: 24, Prefix6: 64},
		"round-robin": {},
	} {
		svc := service("a", "10.244.0.1:80")
		svc.Balance = all
		got, err := Compile(svc, Defaults{Algorithm: algorithm}, nil)
		if err != nil {
			t.Fatal(err)
		}
		want.Algorithm, want.SlowStart = algorithm, lb.NoSlowStart
		if got.Balance != want {
			t.Errorf("%s: %+v, want %+v", algorithm, got.Balance, want)
		}
	}
}
