// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"net/netip"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

const (
	thinkPort = 8085
	think     = 60 * time.Millisecond
)

// thinker answers each connection's first bytes after a while, in a host of the lab.
func (r *rig) thinker(host string) {
	r.t.Helper()
	l := r.listener(host)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer c.Close()
				var buf [16]byte
				if _, err := c.Read(buf[:]); err == nil {
					<-time.After(think)
					_, _ = c.Write([]byte("thought")) // the client may have gone
					_, _ = c.Read(buf[:])
				}
			}()
		}
	}()
}

// TestLatency measures each signal through sockets and through packets, with a
// server that acknowledges a request at once and answers it later: only the first
// byte and the last one are late.
func TestLatency(t *testing.T) {
	r := newRig(t, nil)
	r.thinker("backend1")
	bs := r.pods(lb.IPv4, "backend1")
	bs[0].Addr = netip.AddrPortFrom(bs[0].Addr.Addr(), thinkPort)
	for _, tc := range []struct {
		signal    lb.Signal
		low, high time.Duration
	}{
		{lb.SignalConnect, time.Microsecond, think - 10*time.Millisecond},
		{lb.SignalFirstByte, think, 10 * think},
		{lb.SignalLastByte, think, 10 * think},
	} {
		for _, hooked := range []bool{true, false} {
			svc := r.svc("web", lb.IPv4, lb.TCP, "least-time", bs, frontend(lb.ClusterIP, lb.TCP, endsVIP, lb.MasqueradeOffCluster))
			svc.Balance = lb.Balance{Algorithm: "least-time", Signal: tc.signal}
			r.sync(dataplane.Delta{Full: true})
			r.eventually("the last case is forgotten", func() bool { return len(r.dp.backendsInUse()) == 0 })
			r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc}})
			host := map[bool]string{true: "client1", false: "client2"}[hooked]
			c := r.startClient(host, "speak", endsVIP, 8)
			c.ready()
			c.next()
			c.kill()
			s, err := r.dp.Stats()
			if err != nil {
				t.Fatal(err)
			}
			got := s.Backends[0]
			t.Logf("%s from %s: %v, %d opened", tc.signal, host, got.Latency, got.Opened)
			if got.Latency < tc.low || got.Latency > tc.high || got.Opened != 8 {
				t.Errorf("%s from %s: latency %v of %d connections, want %v to %v of 8", tc.signal, host, got.Latency, got.Opened, tc.low, tc.high)
			}
		}
	}
}
