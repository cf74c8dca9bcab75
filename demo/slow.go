// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// serveSlowly starts a server like lab's on h, which waits before its first byte
// of each connection. It ends with ctx.
func serveSlowly(ctx context.Context, h *lab.Host, port uint16, delay time.Duration) error {
	var l net.Listener
	err := h.Do(func() (err error) { // the socket stays in the pod, whoever accepts
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		return fmt.Errorf("serve slowly in %s: %w", h.Name, err)
	}
	context.AfterFunc(ctx, func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go answerSlowly(h.Name, c, delay)
			}
		}
	}()
	return nil
}

// answerSlowly ends with the client.
func answerSlowly(name string, c net.Conn, delay time.Duration) {
	defer c.Close()
	time.Sleep(delay)
	if _, err := fmt.Fprintf(c, "%s %s %s\n", name, unmapped(c.RemoteAddr()), unmapped(c.LocalAddr())); err != nil {
		return
	}
	_, _ = io.Copy(c, c)
}

// unmapped is a TCP address without the form that IPv4 has in IPv6.
func unmapped(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
