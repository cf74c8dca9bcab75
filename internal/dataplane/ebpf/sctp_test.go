// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestSCTP sends packets of an association both ways through a VIP with another port
// than the backend's, from a pod and, masqueraded, from outside.
func TestSCTP(t *testing.T) {
	r := newRig(t, nil)
	const vipPort, port, clientPort = 3868, 9899, 40404
	for f, at := range vips {
		vip := netip.AddrPortFrom(netip.MustParseAddrPort(at).Addr(), vipPort)
		bs := r.pods(f, "backend1")
		bs[0].Addr = netip.AddrPortFrom(bs[0].Addr.Addr(), port)
		r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{r.svc("web", f, lb.SCTP, "random", bs,
			frontend(lb.LoadBalancer, lb.SCTP, vip.String(), lb.MasqueradeAlways))}})
		server := labtest.OpenSCTP(t, r.lab.Host("backend1"), f)
		for _, from := range []string{"client2", lab.Outside} {
			client := labtest.OpenSCTP(t, r.lab.Host(from), f)
			var seen uint16
			for _, p := range []labtest.SCTPPacket{
				{Chunk: labtest.ChunkInit, Size: 16}, {Chunk: labtest.ChunkData, Size: 1}, {Chunk: labtest.ChunkData, Size: 1203},
				{Chunk: labtest.ChunkData, Size: 20, Unsummed: true}, {Chunk: labtest.ChunkAbort},
			} {
				p.Sport, p.Dport = clientPort, vipPort
				client.Send(vip.Addr(), p)
				got, src, ok := server.Receive()
				if !ok || got.Dport != port || got.Chunk != p.Chunk || got.Size != p.Size || got.Unsummed != p.Unsummed {
					t.Fatalf("%s from %s: backend got %+v (%t), want %+v at port %d", f, from, got, ok, p, port)
				}
				if seen != 0 && got.Sport != seen {
					t.Errorf("%s from %s: source port %d, then %d", f, from, seen, got.Sport)
				}
				seen = got.Sport
				reply := labtest.SCTPPacket{Sport: port, Dport: got.Sport, Chunk: labtest.ChunkInitAck, Size: p.Size + 3}
				server.Send(src, reply)
				back, peer, ok := client.Receive()
				if !ok || peer != vip.Addr() || back.Sport != vipPort || back.Dport != clientPort || back.Size != reply.Size {
					t.Fatalf("%s from %s: answer %+v from %s (%t), want %+v from %s", f, from, back, peer, ok, reply, vip)
				}
			}
		}
		opened, closed, _ := r.totals()
		if opened == 0 || opened != closed {
			t.Errorf("%s: opened %d, closed %d after both associations were aborted", f, opened, closed)
		}
	}
}

// TestSCTPRefused sends to a Service without endpoints.
func TestSCTPRefused(t *testing.T) {
	r := newRig(t, nil)
	vip := netip.MustParseAddrPort(vips[lb.IPv4])
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{r.svc("web", lb.IPv4, lb.SCTP, "random", nil,
		frontend(lb.LoadBalancer, lb.SCTP, vip.String(), lb.MasqueradeAlways))}})
	var conn net.PacketConn
	if err := r.lab.Host(lab.Outside).Do(func() (err error) {
		conn, err = net.ListenPacket("ip4:icmp", "0.0.0.0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	labtest.OpenSCTP(t, r.lab.Host(lab.Outside), lb.IPv4).Send(vip.Addr(), labtest.SCTPPacket{Sport: 40404, Dport: vip.Port(), Chunk: labtest.ChunkInit, Size: 16})
	b := make([]byte, 1500)
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	n, from, err := conn.ReadFrom(b)
	if err != nil || n < 2 || b[0] != 3 || b[1] != 3 || from.String() != vip.Addr().String() {
		t.Errorf("answer % x from %v, %v: want ICMP port unreachable from %s", b[:min(n, 8)], from, err, vip.Addr())
	}
}
