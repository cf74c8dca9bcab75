// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// serve answers until ctx ends and then for drain more, as a well-behaved pod does: its
// endpoint leaves the Service meanwhile.
func serve(ctx context.Context, addr string, drain time.Duration) error {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	datagrams, err := net.ListenPacket("udp", addr)
	if err != nil {
		return errors.Join(fmt.Errorf("serve: %w", err), listener.Close())
	}
	done := make(chan error, 2)
	go func() { done <- serveTCP(listener) }()
	go func() { done <- serveUDP(datagrams) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(drain):
		return nil
	}
}

func serveTCP(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("serve: %w", err)
		}
		go func() {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}()
	}
}

func serveUDP(c net.PacketConn) error {
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("serve: %w", err)
		}
		if _, err := c.WriteTo(buf[:n], from); err != nil {
			return fmt.Errorf("serve: %w", err)
		}
	}
}
