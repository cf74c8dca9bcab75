// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/lb"
)

func pfx(s string) netip.Prefix {
	if !strings.Contains(s, "/") {
		a := netip.MustParseAddr(s)
		return netip.PrefixFrom(a, a.BitLen())
	}
	return netip.MustParsePrefix(s)
}

func TestValidMembers(t *testing.T) {
	host, wide, all := pfx("10.0.0.1"), pfx("10.0.0.0/8"), pfx("0.0.0.0/0")
	for _, tc := range []struct {
		name string
		typ  setType
		m    member
		want bool
	}{
		{"address", hashIP, member{addr: host}, true},
		{"prefix for an address", hashIP, member{addr: wide}, false},
		{"port too many", hashIP, member{addr: host, proto: lb.TCP, port: 1}, false},
		{"other family", hashIP, member{addr: pfx("fd00::1")}, false},
		{"nothing", hashIP, member{}, false},
		{"port", hashIPPort, member{addr: host, proto: lb.SCTP, port: 1}, true},
		{"port missing", hashIPPort, member{addr: host}, false},
		{"prefix", hashNetPort, member{addr: wide, proto: lb.UDP, port: 1}, true},
		{"bits behind the prefix", hashNetPort, member{addr: netip.PrefixFrom(host.Addr(), 8), proto: lb.UDP, port: 1}, false},
		{"every address", hashNetPort, member{addr: all, proto: lb.UDP, port: 1}, false},
		{"range", hashIPPortNet, member{addr: host, proto: lb.TCP, port: 1, from: wide}, true},
		{"range missing", hashIPPortNet, member{addr: host, proto: lb.TCP, port: 1}, false},
		{"every source", hashIPPortNet, member{addr: host, proto: lb.TCP, port: 1, from: all}, false},
		{"range too many", hashIPPort, member{addr: host, proto: lb.TCP, port: 1, from: wide}, false},
	} {
		if err := (setSpec{name: "LBP-X", typ: tc.typ, family: lb.IPv4}).valid(tc.m); (err == nil) != tc.want {
			t.Errorf("%s: %s %s: got %v", tc.name, tc.typ, tc.m, err)
		}
	}
}

func TestSetDifferences(t *testing.T) {
	spec := setSpec{"LBP-X", hashIP, lb.IPv4, 0}
	set := func(addrs ...string) *knownSet {
		k := &knownSet{spec: spec, members: map[member]bool{}}
		for _, a := range addrs {
			k.members[member{addr: pfx(a)}] = true
		}
		return k
	}
	timed := &knownSet{spec: spec}
	timed.spec.timeout = 5
	for _, tc := range []struct {
		name     string
		old, now *knownSet
		want     string
	}{
		{"the same", set("10.0.0.1"), set("10.0.0.1"), ""},
		{"gone", set(), nil, "ipset LBP-X is gone"},
		{"new", nil, set(), "ipset LBP-X was made by somebody else"},
		{"another kind", set(), timed, "ipset LBP-X is hash:ip with timeout 5: want hash:ip with timeout 0"},
		{"members", set("10.0.0.1", "10.0.0.3", "10.0.0.2"), set("10.0.0.1", "10.0.0.9"),
			"ipset LBP-X lacks 10.0.0.2 and 1 more; ipset LBP-X has 10.0.0.9, which should not be there"},
	} {
		if got := strings.Join(differ("LBP-X", tc.old, tc.now), "; "); got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}
