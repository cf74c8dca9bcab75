// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// messages are what Linux 6.18 says of entries, after the netlink header.
var messages = map[string]string{
	// A client's UDP flow to 10.96.0.1:53, answered by 10.244.0.1:1053.
	"udp": "02000000 34000180 14000180 08000100 ac100001 08000200 0a600001 1c000280 05000100 11000000 06000200 4e210000 06000300 00350000" +
		"34000280 14000180 08000100 0af40001 08000200 ac100001 1c000280 05000100 11000000 06000200 041d0000 06000300 4e210000" +
		"08000300 000001ae 08000700 00000e10 08000c00 12345678",
	// A TCP connection in state SYN_SENT that was not rewritten, in zone 7.
	"tcp": "02000000 34000180 14000180 08000100 ac100001 08000200 0a600001 1c000280 05000100 06000000 06000200 4e210000 06000300 00500000" +
		"34000280 14000180 08000100 0a600001 08000200 ac100001 1c000280 05000100 06000000 06000200 00500000 06000300 4e210000" +
		"08000300 00000008 10000480 0c000180 05000100 01000000 08000c00 00000001 06001200 00070000",
}

func message(t testing.TB, name string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(messages[name], " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParse(t *testing.T) {
	client, vip := ap("172.16.0.1:20001"), ap("10.96.0.1:80")
	for name, want := range map[string]flow{
		"udp": {proto: lb.UDP, natted: true, replied: true, client: client, frontend: ap("10.96.0.1:53"), backend: ap("10.244.0.1:1053"), id: 0x12345678},
		"tcp": {proto: lb.TCP, state: tcpSynSent, client: client, frontend: vip, backend: vip, id: 1},
	} {
		msg := message(t, name)
		var e entry
		if !e.parse(msg) || e.flow != want {
			t.Errorf("%s: %+v, want %+v", name, e.flow, want)
		}
		if len(e.reply) != 0x34 || len(e.ident) != 8 || (len(e.zone) == 8) != (name == "tcp") {
			t.Errorf("%s: attributes of %d, %d and %d bytes", name, len(e.reply), len(e.ident), len(e.zone))
		}
		if n := testing.AllocsPerRun(10, func() { e.parse(msg) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
		for size := range msg { // cut anywhere
			e.parse(msg[:size])
		}
		if e.parse(msg[:4]) || e.parse(msg[:4+0x34]) {
			t.Errorf("%s: a message without all addresses is an entry", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	for name := range messages {
		f.Add(message(f, name))
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		var e entry
		if e.parse(msg) && (!e.client.IsValid() || !e.backend.IsValid()) {
			t.Errorf("%+v is an entry", e)
		}
	})
}

// TestEnded: both sides have closed, or there was a reset.
func TestEnded(t *testing.T) {
	for state := range uint8(12) {
		want := state == 6 || state == 7 || state == 8
		for _, p := range []lb.Proto{lb.TCP, lb.UDP} {
			f := flow{proto: p, state: state}
			if got := f.ended(); got != (want && p == lb.TCP) {
				t.Errorf("%s in state %d: ended %t", p, state, got)
			}
		}
	}
}

// TestOneKeeps: what one of a list keeps is kept, and what one resets is reset.
func TestOneKeeps(t *testing.T) {
	vip, a, b := lb.FrontendKey{Addr: ap("10.96.0.1:80"), Proto: lb.TCP}, ap("10.244.0.1:80"), ap("10.244.0.2:80")
	rules, err := newStaleRules(lb.IPv4, lb.TCP, []served{
		{proto: lb.TCP, frontends: []lb.FrontendKey{vip}, reset: true},
		{proto: lb.TCP, frontends: []lb.FrontendKey{vip}, keep: map[netip.AddrPort]bool{a: true}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for backend, want := range map[netip.AddrPort]bool{a: false, b: true} {
		if got := rules.stale(&flow{proto: lb.TCP, state: 3, natted: true, frontend: vip.Addr, backend: backend}); got != want {
			t.Errorf("to %s: stale %t, want %t", backend, got, want)
		}
	}
	for _, p := range []lb.Proto{lb.UDP, lb.SCTP} {
		if rules, err := newStaleRules(lb.IPv4, p, []served{{proto: lb.TCP, frontends: []lb.FrontendKey{vip}}}, nil); rules != nil || err != nil {
			t.Errorf("rules of %s: %v, %v", p, rules, err)
		}
	}
}

// TestNarrow: the kernel filters by what all frontends have.
func TestNarrow(t *testing.T) {
	key := func(s string) lb.FrontendKey { return lb.FrontendKey{Addr: ap(s), Proto: lb.UDP} }
	for _, tc := range []struct {
		frontends []lb.FrontendKey
		addr      string
		port      uint16
	}{
		{[]lb.FrontendKey{key("10.96.0.1:53")}, "10.96.0.1", 53},
		{[]lb.FrontendKey{key("10.96.0.1:53"), key("10.96.0.2:53")}, "invalid IP", 53},
		{[]lb.FrontendKey{key("10.96.0.1:53"), key("10.96.0.1:54")}, "10.96.0.1", 0},
		{[]lb.FrontendKey{key("10.96.0.1:53"), key("0.0.0.0:53")}, "invalid IP", 53},
		{[]lb.FrontendKey{key("10.96.0.1:53"), key("0.0.0.0:30053")}, "invalid IP", 0},
		{[]lb.FrontendKey{key("0.0.0.0:30053")}, "invalid IP", 30053},
	} {
		rules, err := newStaleRules(lb.IPv4, lb.UDP, []served{{proto: lb.UDP, frontends: tc.frontends}}, func() ([]netip.Addr, error) { return nil, nil })
		if err != nil || rules.query.addr.String() != tc.addr || rules.query.port != tc.port || rules.query.proto != lb.UDP {
			t.Errorf("%v: query %+v, error %v, want %s and %d", tc.frontends, rules.query, err, tc.addr, tc.port)
		}
	}
}
