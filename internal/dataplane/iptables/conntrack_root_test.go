// SPDX-License-Identifier: Apache-2.0

//go:build root

package iptables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// inNamespace runs f in a new network namespace, which ends with its thread.
func inNamespace(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// made is an entry that a test makes. Without to its destination is not rewritten.
type made struct {
	proto            lb.Proto
	client, frontend netip.AddrPort
	to               netip.AddrPort
	state            uint8
	zone             uint16
}

func (m made) String() string {
	return fmt.Sprintf("%s %s > %s > %s state %d zone %d", m.proto, m.client, m.frontend, m.backend(), m.state, m.zone)
}

func (m made) backend() netip.AddrPort {
	if m.to.IsValid() {
		return m.to
	}
	return m.frontend
}

// message is what asks the kernel to make the entry.
func (m made) message() []byte {
	const natDst, natPort = 13, 3
	attrs := [][]byte{
		tupleAttr(nl.CTA_TUPLE_ORIG, m.proto, m.client, m.frontend),
		tupleAttr(nl.CTA_TUPLE_REPLY, m.proto, m.frontend, m.client),
		attribute(nil, nl.CTA_TIMEOUT, be32(3600)),
		attribute(nil, nl.CTA_STATUS, be32(statusReplied|1<<2|1<<3)),
	}
	if m.to.IsValid() {
		lowest, highest := 1, 2
		if m.to.Addr().Is6() {
			lowest, highest = 4, 5
		}
		ip, port := m.to.Addr().AsSlice(), be16(m.to.Port())
		attrs = append(attrs, nested(natDst, attribute(nil, lowest, ip), attribute(nil, highest, ip),
			nested(natPort, attribute(nil, 1, port), attribute(nil, 2, port))))
	}
	if m.proto == lb.TCP {
		attrs = append(attrs, nested(nl.CTA_PROTOINFO, nested(nl.CTA_PROTOINFO_TCP, attribute(nil, nl.CTA_PROTOINFO_TCP_STATE, []byte{m.state}))))
	}
	if m.proto == lb.SCTP {
		attrs = append(attrs, nested(nl.CTA_PROTOINFO, nested(nl.CTA_PROTOINFO_SCTP,
			attribute(nil, 1, []byte{4}), attribute(nil, 2, be32(1)), attribute(nil, 3, be32(2)))))
	}
	if m.zone != 0 {
		attrs = append(attrs, attribute(nil, nl.CTA_ZONE, be16(m.zone)))
	}
	return slices.Concat(attrs...)
}

// makeEntries makes entries in the namespace of the calling thread.
func makeEntries(list []made) error {
	c, err := openConntrack()
	if err != nil {
		return err
	}
	defer c.close()
	for _, m := range list {
		f := lb.FamilyOf(m.client.Addr())
		if err := c.send(nl.IPCTNL_MSG_CT_NEW, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, f, m.message()); err != nil {
			return err
		}
		if err := c.receive(func([]byte) {}); err != nil {
			return fmt.Errorf("make %v: %w", m, err)
		}
	}
	return nil
}

// entries returns what q finds, as made writes it.
func entries(c *conntrack, q query) (map[string]int, error) {
	found := map[string]int{}
	err := c.dump(q, func(e *entry) error {
		var zone uint16
		if len(e.zone) >= 6 {
			zone = binary.BigEndian.Uint16(e.zone[4:])
		}
		found[made{e.proto, e.client, e.frontend, e.backend, e.state, zone}.String()]++
		return nil
	})
	return found, err
}

func client(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), uint16(20000+i%1000))
}

