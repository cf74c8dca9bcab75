// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"net/netip"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestReserve reserves every other port that connections are masqueraded with: no
// connection gets one, whatever sweeps, until they are free again.
func TestReserve(t *testing.T) {
	r := newRig(t, nil)
	r.serveVIPs(lb.TCP, "backend1")
	backend := netip.AddrPortFrom(r.lab.Host("backend1").Addr4, backendPort)
	to := netip.MustParseAddrPort(vips[lb.IPv4])
	odd := func() (n int) {
		t.Helper()
		for range 30 {
			res := r.lab.Host("client2").Dial(t.Context(), lab.Request{Proto: lab.TCP, To: to})
			if res.Kind != lab.OK {
				t.Fatalf("dial: %s %s", res.Kind, res.Err)
			}
			n += int(res.Seen.Port() % 2)
		}
		return n
	}
	res := r.lab.Host("client2").Dial(t.Context(), lab.Request{Proto: lab.TCP, To: to})
	var taken []dataplane.Flow
	for port := 1025; port < 1<<16; port += 2 {
		taken = append(taken, dataplane.Flow{Proto: lb.TCP, Client: netip.AddrPortFrom(res.Seen.Addr(), uint16(port)), Backend: backend})
	}
	for range 2 {
		if err := r.dp.Reserve(taken, nil); err != nil {
			t.Fatal(err)
		}
		if err := r.dp.Sweep(); err != nil {
			t.Fatal(err)
		}
		if n := odd(); n > 0 {
			t.Errorf("%d of 30 connections got a port that is reserved", n)
		}
	}
	before := r.dp.Writes()
	if err := r.dp.Reserve(taken, nil); err != nil || r.dp.Writes() != before {
		t.Errorf("reserved again: %d writes, %v, want none", r.dp.Writes()-before, err)
	}
	if err := r.dp.Reserve(nil, nil); err != nil {
		t.Fatal(err)
	}
	if n := odd(); n == 0 {
		t.Error("of 30 connections none got a port that is free again")
	}
}

// TestReservePlain: a client's port that netfilter leads to a backend is not used towards
// the same backend by a connection of lbproxy's.
func TestReservePlain(t *testing.T) {
	r := newRig(t, nil)
	r.serveVIPs(lb.TCP, "backend1")
	for f, vip := range vips {
		client := r.lab.Host("client2").Addrs()[familyIndex(f.Unspecified())]
		from := netip.AddrPortFrom(client, 40123)
		backend := netip.AddrPortFrom(r.lab.Host("backend1").Addrs()[familyIndex(f.Unspecified())], backendPort)
		d := dataplane.Delta{Put: []*dataplane.Service{r.svc("plain", f, lb.TCP, "round-robin", r.pods(f, "backend1"),
			frontend(lb.LoadBalancer, lb.TCP, vip, lb.MasqueradeNever))}, Delete: []lb.ServiceName{r.svc("web", f, lb.TCP, "random", nil).Name}}
		r.sync(d)
		for _, reserved := range []bool{true, false} {
			var plain []dataplane.Flow
			if reserved {
				plain = append(plain, dataplane.Flow{Proto: lb.TCP, Client: from, Backend: backend})
			}
			if err := r.dp.Reserve(nil, plain); err != nil {
				t.Fatal(err)
			}
			res := r.lab.Host("client2").Dial(t.Context(), lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(vip), From: from})
			if res.Kind != lab.OK {
				t.Fatalf("%s: dial: %s %s", f, res.Kind, res.Err)
			}
			if moved := res.Seen.Port() != from.Port(); res.Seen.Addr() != client || moved != reserved {
				t.Errorf("%s, reserved %v: the backend sees %s, of %s", f, reserved, res.Seen, from)
			}
			from = netip.AddrPortFrom(client, from.Port()+1) // the first one is remembered
		}
	}
}
