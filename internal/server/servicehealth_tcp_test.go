// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestClientsAreNotWaitedForForEver: neither one that says nothing, nor one that was
// answered.
func TestClientsAreNotWaitedForForEver(t *testing.T) {
	inCheckRig(t, lb.NodePortAddresses{}, func(r *checkRig) {
		r.put(web, lb.HealthCheck{Port: 30001, Served: v4only, Ready: [2]int{1, 0}})
		r.listens("tcp4 0.0.0.0:30001")
		connect := func() net.Conn {
			here, there := net.Pipe()
			r.listeners.open["tcp4 0.0.0.0:30001"].conns <- there
			return here
		}
		silent, begin := connect(), time.Now()
		if _, err := io.ReadAll(silent); err != nil || time.Since(begin) != headTimeout {
			t.Errorf("a client that says nothing was let go after %v (%v), want %v", time.Since(begin), err, headTimeout)
		}
		idle := connect()
		if _, err := io.WriteString(idle, "GET / HTTP/1.1\r\nHost: node\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		begin = time.Now()
		answer, err := io.ReadAll(idle)
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 ") || time.Since(begin) != idleTimeout {
			t.Errorf("an idle client was let go after %v (%v, %q), want %v", time.Since(begin), err, answer, idleTimeout)
		}
	})
}

// TestHealthCheckOverTCP asks a real listener, and finds it closed afterwards.
func TestHealthCheckOverTCP(t *testing.T) {
	ln, addr := occupied(t)
	asked := make(chan string, 1)
	h := NewServiceHealth(ServiceHealthOptions{
		Healthy: func() bool { return true }, Log: slog.New(slog.DiscardHandler),
		Addrs: lb.NodePortAddresses{Ranges: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}},
		Listen: func(_ context.Context, network, addr string) (net.Listener, error) {
			asked <- network + " " + addr
			return ln, nil
		},
	})
	h.Set(map[lb.Object]lb.HealthCheck{web: {Port: 30001, Served: v4only, Ready: [2]int{2, 9}}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- h.Run(ctx) }()
	if got, want := <-asked, "tcp4 127.0.0.1:30001"; got != want {
		t.Errorf("listens at %s, want %s", got, want)
	}
	resp, err := http.Get("http://" + addr.String() + "/anything")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if want := `"localEndpoints":2,`; err != nil || resp.StatusCode != 200 || !strings.Contains(string(body), want) ||
		resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("got %d %q %v, %v", resp.StatusCode, body, resp.Header, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if conn, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is open after the end: %v, %v", conn, err)
	}
}

// TestHealthCheckListensByItself: without Listen, ports of the kernel are bound.
func TestHealthCheckListensByItself(t *testing.T) {
	_, addr := occupied(t)
	told := make(chan string, 1)
	h := NewServiceHealth(ServiceHealthOptions{
		Healthy: func() bool { return true }, Log: slog.New(slog.DiscardHandler), Reporter: reporter(told),
		Addrs: lb.NodePortAddresses{Ranges: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}},
	})
	h.Set(map[lb.Object]lb.HealthCheck{web: {Port: addr.Port(), Served: v4only}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- h.Run(ctx) }()
	if got := <-told; !strings.Contains(got, addr.String()) || !strings.Contains(got, "address already in use") {
		t.Errorf("told %q, want that %v is taken", got, addr)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// reporter passes on messages.
type reporter chan string

func (r reporter) ServiceEvent(_ lb.Object, _, _, message string) { r <- message }