// TestFilters: whatever the kernel filters by itself, the entries are the same, and the
// kernel of this machine does filter.
func TestFilters(t *testing.T) {
	vip, other, pod := ap("10.96.0.1:80"), ap("10.96.0.2:81"), ap("10.244.0.1:8080")
	all := []made{
		{proto: lb.TCP, client: client(1), frontend: vip, to: pod, state: 3},
		{proto: lb.TCP, client: client(2), frontend: vip, state: 3},
		{proto: lb.TCP, client: client(3), frontend: other, to: pod, state: 1},
		{proto: lb.TCP, client: client(3), frontend: ap("10.96.0.1:81"), to: pod, state: 1},
		{proto: lb.UDP, client: client(4), frontend: vip, to: pod},
		{proto: lb.SCTP, client: client(5), frontend: vip, to: pod},
		{proto: lb.TCP, client: ap("[fd00::9]:900"), frontend: ap("[fd00::1]:80"), to: ap("[fd01::1]:81"), state: 3},
		{proto: lb.UDP, client: ap("[fd00::9]:900"), frontend: ap("[fd00::1]:80")},
	}
	inNamespace(t, func() error {
		if err := makeEntries(all); err != nil {
			return err
		}
		for _, q := range []query{
			{family: lb.IPv4}, {family: lb.IPv6}, {family: lb.IPv4, proto: lb.TCP}, {family: lb.IPv6, proto: lb.UDP},
			{family: lb.IPv4, proto: lb.TCP, addr: vip.Addr()}, {family: lb.IPv4, proto: lb.TCP, port: 81},
			{family: lb.IPv4, addr: vip.Addr()}, {family: lb.IPv4, proto: lb.TCP, addr: vip.Addr(), port: 80, status: statusDNAT},
			{family: lb.IPv4, status: statusDNAT}, {family: lb.IPv6, status: statusDNAT}, {family: lb.IPv6, addr: netip.MustParseAddr("fd00::1"), proto: lb.TCP},
			{family: lb.IPv4, proto: lb.SCTP, port: 80},
		} {
			want := map[string]int{}
			for _, m := range all {
				e := entry{flow: flow{proto: m.proto, frontend: m.frontend}}
				if m.to.IsValid() {
					e.status = statusDNAT
				}
				if lb.FamilyOf(m.client.Addr()) == q.family && q.matches(&e) {
					want[m.String()]++
				}
			}
			for _, unfiltered := range []bool{false, true} {
				c, err := openConntrack()
				if err != nil {
					return err
				}
				c.unfiltered = unfiltered
				got, err := entries(c, q)
				if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("%+v, unfiltered %t: entries\n %v, error %v, want\n %v", q, unfiltered, got, err, want)
				}
				if c.unfiltered != unfiltered {
					t.Errorf("%+v: the kernel refuses the filter", q)
				}
				if q.addr.Is6() {
					c.close()
					continue
				}
				sent := 0
				if err := c.send(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, q.family, q.filter()); err != nil {
					return err
				}
				if err := c.receive(func([]byte) { sent++ }); err != nil || sent != len(want) {
					t.Errorf("%+v: the kernel sent %d entries, error %v, want %d", q, sent, err, len(want))
				}
				c.close()
			}
		}
		return nil
	})
}

// scene is guilty entries among innocent ones.
type scene struct {
	list             []served
	guilty, innocent []made
}

const crowd = 300 // innocent entries of each kind

