package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func serverKey(proto string, addr netip.AddrPort) string { return proto + " " + addr.String() }

func (h *helper) serve(proto string, addr netip.AddrPort) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := serverKey(proto, addr)
	if h.servers[key] != nil {
		return fmt.Errorf("serve %s: already served", key)
	}
	var server io.Closer
	var err error
	switch proto {
	case TCP: // package net takes a wildcard of either family for both
		server, err = serveTCP(addr, h.echoTCP)
	case Quiet:
		server, err = serveTCP(addr, echoQuiet)
	case UDP:
		server, err = h.serveUDP(addr)
	default:
		err = errors.New("unknown protocol")
	}
	if err != nil {
		return fmt.Errorf("serve %s: %w", key, err)
	}
	h.servers[key] = server
	return nil
}

func (h *helper) stop(proto string, addr netip.AddrPort) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := serverKey(proto, addr)
	server := h.servers[key]
	if server == nil {
		return fmt.Errorf("stop %s: not served", key)
	}
	delete(h.servers, key)
	if err := server.Close(); err != nil {
		return fmt.Errorf("stop %s: %w", key, err)
	}
	return nil
}

func serveTCP(addr netip.AddrPort, answer func(*net.TCPConn)) (io.Closer, error) {
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go answer(c.(*net.TCPConn))
			}
		}
	}()
	return l, nil
}

// echoTCP ends with the client; what goes wrong is the client's to see.
func (h *helper) echoTCP(c *net.TCPConn) {
	defer c.Close()
	client, local := c.RemoteAddr().(*net.TCPAddr).AddrPort(), c.LocalAddr().(*net.TCPAddr).AddrPort()
	if _, err := io.WriteString(c, banner(h.host, client, local)); err != nil {
		return
	}
	_, _ = io.Copy(c, c)
}

func echoQuiet(c *net.TCPConn) {
	defer c.Close()
	_, _ = io.Copy(c, c)
}

// serveUDP answers from the address that was asked, also on a wildcard socket.
func (h *helper) serveUDP(addr netip.AddrPort) (io.Closer, error) {
	a, err := net.ResolveUDPAddr("udp", addr.String())
	if err != nil {
		return nil, err
	}
	c, err := net.ListenUDP("udp", a)
	if err != nil {
		return nil, err
	}
	wildcard := addr.Addr().IsUnspecified()
	if wildcard {
		err = setPktinfo(c)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	go h.echoUDP(c, wildcard)
	return c, nil
}

func setPktinfo(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("pktinfo: %w", err)
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
	})
	if err = errors.Join(err, serr); err != nil {
		return fmt.Errorf("pktinfo: %w", err)
	}
	return nil
}

func (h *helper) echoUDP(c *net.UDPConn, wildcard bool) {
	buf, oob := make([]byte, maxDatagram), make([]byte, 256)
	local := c.LocalAddr().(*net.UDPAddr).AddrPort()
	for {
		n, oobn, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an earlier answer
		}
		to, source := local, []byte(nil)
		if wildcard {
			dst, ok := destination(oob[:oobn])
			if !ok {
				continue
			}
			to, source = netip.AddrPortFrom(dst, local.Port()), pktinfo(dst)
		}
		msg := append([]byte(banner(h.host, from, to)), buf[:n]...)
		_, _, _ = c.WriteMsgUDPAddrPort(msg, source, from)
	}
}

// destination is the address a datagram was sent to.
func destination(oob []byte) (netip.Addr, bool) {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}, false
	}
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 16 {
			return netip.AddrFrom16([16]byte(m.Data[:16])), true
		}
	}
	return netip.Addr{}, false
}

// pktinfo is the control message that sets a datagram's source address; the
// interface stays 0, so that routing chooses it.
func pktinfo(src netip.Addr) []byte {
	b := make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	head := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	head.Level, head.Type = unix.SOL_IPV6, unix.IPV6_PKTINFO
	head.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
	a := src.As16()
	copy(b[unix.CmsgLen(0):], a[:])
	return b
}
