// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// addrOf returns a in the kernel's form: 16 bytes, IPv4 as ::ffff:a.b.c.d. The
// unspecified IPv4 address is ::ffff:0.0.0.0.
func addrOf(a netip.Addr) (k lbAddr) {
	b := a.As16()
	for i := range k.W {
		k.W[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return k
}

// netipOf is the inverse of addrOf.
func netipOf(k lbAddr) netip.Addr {
	var b [16]byte
	for i, w := range k.W {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return netip.AddrFrom16(b).Unmap()
}

// swap16 converts a port between host and network order.
func swap16(p uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], p)
	return binary.NativeEndian.Uint16(b[:])
}

func addrPortOf(k lbAddr, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netipOf(k), swap16(port))
}

func frontendKeyOf(k lb.FrontendKey) lbFrontendKey {
	return lbFrontendKey{Addr: addrOf(k.Addr.Addr()), Port: swap16(k.Addr.Port()), Proto: uint8(k.Proto)}
}

func frontendFrom(k lbFrontendKey) lb.FrontendKey {
	return lb.FrontendKey{Addr: addrPortOf(k.Addr, k.Port), Proto: lb.Proto(k.Proto)}
}

// checkOf is the digest of a key that its value carries: frontend_check in
// bpf/lib/service.h.
func checkOf(k lbFrontendKey) uint16 {
	w := k.Addr.W[0] ^ k.Addr.W[1] ^ k.Addr.W[2] ^ k.Addr.W[3]
	w ^= uint32(k.Port)<<16 | uint32(k.Proto)
	return uint16(w ^ w>>16)
}

// frontendValueOf returns the kernel's record of f, which belongs to service id, of
// which terms are known.
func frontendValueOf(f lb.Frontend, id uint32, terms lb.Terms) lbFrontend {
	var flags lbFrontendFlags
	if f.Inside == lb.ScopeLocal {
		flags |= lbFrontendFlagsFE_INSIDE_LOCAL
	}
	if f.Outside == lb.ScopeLocal {
		flags |= lbFrontendFlagsFE_OUTSIDE_LOCAL
	}
	switch f.Masquerade {
	case lb.MasqueradeOffCluster:
		flags |= lbFrontendFlagsFE_MASQ_OFFCLUSTER
	case lb.MasqueradeAlways:
		flags |= lbFrontendFlagsFE_MASQ_ALWAYS
	case lb.MasqueradeNever:
	}
	if f.Ranged {
		flags |= lbFrontendFlagsFE_RANGED
	}
	if terms.Affinity > 0 {
		flags |= lbFrontendFlagsFE_AFFINITY
	}
	return lbFrontend{
		Service: id,
		Flags:   uint8(flags),
		Type:    uint8(f.Type),
		Check:   checkOf(frontendKeyOf(f.FrontendKey)),
	}
}

// prefixOf returns p as a key of pod_ranges.
func prefixOf(p netip.Prefix) lbPrefix {
	n := p.Bits()
	if p.Addr().Is4() {
		n += 96
	}
	return lbPrefix{Len: uint32(n), Addr: addrOf(p.Masked().Addr())}
}

// ceilPow2 returns the smallest power of two that is at least n, and its
// exponent.
func ceilPow2(n uint32) (size uint32, exp int) {
	exp = bits.Len32(n - 1)
	return 1 << exp, exp
}
