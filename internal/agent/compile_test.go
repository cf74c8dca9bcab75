// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

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
		in.Algorithm = tc.own
		got, err := Compile(&in, tc.cluster)
		if err != nil {
			t.Fatalf("own %q, default %q: %v", tc.own, tc.cluster, err)
		}
		if got.Algorithm != tc.want {
			t.Errorf("own %q, default %q: algorithm %q, want %q", tc.own, tc.cluster, got.Algorithm, tc.want)
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

func TestCompileErrorNamesTheService(t *testing.T) {
	svc := service("a", "10.244.0.1:80")
	svc.Algorithm = "no-such"
	_, err := Compile(svc, "random")
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
