// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// diagSocket is a socket as the kernel's sock_diag knows it. Addresses are never
// v4-mapped: an AF_INET6 socket that talks IPv4 is looked up as one of IPv4.
type diagSocket struct {
	proto       uint8
	local, peer netip.AddrPort
	device      uint32 // that it is bound to, or 0
	cookie      uint64
}

// String says which socket it is.
func (s diagSocket) String() string {
	return fmt.Sprintf("%s %s -> %s", lb.Proto(s.proto), s.local, s.peer)
}

// anyCookie stands for every socket.
const anyCookie = 1<<64 - 1

// diagRequest is struct inet_diag_req_v2 of the kernel.
type diagRequest struct {
	family uint8
	states uint32 // a bit for each
	socket diagSocket
}

const (
	diagRequestLen = 56 // bytes of struct inet_diag_req_v2
	diagMessageLen = 72 // bytes of struct inet_diag_msg
	diagStates     = 4  // offset in the request
	diagID         = 8  // offset of struct inet_diag_sockid in the request; 4 in the message
)

// Len implements nl.NetlinkRequestData.
func (r *diagRequest) Len() int { return diagRequestLen }

// Serialize implements nl.NetlinkRequestData.
func (r *diagRequest) Serialize() []byte {
	b := make([]byte, diagRequestLen)
	b[0], b[1] = r.family, r.socket.proto
	binary.NativeEndian.PutUint32(b[diagStates:], r.states)
	id, s := b[diagID:], &r.socket
	binary.BigEndian.PutUint16(id[0:], s.local.Port())
	binary.BigEndian.PutUint16(id[2:], s.peer.Port())
	copy(id[4:20], s.local.Addr().AsSlice())
	copy(id[20:36], s.peer.Addr().AsSlice())
	binary.NativeEndian.PutUint32(id[36:], s.device)
	binary.NativeEndian.PutUint32(id[40:], uint32(s.cookie))
	binary.NativeEndian.PutUint32(id[44:], uint32(s.cookie>>32))
	return b
}

// parseDiag reads struct inet_diag_msg.
func parseDiag(b []byte, proto uint8) (s diagSocket, err error) {
	if len(b) < diagMessageLen {
		return s, fmt.Errorf("sock_diag message of %d bytes: want %d", len(b), diagMessageLen)
	}
	size := 16
	if b[0] == unix.AF_INET {
		size = 4
	}
	id := b[4:]
	end := func(port, addr int) netip.AddrPort {
		a, _ := netip.AddrFromSlice(id[addr : addr+size]) // cannot fail for 4 and 16 bytes
		return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(id[port:]))
	}
	return diagSocket{
		proto:  proto,
		local:  end(0, 4),
		peer:   end(2, 20),
		device: binary.NativeEndian.Uint32(id[36:]),
		cookie: uint64(binary.NativeEndian.Uint32(id[44:]))<<32 | uint64(binary.NativeEndian.Uint32(id[40:])),
	}, nil
}

// sockDiag talks to the kernel about the sockets of one network namespace.
type sockDiag struct{ sockets map[int]*nl.SocketHandle }

// openDiag talks about the namespace of the calling thread.
func openDiag() (*sockDiag, error) {
	s, err := nl.Subscribe(unix.NETLINK_INET_DIAG)
	if err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	d := &sockDiag{map[int]*nl.SocketHandle{unix.NETLINK_INET_DIAG: {Socket: s}}}
	if err := s.SetReceiveTimeout(&nl.SocketTimeoutTv); err != nil {
		d.close()
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	return d, nil
}

func (d *sockDiag) close() { d.sockets[unix.NETLINK_INET_DIAG].Close() }

func (d *sockDiag) ask(verb, flags int, r *diagRequest) ([][]byte, error) {
	req := nl.NewNetlinkRequest(verb, flags)
	req.Sockets = d.sockets
	req.AddData(r)
	return req.Execute(unix.NETLINK_INET_DIAG, 0)
}

// destroy ends a socket: its process gets ECONNABORTED, and a TCP peer a reset. It
// returns ENOENT if there is no such socket.
func (d *sockDiag) destroy(s diagSocket) error {
	family := uint8(unix.AF_INET)
	if lb.FamilyOf(s.local.Addr()) == lb.IPv6 {
		family = unix.AF_INET6
	}
	_, err := d.ask(nl.SOCK_DESTROY, unix.NLM_F_ACK, &diagRequest{family: family, socket: s})
	return err
}

// connectedUDP returns the connected UDP sockets whose peer has the given port; 0 is any.
func (d *sockDiag) connectedUDP(port uint16) (found []diagSocket, err error) {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		msgs, err := dump(func() ([][]byte, error) {
			return d.ask(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP, &diagRequest{
				family: family,
				states: 1 << tcpEstablished,
				socket: diagSocket{
					proto:  unix.IPPROTO_UDP,
					peer:   netip.AddrPortFrom(netip.Addr{}, port),
					cookie: anyCookie,
				},
			})
		})
		if err != nil {
			return nil, fmt.Errorf("list UDP sockets: %w", err)
		}
		for _, m := range msgs {
			s, err := parseDiag(m, unix.IPPROTO_UDP)
			if err != nil {
				return nil, err
			}
			found = append(found, s)
		}
	}
	return found, nil
}

// tcpEstablished is the state of a connected socket, of UDP too.
const tcpEstablished = 1

// destroyHere ends sockets of the calling thread's network namespace. It returns how many
// it ended, and an error that names the last one that stays. One that does not exist any
// more may stay as well: if several sockets have the same ends the kernel finds but one.
func destroyHere(socks []diagSocket) (n int, kept error) {
	d, err := openDiag()
	if err != nil {
		return 0, err
	}
	defer d.close()
	for _, s := range socks {
		if err := d.destroy(s); err != nil {
			kept = fmt.Errorf("destroy %s: %w", s, err)
			continue
		}
		n++
	}
	return n, kept
}

// probeDestroy finds out, with two sockets of its own, whether the kernel destroys
// sockets. Where they cannot be made, nothing speaks against it.
func probeDestroy() error {
	d, err := openDiag()
	if err != nil {
		return err
	}
	defer d.close()
	for _, p := range []struct {
		proto uint8
		kind  int
	}{{unix.IPPROTO_UDP, unix.SOCK_DGRAM}, {unix.IPPROTO_TCP, unix.SOCK_STREAM}} {
		local, done, err := probeSocket(p.kind)
		if err != nil {
			continue
		}
		err = d.destroy(diagSocket{
			proto:  p.proto,
			local:  local,
			peer:   netip.AddrPortFrom(netip.IPv4Unspecified(), 0),
			cookie: anyCookie,
		})
		done()
		if err != nil {
			return fmt.Errorf("destroy a socket of %s: %w", lb.Proto(p.proto), err)
		}
	}
	return nil
}

// probeSocket makes a socket that can be destroyed, at a loopback address.
func probeSocket(kind int) (_ netip.AddrPort, done func(), err error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return netip.AddrPort{}, nil, err
	}
	done = func() { unix.Close(fd) }
	err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, 1)
	}
	var sa unix.Sockaddr
	if err == nil {
		sa, err = unix.Getsockname(fd)
	}
	if err != nil {
		done()
		return netip.AddrPort{}, nil, err
	}
	in := sa.(*unix.SockaddrInet4) // as it was made
	return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port)), done, nil
}
