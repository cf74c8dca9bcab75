// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// Chunks of SCTP; see RFC 9260, 3.2.
const (
	ChunkData    = 0
	ChunkInit    = 1
	ChunkInitAck = 2
	ChunkAbort   = 6
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// SCTPPacket is a common header, and one chunk of Size bytes. Unsummed has no checksum:
// the device is to compute it, over a field that is 0.
type SCTPPacket struct {
	Sport, Dport uint16
	Chunk        byte
	Size         int
	Unsummed     bool
}

func (p SCTPPacket) bytes() []byte {
	b := make([]byte, 12+4+p.Size)
	binary.BigEndian.PutUint16(b, p.Sport)
	binary.BigEndian.PutUint16(b[2:], p.Dport)
	if p.Chunk != ChunkInit { // which has no verification tag, but an initiate tag
		binary.BigEndian.PutUint32(b[4:], 0x00070e15) // the first bytes of each chunk, so that of both sides
	}
	b[12] = p.Chunk
	binary.BigEndian.PutUint16(b[14:], uint16(4+p.Size))
	for i := range p.Size {
		b[16+i] = byte(i * 7)
	}
	if !p.Unsummed {
		binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
	}
	return b
}

// parseSCTP reads what bytes wrote; the error tells of a wrong checksum.
func parseSCTP(b []byte) (p SCTPPacket, err error) {
	if len(b) < 16 {
		return p, fmt.Errorf("packet of %d bytes", len(b))
	}
	sum := binary.LittleEndian.Uint32(b[8:])
	binary.LittleEndian.PutUint32(b[8:], 0)
	p = SCTPPacket{
		Sport: binary.BigEndian.Uint16(b), Dport: binary.BigEndian.Uint16(b[2:]),
		Chunk: b[12], Size: len(b) - 16, Unsummed: sum == 0,
	}
	if want := crc32.Checksum(b, castagnoli); sum != 0 && sum != want {
		return p, fmt.Errorf("checksum %#x, want %#x", sum, want)
	}
	return p, nil
}

// RawSCTP is a raw socket in a host: this kernel may have no SCTP of its own.
type RawSCTP struct {
	t  *testing.T
	fd int
}

// OpenSCTP makes a raw socket, which ends with t.
func OpenSCTP(t *testing.T, host *lab.Host, f lb.Family) *RawSCTP {
	t.Helper()
	s := &RawSCTP{t: t}
	family := unix.AF_INET
	if f == lb.IPv6 {
		family = unix.AF_INET6
	}
	err := host.Do(func() (err error) {
		s.fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		return err
	})
	if err == nil {
		err = unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(s.fd) })
	return s
}

// Send sends a packet.
func (s *RawSCTP) Send(to netip.Addr, p SCTPPacket) {
	s.t.Helper()
	var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: to.As16()}
	if to.Is4() {
		sa = &unix.SockaddrInet4{Addr: to.As4()}
	}
	if err := unix.Sendto(s.fd, p.bytes(), 0, sa); err != nil {
		s.t.Fatal(err)
	}
}

// Receive returns the next packet and its source; ok is false when none comes.
func (s *RawSCTP) Receive() (p SCTPPacket, from netip.Addr, ok bool) {
	s.t.Helper()
	b := make([]byte, 1<<16)
	n, sa, err := unix.Recvfrom(s.fd, b, 0)
	if err != nil {
		return p, from, false
	}
	b = b[:n]
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		from = netip.AddrFrom4(sa.Addr)
		b = b[int(b[0]&0xf)*4:]
	case *unix.SockaddrInet6:
		from = netip.AddrFrom16(sa.Addr)
	}
	if p, err = parseSCTP(b); err != nil {
		s.t.Errorf("from %s: %v", from, err)
	}
	return p, from, true
}
