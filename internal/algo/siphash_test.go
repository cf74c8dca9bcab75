// SPDX-License-Identifier: Apache-2.0

package algo

import (
	"net/netip"
	"testing"
)

// TestSipHash compares with CPython, whose hash(bytes) is SipHash-1-3 and has the
// key 0 when PYTHONHASHSEED is 0.
func TestSipHash(t *testing.T) {
	for _, tc := range []struct {
		words []uint32
		want  uint64
	}{
		{[]uint32{0x1}, 0x182e2c74c37b7090},
		{[]uint32{0x1020304, 0xfffefdfc}, 0xf99fb79247b3bab9},
		{[]uint32{0x0, 0x1, 0x2, 0x3}, 0x548c308ed114420c},
		{[]uint32{0xdeadbeef, 0x5, 0x6, 0x7, 0x8}, 0xc842067da2c35436},
		{[]uint32{0xa, 0x9, 0x8, 0x7, 0x6, 0x5, 0x4, 0x3, 0x2, 0x1}, 0x79fc15cac41145be},
	} {
		if got := sipHash(0, 0, tc.words); got != tc.want {
			t.Errorf("SipHash-1-3 of %x: %#x, want %#x", tc.words, got, tc.want)
		}
	}
}

func TestHashKeys(t *testing.T) {
	a4, mapped, b4 := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("::ffff:10.1.2.3"), netip.MustParseAddr("10.1.2.4")
	dst := netip.MustParseAddrPort("10.96.0.1:80")
	if HashSource(0, a4) != HashSource(0, mapped) {
		t.Error("an address and its v4-mapped form differ")
	}
	seen := map[uint32]string{}
	for name, h := range map[string]uint32{
		"source":                HashSource(0, a4),
		"another seed":          HashSource(1, a4),
		"another source":        HashSource(0, b4),
		"port 0":                HashSourcePort(0, a4, 0),
		"port 1":                HashSourcePort(0, a4, 1),
		"a cookie":              HashSourcePort(0, a4, 1<<16),
		"tuple":                 HashTuple(0, a4, 1, dst, 6),
		"tuple of UDP":          HashTuple(0, a4, 1, dst, 17),
		"tuple of another port": HashTuple(0, a4, 1, netip.AddrPortFrom(dst.Addr(), 81), 6),
	} {
		if other, ok := seen[h]; ok {
			t.Errorf("%s and %s have the same hash %#x", name, other, h)
		}
		seen[h] = name
	}
}

func TestHashPrefix(t *testing.T) {
	for _, tc := range []struct {
		addr   string
		p4, p6 uint8
		want   string
	}{
		{"10.1.2.3", 0, 0, "10.1.2.3"},
		{"10.1.2.3", 24, 64, "10.1.2.0"},
		{"::ffff:10.1.2.3", 24, 64, "10.1.2.0"},
		{"10.1.2.3", 32, 1, "10.1.2.3"},
		{"10.1.2.3", 200, 0, "10.1.2.3"},
		{"2001:db8:1:2:3::4", 24, 64, "2001:db8:1:2::"},
		{"2001:db8:1:2:3::4", 24, 0, "2001:db8:1:2:3::4"},
		{"fe80::1%eth0", 0, 0, "fe80::1"},
	} {
		if got := HashPrefix(netip.MustParseAddr(tc.addr), tc.p4, tc.p6).String(); got != tc.want {
			t.Errorf("%s with prefixes %d and %d: %s, want %s", tc.addr, tc.p4, tc.p6, got, tc.want)
		}
	}
	if got := HashPrefix(netip.Addr{}, 24, 64); got.IsValid() {
		t.Errorf("no address: %v", got)
	}
}