func newScene() *scene {
	vip, other := ap("10.96.0.1:53"), ap("10.96.0.9:53")
	node, foreign := ap("10.0.0.1:30053"), ap("192.0.2.7:30053")
	gone, kept, alien := ap("10.244.0.1:53"), ap("10.244.0.2:53"), ap("10.244.0.3:53")
	s := &scene{}
	for _, p := range []lb.Proto{lb.UDP, lb.SCTP, lb.TCP} {
		s.list = append(s.list, served{
			proto: p, keep: map[netip.AddrPort]bool{kept: true},
			frontends: []lb.FrontendKey{{Addr: vip, Proto: p}, {Addr: ap("0.0.0.0:30053"), Proto: p}},
		})
	}
	// Another Service, deleted, and one of the other family.
	s.list = append(s.list,
		served{proto: lb.UDP, frontends: []lb.FrontendKey{{Addr: ap("10.96.0.3:99"), Proto: lb.UDP}}},
		served{proto: lb.TCP, reset: true, frontends: []lb.FrontendKey{{Addr: ap("10.96.0.4:80"), Proto: lb.TCP}}, keep: map[netip.AddrPort]bool{kept: true}},
		served{proto: lb.UDP, frontends: []lb.FrontendKey{{Addr: ap("[fd00::1]:53"), Proto: lb.UDP}}})
	none := netip.AddrPort{}
	n := 0
	next := func() netip.AddrPort { n++; return client(n) } // no two entries may get the same answers
	for _, p := range []lb.Proto{lb.UDP, lb.SCTP, lb.TCP} {
		syn := uint8(0)
		if p == lb.TCP {
			syn = tcpSynSent
		}
		for _, at := range []netip.AddrPort{vip, node, ap("127.0.0.1:30053")} {
			for _, to := range []netip.AddrPort{gone, alien, none} {
				s.guilty = append(s.guilty, made{p, next(), at, to, syn, 0})
			}
			s.guilty = append(s.guilty, made{p, next(), at, gone, syn, 7})
		}
		for range crowd {
			s.innocent = append(s.innocent,
				made{p, next(), vip, kept, syn, 0}, made{p, next(), node, kept, syn, 0}, // what is kept
				made{p, next(), other, gone, syn, 0},              // the same backend of another Service
				made{p, next(), ap("10.96.0.1:54"), gone, syn, 0}, // another port of the address
				made{p, next(), foreign, gone, syn, 0},            // the node port's number elsewhere
				made{p, next(), foreign, none, syn, 0},
				made{p, next(), gone, none, syn, 0}, // the backend itself
				made{p, vip, next(), none, syn, 0})  // the other way around
		}
	}
	deleted, resets := ap("10.96.0.3:99"), ap("10.96.0.4:80")
	s.guilty = append(s.guilty, made{lb.UDP, next(), deleted, kept, 0, 0}, made{lb.UDP, next(), deleted, none, 0, 0},
		made{lb.TCP, next(), resets, gone, 3, 0}, made{lb.TCP, next(), resets, gone, 2, 0},
		made{lb.TCP, next(), resets, gone, 5, 0}, made{lb.TCP, next(), resets, none, 1, 0})
	for i := range crowd {
		s.innocent = append(s.innocent,
			made{lb.TCP, next(), vip, gone, 3, 7}, made{lb.TCP, next(), node, gone, 2, 7}, made{lb.TCP, next(), ap("127.0.0.1:30053"), none, 3, 0},
			made{lb.TCP, next(), resets, kept, 3, 0},  // not gone, so not reset
			made{lb.TCP, next(), deleted, gone, 1, 0}, // another protocol
			made{lb.UDP, ap(fmt.Sprintf("[fd00::9]:%d", 1000+i)), ap("[fd00::1]:53"), ap("[fd01::1]:53"), 0, 0})
	}
	// Never balanced, so nobody's to reset.
	s.innocent = append(s.innocent, made{lb.TCP, next(), resets, none, 3, 0})
	return s
}

// TestEndStale: exactly the guilty go, however the kernel filters.
func TestEndStale(t *testing.T) {
	inNamespace(t, func() error {
		s := newScene()
		if err := makeEntries(append(slices.Clone(s.guilty), s.innocent...)); err != nil {
			return err
		}
		asked := 0
		ended, err := endStale(t.Context(), lb.IPv4, s.list, func() ([]netip.Addr, error) {
			asked++
			return []netip.Addr{netip.MustParseAddr("10.0.0.1")}, nil
		})
		if err != nil || ended != len(s.guilty) {
			t.Errorf("%d entries ended, error %v, want %d", ended, err, len(s.guilty))
		}
		c, err := openConntrack()
		if err != nil {
			return err
		}
		defer c.close()
		got := map[string]int{}
		for _, f := range []lb.Family{lb.IPv4, lb.IPv6} {
			found, err := entries(c, query{family: f})
			if err != nil {
				return err
			}
			for k, n := range found {
				got[k] += n
			}
		}
		t.Logf("%d guilty of %d, %d are left", len(s.guilty), len(s.guilty)+len(s.innocent), len(got))
		for _, m := range s.guilty {
			if got[m.String()] > 0 {
				t.Errorf("guilty, and still there: %v", m)
			}
		}
		for _, m := range s.innocent {
			if got[m.String()] != 1 {
				t.Errorf("innocent, and there %d times: %v", got[m.String()], m)
			}
		}
		if len(got) != len(s.innocent) {
			t.Errorf("%d entries are left, want %d", len(got), len(s.innocent))
		}
		ended, err = endStale(t.Context(), lb.IPv4, s.list, func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("10.0.0.1")}, nil })
		if err != nil || ended != 0 {
			t.Errorf("the second time %d entries ended, error %v", ended, err)
		}
		return nil
	})
}

