// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// message is one of netlink's.
func message(kind uint16, payload ...byte) []byte {
	b := make([]byte, nlHeader, nlHeader+len(payload)+3)
	binary.NativeEndian.PutUint32(b, uint32(nlHeader+len(payload)))
	binary.NativeEndian.PutUint16(b[4:], nfSubsysTables<<8|kind)
	b = append(b, payload...)
	return append(b, make([]byte, -len(b)&3)...)
}

func TestNetfilterRead(t *testing.T) {
	const newRule = 6
	first, second := netip.MustParseAddr("10.200.0.7"), netip.MustParseAddr("10.200.10.200")
	d := &netfilter{pending: map[netip.Addr]bool{first: true, second: true}, got: map[netip.Addr]time.Time{}}
	seen := map[netip.Addr]bool{}
	for _, tc := range []struct {
		name string
		data []byte
		want []netip.Addr
	}{
		{"a rule with an address is not committed", message(newRule, 1, 2, 10, 200, 0, 7, 9), nil},
		{"the end of the transaction", message(nfMsgNewGen), []netip.Addr{first}},
		{"a transaction with nothing in it", message(nfMsgNewGen), nil},
		{"another's address", slices.Concat(message(newRule, 10, 200, 0, 8), message(nfMsgNewGen)), nil},
		{"an address that looks like two, in one datagram", slices.Concat(
			message(newRule, 10, 200, 10, 200), message(newRule, 5), message(nfMsgNewGen)), []netip.Addr{second}},
		{"half a message", slices.Clip(message(newRule, 10, 200, 10, 200)[:nlHeader+2]), nil},
		{"a bare header", message(newRule)[:8], nil},
		{"a message without length", make([]byte, nlHeader), nil},
		{"another transaction has no part of the one before", message(nfMsgNewGen), nil},
		{"an address that begins in what looks like one", slices.Concat(
			message(newRule, 10, 200, 9, 10, 200, 0, 7), message(nfMsgNewGen)), []netip.Addr{first}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d.expect(0, first)
			d.expect(0, second)
			d.read(tc.data, seen)
			got, err := d.arrived()
			if err != nil {
				t.Fatal(err)
			}
			addrs := slices.SortedFunc(maps.Keys(got), netip.Addr.Compare)
			if !slices.Equal(addrs, tc.want) {
				t.Errorf("got %v, want %v", addrs, tc.want)
			}
		})
	}
}

// TestChange: each change puts one address that nobody had in the place of one.
func TestChange(t *testing.T) {
	w, err := newWorld(scale{services: 3, endpoints: 250}, false)
	if err != nil {
		t.Fatal(err)
	}
	addrs := func() map[string]bool {
		set := map[string]bool{}
		for _, slices := range w.slices {
			for _, sl := range slices {
				for _, ep := range sl.Endpoints {
					set[ep.Addresses[0]] = true
				}
			}
		}
		return set
	}
	before := addrs()
	if len(before) != 750 || len(w.slices[2]) != 3 || len(w.slices[2][2].Endpoints) != 50 {
		t.Fatalf("%d addresses, %d slices of svc-2, the last with %d endpoints; want 750, 3, 50",
			len(before), len(w.slices[2]), len(w.slices[2][2].Endpoints))
	}
	for n := range 300 {
		_, addr := w.change(n%3, n%3)
		after := addrs()
		if before[addr.String()] || !after[addr.String()] || len(after) != 750 {
			t.Fatalf("change %d to %s: there before %v, after %v, %d addresses", n, addr,
				before[addr.String()], after[addr.String()], len(after))
		}
		if b := addr.As4(); [2]byte(b[:2]) != newPrefix {
			t.Fatalf("change %d: %s is not in the range that netfilter looks for", n, addr)
		}
		before = after
	}
}

func TestQuantile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	for _, tc := range []struct {
		sorted  []float64
		q, want float64
	}{
		{nil, 0.5, 0}, {[]float64{7}, 0.99, 7}, {[]float64{1, 2, 3}, 0.5, 2}, {hundred, 0.5, 50}, {hundred, 0.99, 99}, {hundred, 1, 100},
	} {
		if got := quantile(tc.sorted, tc.q); got != tc.want {
			t.Errorf("quantile(%d numbers, %v) = %v, want %v", len(tc.sorted), tc.q, got, tc.want)
		}
	}
}

func TestJudge(t *testing.T) {
	big, small, one := scale{10_000, 10}, scale{1000, 10}, scale{1, 5000}
	for _, tc := range []struct {
		row       string
		at        scale
		of        float64
		have      bool
		text, met string
	}{
		{rowP50, big, 0.3, true, "<= 0.3 ms", "yes"},
		{rowP50, big, 0.31, true, "<= 0.3 ms", "no"},
		{rowP50, one, 0.9, true, "<= 1 ms", "yes"},
		{rowRSS, big, 121, true, "<= 120 MB", "no"},
		{rowRSS, small, 121, true, "", ""},
		{rowWrites, one, 0, true, "0", "yes"},
		{rowWrites, one, 1, true, "0", "no"},
		{rowWrites, one, 0, false, "0", "?"},
	} {
		text, met := judge(tc.row, tc.at, value{Of: tc.of}, tc.have)
		if text != tc.text || met != tc.met {
			t.Errorf("judge(%s, %s, %v): got %q %q, want %q %q", tc.row, tc.at, tc.of, text, met, tc.text, tc.met)
		}
	}
}

func TestValueString(t *testing.T) {
	for _, tc := range []struct {
		v    value
		want string
	}{
		{value{Of: 0.3004, Unit: "ms", N: 300}, "0.300 ms (300)"},
		{value{Of: 12.345, Unit: "s"}, "12.3 s"},
		{value{Of: 1.5}, "1.50"},
		{value{Of: 31000, Unit: "ms", N: 5, More: true}, "> 31000 ms (5)"},
		{value{Of: 12345.6, Unit: "MB"}, "12346 MB"},
		{value{}, "0"},
	} {
		if got := tc.v.String(true); got != tc.want {
			t.Errorf("%+v: got %q, want %q", tc.v, got, tc.want)
		}
	}
	if got := (value{Of: 1}).String(false); got != "-" {
		t.Errorf("nothing: got %q", got)
	}
}
