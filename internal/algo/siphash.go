// SPDX-License-Identifier: Apache-2.0

package algo

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// HashSource returns Input.Hash of a connection from src, under the cluster's
// seed. IPv4 addresses may be v4-mapped or not. Mask src with HashPrefix first if
// only its prefix counts.
func HashSource(seed uint64, src netip.Addr) uint32 {
	return HashWords(seed, appendAddr(make([]uint32, 0, 4), src))
}

// HashSourcePort returns Input.Hash of a connection from src and a port. If the
// port is not known yet it is a number of the socket's own, of any size.
func HashSourcePort(seed uint64, src netip.Addr, port uint32) uint32 {
	return HashWords(seed, append(appendAddr(make([]uint32, 0, 5), src), port))
}

// HashTuple returns Input.Hash of a connection of an IP protocol from src and a
// port, as in HashSourcePort, to dst. Of the source port the lower 16 bits count.
func HashTuple(seed uint64, src netip.Addr, port uint32, dst netip.AddrPort, proto uint8) uint32 {
	words := appendAddr(make([]uint32, 0, 10), src)
	words = appendAddr(words, dst.Addr())
	return HashWords(seed, append(words, port<<16|uint32(dst.Port()), uint32(proto)))
}

// HashPrefix returns addr with all but its leading bits cleared: prefix4 of an
// IPv4 address, v4-mapped or not, and prefix6 of others. 0 means all bits.
func HashPrefix(addr netip.Addr, prefix4, prefix6 uint8) netip.Addr {
	addr = addr.Unmap().WithZone("")
	n := int(prefix6)
	if addr.Is4() {
		n = int(prefix4)
	}
	if n == 0 || n > addr.BitLen() {
		return addr
	}
	p, err := addr.Prefix(n)
	if err != nil { // the zero Addr
		return addr
	}
	return p.Addr()
}

// appendAddr appends the four words of an address, v4-mapped, as they lie in
// memory in network order.
func appendAddr(words []uint32, addr netip.Addr) []uint32 {
	var b [16]byte
	if addr.IsValid() {
		b = addr.As16()
	}
	for i := 0; i < len(b); i += 4 {
		words = append(words, binary.LittleEndian.Uint32(b[i:]))
	}
	return words
}

// HashWords returns the upper half of the SipHash-1-3 of words, each as four
// bytes, the lowest first. The 128-bit key is the seed and the seed with other
// bits flipped. Who does not know the seed cannot aim at a place.
// Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF", INDOCRYPT
// 2012; 1 and 3 rounds as in the hash tables of Python and Rust.
func HashWords(seed uint64, words []uint32) uint32 {
	return uint32(sipHash(seed, seed^0x9e3779b97f4a7c15, words) >> 32)
}

// sip is the state of SipHash.
type sip [4]uint64

func sipHash(k0, k1 uint64, words []uint32) uint64 {
	s := sip{k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d, k0 ^ 0x6c7967656e657261, k1 ^ 0x7465646279746573}
	last := uint64(len(words)) * 4 << 56
	for ; len(words) > 1; words = words[2:] {
		s.add(uint64(words[1])<<32 | uint64(words[0]))
	}
	if len(words) == 1 {
		last |= uint64(words[0])
	}
	s.add(last)
	s[2] ^= 0xff
	for range 3 {
		s.round()
	}
	return s[0] ^ s[1] ^ s[2] ^ s[3]
}

// add takes in eight bytes of the message.
func (s *sip) add(m uint64) {
	s[3] ^= m
	s.round()
	s[0] ^= m
}

func (s *sip) round() {
	s[0] += s[1]
	s[2] += s[3]
	s[1] = bits.RotateLeft64(s[1], 13) ^ s[0]
	s[3] = bits.RotateLeft64(s[3], 16) ^ s[2]
	s[0] = bits.RotateLeft64(s[0], 32)
	s[2] += s[1]
	s[0] += s[3]
	s[1] = bits.RotateLeft64(s[1], 17) ^ s[2]
	s[3] = bits.RotateLeft64(s[3], 21) ^ s[0]
	s[2] = bits.RotateLeft64(s[2], 32)
}
