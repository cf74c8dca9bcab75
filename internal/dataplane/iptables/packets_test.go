// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/dataplane/labtest"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestEarlyUDP has clients that send before there is a Service, or an endpoint of it:
// their sockets are answered as soon as there is one.
func TestEarlyUDP(t *testing.T) {
	r := newRig(t, labtest.New(t), "nft", nil)
	for _, first := range []string{"no Service", "no endpoints"} {
		r.sync(dataplane.Delta{Full: true})
		if first == "no endpoints" {
			r.sync(dataplane.Delta{Put: r.web(lb.UDP)})
		}
		early := map[string]*lab.UDPSocket{}
		for _, from := range []string{"client1", lab.Outside, lab.Node} {
			for _, to := range []string{vip4, vip6, node4} {
				s, err := r.Lab.Host(from).OpenUDP(t.Context(), lab.Request{To: netip.MustParseAddrPort(to), Timeout: labtest.Patience})
				if err != nil {
					t.Fatal(err)
				}
				early[from+" "+to] = s
				ctx, cancel := context.WithTimeout(t.Context(), labtest.Silence/4)
				if res := s.Exchange(ctx, netip.MustParseAddrPort(to), nil); res.Kind == lab.OK {
					t.Fatalf("%s: %s answered %s", first, res.Backend, from)
				}
				cancel()
			}
		}
		r.sync(dataplane.Delta{Put: r.web(lb.UDP, "backend1", "remote1")})
		for name, s := range early {
			_, to, _ := strings.Cut(name, " ")
			if res := s.Exchange(t.Context(), netip.MustParseAddrPort(to), nil); res.Kind != lab.OK {
				t.Errorf("%s, then endpoints: %s: %s %s", first, name, res.Kind, res.Err)
			}
			if err := s.Close(context.Background()); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestSCTP sends packets of an association both ways through a VIP with another port than
// the backend's, and ends it when the backend is gone.
func TestSCTP(t *testing.T) {
	r := newRig(t, labtest.New(t), "nft", nil)
	const port, clientPort = 9899, 40404
	for f, at := range map[lb.Family]string{lb.IPv4: vip4, lb.IPv6: vip6} {
		vip := netip.MustParseAddrPort(at)
		serve := func(host string) {
			bs := r.pods(f, host)
			bs[0].Addr = netip.AddrPortFrom(bs[0].Addr.Addr(), port)
			r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{r.svc("sctp", lb.SCTP, "random", bs, at)}})
		}
		for i, from := range []string{"client1", lab.Outside} {
			client := labtest.OpenSCTP(t, r.Lab.Host(from), f)
			for _, host := range []string{"backend1", "backend2"} { // the second time the association moves
				serve(host)
				server := labtest.OpenSCTP(t, r.Lab.Host(host), f)
				for _, p := range []labtest.SCTPPacket{
					{Chunk: labtest.ChunkInit, Size: 16}, {Chunk: labtest.ChunkData, Size: 1203},
				} {
					p.Sport, p.Dport = uint16(clientPort+i), vip.Port()
					client.Send(vip.Addr(), p)
					got, src, ok := server.Receive()
					if !ok || got.Dport != port || got.Chunk != p.Chunk || got.Size != p.Size {
						t.Fatalf("%s from %s: %s got %+v (%t), want %+v at port %d", f, from, host, got, ok, p, port)
					}
					reply := labtest.SCTPPacket{Sport: port, Dport: got.Sport, Chunk: labtest.ChunkInitAck, Size: p.Size + 4}
					server.Send(src, reply)
					back, peer, ok := client.Receive()
					if !ok || peer != vip.Addr() || back.Sport != vip.Port() || back.Dport != p.Sport || back.Size != reply.Size {
						t.Fatalf("%s from %s: answer %+v from %s (%t), want %+v from %s", f, from, back, peer, ok, reply, vip)
					}
				}
			}
		}
	}
}

// marks are seen behind everything that lbproxy does to a packet.
const marks = `table inet marks {
	chain before { type filter hook prerouting priority -200; meta mark set meta mark or 0x10011; }
	chain after { type filter hook postrouting priority 400; meta l4proto { tcp, udp } meta mark and 0x10011 != 0x10011 counter name lost; meta mark and 0x4000 != 0 counter name leaked; meta mark and 0x10011 == 0x10011 counter name kept; }
	counter lost { }
	counter leaked { }
	counter kept { }
}
`

// TestMarks has somebody else set bits of the mark: they stay, and lbproxy's own bit is
// gone when packets leave. FORWARD drops by default: what is masqueraded passes.
func TestMarks(t *testing.T) {
	n := labtest.New(t)
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			r := newRig(t, n, backend, nil)
			r.sync(dataplane.Delta{Full: true, Put: append(r.web(lb.TCP, "backend1"), r.web(lb.UDP, "backend2")...)})
			file := r.file("marks", marks)
			r.output("nft", "-f", file)
			t.Cleanup(func() { r.output("nft", "delete", "table", "inet", "marks") })
			for _, program := range []string{"iptables-" + backend, "ip6tables-" + backend} {
				r.output(program, "-w", "-P", "FORWARD", "DROP")
				t.Cleanup(func() { r.output(program, "-w", "-P", "FORWARD", "ACCEPT") })
			}
			for _, proto := range []string{lab.TCP, lab.UDP} {
				for _, to := range []string{vip4, vip6, node4, node6} {
					r.answered("with a FORWARD chain that drops", lab.Outside, proto, to)
				}
			}
			for counter, want := range map[string]bool{"lost": false, "leaked": false, "kept": true} {
				text := r.output("nft", "list", "counter", "inet", "marks", counter)
				if any := !strings.Contains(text, "packets 0 "); any != want {
					t.Errorf("counter %s: some packets %t, want %t: %s", counter, any, want, text)
				}
			}
		})
	}
}