// TestDeleteSuccessor: an entry that took the place of another one stays.
func TestDeleteSuccessor(t *testing.T) {
	m := made{lb.UDP, client(1), ap("10.96.0.1:53"), ap("10.244.0.1:53"), 0, 0}
	left := map[string]int{}
	inNamespace(t, func() error {
		if err := makeEntries([]made{m}); err != nil {
			return err
		}
		reader, err := openConntrack()
		if err != nil {
			return err
		}
		defer reader.close()
		writer, err := openConntrack()
		if err != nil {
			return err
		}
		defer writer.close()
		err = reader.dump(query{family: lb.IPv4}, func(e *entry) error {
			for i, want := range []bool{true, false} { // the second time it is gone
				if gone, err := writer.delete(lb.IPv4, e); gone != want || err != nil {
					t.Errorf("delete %d: %t, %v, want %t", i, gone, err, want)
				}
			}
			// One with another backend, and one through another frontend.
			other, through := m, m
			other.to, through.frontend = ap("10.244.0.2:53"), ap("10.96.0.2:53")
			if err := makeEntries([]made{other, through}); err != nil {
				return err
			}
			left[other.String()], left[through.String()] = 1, 1
			if gone, err := writer.delete(lb.IPv4, e); gone || err != nil {
				t.Errorf("its successor: deleted %t, error %v", gone, err)
			}
			if _, err := writer.delete(lb.IPv4, &entry{}); err == nil {
				t.Error("an entry without addresses was deleted: that is all of them")
			}
			return errStop
		})
		if !errors.Is(err, errStop) {
			return err
		}
		got, err := entries(reader, query{family: lb.IPv4}) // what the stopped dump left is skipped
		if !maps.Equal(got, left) {
			t.Errorf("there are %v, want %v", got, left)
		}
		return err
	})
}

var errStop = errors.New("stop")

// TestEndStaleErrors: nothing happens without the node's addresses, or any more when
// the context is done.
func TestEndStaleErrors(t *testing.T) {
	inNamespace(t, func() error {
		m := made{lb.UDP, client(1), ap("10.96.0.1:53"), ap("10.244.0.1:53"), 0, 0}
		if err := makeEntries([]made{m}); err != nil {
			return err
		}
		list := []served{{proto: lb.UDP, frontends: []lb.FrontendKey{{Addr: m.frontend, Proto: lb.UDP}, {Addr: ap("0.0.0.0:30000"), Proto: lb.UDP}}}}
		addrs := func() ([]netip.Addr, error) { return nil, errStop }
		if n, err := endStale(t.Context(), lb.IPv4, list, addrs); n != 0 || !errors.Is(err, errStop) {
			t.Errorf("without addresses: %d, %v", n, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		list[0].frontends = list[0].frontends[:1]
		if n, err := endStale(ctx, lb.IPv4, list, addrs); n != 0 || !errors.Is(err, context.Canceled) {
			t.Errorf("when the context is done: %d, %v", n, err)
		}
		if n, err := endStale(t.Context(), lb.IPv4, list, addrs); n != 1 || err != nil {
			t.Errorf("then: %d, %v, want 1", n, err)
		}
		return nil
	})
}

// BenchmarkDump reads a table of 100,000 entries, of which one in ten is asked for.
func BenchmarkDump(b *testing.B) {
	const size = 100000
	inNamespace(b, func() error {
		list := make([]made, size)
		for i := range list {
			m := made{lb.TCP, netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), uint16(20000+i>>16)), ap("10.96.0.1:80"), ap("10.244.0.1:80"), 3, 0}
			if i%10 != 0 {
				m.proto, m.to = lb.UDP, netip.AddrPort{}
			}
			list[i] = m
		}
		if err := makeEntries(list); err != nil {
			return err
		}
		for name, run := range map[string]struct {
			q          query
			unfiltered bool
		}{
			"filtered":   {query{family: lb.IPv4, proto: lb.TCP, status: statusDNAT}, false},
			"unfiltered": {query{family: lb.IPv4, proto: lb.TCP, status: statusDNAT}, true},
			"all":        {query{family: lb.IPv4}, false},
		} {
			c, err := openConntrack()
			if err != nil {
				return err
			}
			c.unfiltered = run.unfiltered
			b.Run(name, func(b *testing.B) {
				b.ReportAllocs()
				found := 0
				for b.Loop() {
					if err := c.dump(run.q, func(*entry) error { found++; return nil }); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/size, "ns/entry")
				b.ReportMetric(float64(found)/float64(b.N), "found")
			})
			c.close()
		}
		return nil
	})
}
