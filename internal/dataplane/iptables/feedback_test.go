// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// loop is a feedback without a kernel.
type loop struct {
	*feedback
	t       *testing.T
	table   []flow // connection tracking
	id      uint32
	takes   time.Duration // reading it
	err     error
	reads   []string // which parts were read
	list    []loaded
	times   map[netip.AddrPort]time.Duration
	applied []map[poolKey][]float64
	fails   error
	log     bytes.Buffer
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func newLoop(t *testing.T, list ...loaded) *loop {
	l := &loop{t: t, list: list, times: map[netip.AddrPort]time.Duration{}}
	l.feedback = &feedback{
		list:    func() []loaded { return l.list },
		latency: func(a netip.AddrPort) time.Duration { return l.times[a] },
		apply: func(_ context.Context, shares map[poolKey][]float64) error {
			l.applied = append(l.applied, shares)
			return l.fails
		},
		log: slog.New(slog.NewTextHandler(&l.log, nil)), pools: map[poolKey]*poolLoad{},
		flows: func(f lb.Family, p lb.Proto, each func(flow)) error {
			<-time.After(l.takes)
			l.reads = append(l.reads, fmt.Sprint(f, "/", p))
			for _, fl := range l.table {
				if lb.FamilyOf(fl.frontend.Addr()) == f && fl.proto == p {
					each(fl)
				}
			}
			return l.err
		},
	}
	return l
}

// pool returns a pool of n backends at 10.244.N.1 and so on.
func pool(t *testing.T, n byte, algorithm string, backends int) loaded {
	t.Helper()
	p := loaded{
		name: lb.ServiceName{Object: lb.Object{Namespace: "ns", Name: fmt.Sprint("svc", n)}, Proto: lb.TCP, Family: lb.IPv4},
		frontends: []lb.FrontendKey{
			{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 0, n}), 80), Proto: lb.TCP},
			{Addr: netip.AddrPortFrom(lb.IPv4.Unspecified(), 30000+uint16(n)), Proto: lb.TCP},
		},
	}
	var ms []algo.Member
	for i := range backends {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, n, byte(i + 1)}), 8080)
		p.backends = append(p.backends, lb.Backend{Addr: addr, Weight: 100})
		ms = append(ms, algo.Member{ID: uint64(i + 1), Weight: 100})
	}
	var err error
	if p.table, err = algo.Build(algorithm, ms); err != nil {
		t.Fatal(err)
	}
	return p
}

// open adds count connections of a pool to backend i.
func (l *loop) open(p loaded, i, count int) {
	for range count {
		l.id += 0x9e3779b1 // ids are hashes
		l.table = append(l.table, flow{proto: lb.TCP, state: 3, natted: true, frontend: p.frontends[0].Addr, backend: p.backends[i].Addr, id: l.id})
	}
}

// step lets a second pass and returns what was applied.
func (l *loop) step() map[poolKey][]float64 {
	l.applied, l.reads = nil, nil
	<-time.After(time.Second)
	l.tick(l.t.Context())
	switch len(l.applied) {
	case 0:
		return nil
	case 1:
		return l.applied[0]
	}
	l.t.Errorf("applied %d times in one period", len(l.applied))
	return l.applied[0]
}

func (l *loop) expect(what string, got map[poolKey][]float64, want map[string][]float64) {
	l.t.Helper()
	ok := len(got) == len(want)
	for key, shares := range got {
		ok = ok && near(shares, want[key.name.Name], 1e-4)
	}
	if !ok {
		l.t.Errorf("%s: applied %v, want %v", what, got, want)
	}
}

// TestSharesFollowLoads: shares of those pools are applied that moved, and of no others.
func TestSharesFollowLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := pool(t, 1, "least-connection", 2), pool(t, 2, "power-of-two", 3), pool(t, 3, "least-time", 2)
		l := newLoop(t, a, b, c)
		third := 1. / 3
		l.expect("at first", l.step(), map[string][]float64{"svc1": {.5, .5}, "svc2": {third, third, third}, "svc3": {.5, .5}})
		if !slices.Equal(l.reads, []string{"IPv4/TCP"}) {
			t.Errorf("read %v, want IPv4/TCP once", l.reads)
		}
		l.expect("nothing happened", l.step(), nil)
		l.open(a, 0, 40)
		l.expect("all went to one", l.step(), map[string][]float64{"svc1": {0, 1}}) // 20 a second, on average
		l.expect("nothing new", l.step(), nil)
		l.times[c.backends[0].Addr], l.times[c.backends[1].Addr] = time.Millisecond, 3*time.Millisecond
		l.expect("latencies", l.step(), map[string][]float64{"svc3": {.75, .25}})
		l.open(a, 1, 40)
		got := l.step()
		l.expect("level again", got, map[string][]float64{"svc1": {.5, .5}})
		l.open(b, 2, 100)
		got = l.step()
		if shares := got[poolKey{name: b.name}]; len(got) != 1 || shares[2] > 0.01 || math.Abs(shares[0]-shares[1]) > tiny {
			t.Errorf("power-of-two with 100 connections at the last: applied %v", got)
		}
	})
}

// TestFew: a few loads more or less are no reason to send all to one.
func TestFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := pool(t, 1, "least-connection", 3)
		l := newLoop(t, a)
		l.open(a, 0, 1)
		l.open(a, 1, 1)
		l.expect("one connection less", l.step(), map[string][]float64{"svc1": {2. / 9, 2. / 9, 5. / 9}})
	})
}

// TestSharesKnown: of pools that were told anew or could not be written it is not known
// what the kernel has.
func TestSharesKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := pool(t, 1, "least-connection", 2)
		want := map[string][]float64{"svc1": {.5, .5}}
		l := newLoop(t, a)
		l.fails = errors.New("locked")
		l.expect("at first", l.step(), want)
		l.expect("it failed", l.step(), want)
		if got := strings.Count(l.log.String(), "locked"); got != 1 {
			t.Errorf("the error was logged %d times:\n%s", got, &l.log)
		}
		l.fails = nil
		l.expect("it failed again", l.step(), want)
		l.expect("it succeeded", l.step(), nil)
		l.list = []loaded{pool(t, 1, "least-connection", 2)}
		l.expect("the same again", l.step(), want)
		l.expect("and no more", l.step(), nil)
		there := l.list
		l.list = nil
		l.expect("it left", l.step(), nil)
		if len(l.reads) != 0 {
			t.Errorf("read %v for nobody", l.reads)
		}
		l.list = there
		l.expect("it came back", l.step(), want)
	})
}

// TestThreshold: 0.02, and in large pools a fifth of an equal share.
func TestThreshold(t *testing.T) {
	for _, tc := range []struct {
		members int
		by      float64
		want    bool
	}{{2, 0.019, false}, {2, 0.021, true}, {10, 0.019, false}, {10, 0.021, true}, {100, 0.0019, false}, {100, 0.0021, true}} {
		p, shares := &poolLoad{shares: make([]float64, tc.members)}, make([]float64, tc.members)
		shares[tc.members-1] = tc.by
		if got := p.moved(shares); got != tc.want {
			t.Errorf("one of %d moved by %v: %t", tc.members, tc.by, got)
		}
		shares[tc.members-1] = 0
		p.shares[tc.members-1] = tc.by
		if got := p.moved(shares); got != tc.want {
			t.Errorf("one of %d moved by %v: %t", tc.members, -tc.by, got)
		}
	}
}

// TestArrivals: connections that ended between two readings arrived all the same.
func TestArrivals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := pool(t, 1, "least-connection", 2)
		l := newLoop(t, a)
		l.open(a, 0, 60)
		rate := func() float64 { return l.pools[poolKey{name: a.name}].rate }
		l.step()
		if rate() != 0 {
			t.Errorf("at first %v connections a second: nobody knows when they came", rate())
		}
		l.open(a, 1, 80)
		for i := range l.table[60:] {
			l.table[60+i].state = tcpTimeWait
		}
		l.expect("80 came and went", l.step(), nil) // 60 live against 0, 40 expected
		if rate() != 40 {
			t.Errorf("%v a second, want an average of 40", rate())
		}
		l.expect("20 are expected", l.step(), nil)
		if rate() != 20 {
			t.Errorf("%v a second, want an average of 20", rate())
		}
		l.open(a, 1, 160)
		l.expect("90 are expected, 60 live against 160", l.step(), map[string][]float64{"svc1": {1, 0}})
		l.err = errors.New("no conntrack")
		l.expect("reading fails", l.step(), nil)
		if !strings.Contains(l.log.String(), "no conntrack") {
			t.Errorf("log %q", &l.log)
		}
		l.err = nil
		before := rate()
		l.open(a, 1, 1000)
		l.step()
		if rate() != before {
			t.Errorf("after a gap the rate went from %v to %v", before, rate())
		}
	})
}

// TestStretch: what takes long is done less often, and that is said once.
func TestStretch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLoop(t, pool(t, 1, "least-connection", 2))
		l.takes = 100 * time.Millisecond
		read := func(seconds int) (n int) {
			for range seconds {
				l.step()
				n += len(l.reads)
			}
			return n
		}
		if n := read(5); n != 5 || l.log.Len() > 0 {
			t.Errorf("read %d times in 5 s, want 5; log %q", n, &l.log)
		}
		l.takes = 350 * time.Millisecond
		if n := read(16); n != 4 {
			t.Errorf("a reading of 350 ms was made %d times in about 16 s, want 4", n)
		}
		if got := strings.Count(l.log.String(), "less often"); got != 1 {
			t.Errorf("that was logged %d times:\n%s", got, &l.log)
		}
	})
}

// TestCount: a flow counts for the Service whose frontend it came to.
func TestCount(t *testing.T) {
	a, b := pool(t, 1, "random", 2), pool(t, 2, "random", 1)
	local := a
	local.scope, local.backends = lb.ScopeLocal, a.backends[:1]
	udp := b
	udp.name.Proto = lb.UDP
	udp.frontends = []lb.FrontendKey{{Addr: b.frontends[0].Addr, Proto: lb.UDP}}
	v6 := b
	v6.name.Family, v6.frontends, v6.backends = lb.IPv6, []lb.FrontendKey{{Addr: ap("[fd00::1]:80"), Proto: lb.TCP}}, []lb.Backend{{Addr: ap("[fd01::1]:80")}}
	gone := ap("10.244.1.99:8080")
	node := func(p loaded) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), p.frontends[1].Addr.Port())
	}
	synctest.Test(t, func(t *testing.T) {
		l := newLoop(t)
		add := func(p lb.Proto, at, be netip.AddrPort, state uint8) {
			l.table = append(l.table, flow{proto: p, frontend: at, backend: be, state: state, natted: true})
		}
		add(lb.TCP, a.frontends[0].Addr, a.backends[0].Addr, 3)
		add(lb.TCP, a.frontends[0].Addr, a.backends[0].Addr, 1)
		add(lb.TCP, a.frontends[0].Addr, a.backends[0].Addr, 7)
		add(lb.TCP, a.frontends[0].Addr, gone, 3)
		add(lb.TCP, a.frontends[0].Addr, ap("10.244.1.98:8080"), 6)
		add(lb.TCP, node(a), a.backends[1].Addr, 5)
		add(lb.TCP, node(a), b.backends[0].Addr, 3) // somebody else's
		add(lb.TCP, b.frontends[0].Addr, a.backends[0].Addr, 3)
		add(lb.UDP, udp.frontends[0].Addr, udp.backends[0].Addr, 0)
		add(lb.TCP, v6.frontends[0].Addr, v6.backends[0].Addr, 3)
		add(lb.TCP, ap("10.96.0.77:80"), a.backends[0].Addr, 3)
		pools := func() []loaded { return []loaded{a, local, b, udp, v6} }
		want := func(what string, w map[lb.ServiceName]map[netip.AddrPort]uint64) {
			t.Helper()
			got, err := l.live(pools)
			flat := map[lb.ServiceName]map[netip.AddrPort]uint64{}
			for name, bs := range got {
				flat[name] = map[netip.AddrPort]uint64{}
				for addr, c := range bs {
					flat[name][addr] = c.live
				}
			}
			if err != nil || !maps.EqualFunc(flat, w, maps.Equal[map[netip.AddrPort]uint64, map[netip.AddrPort]uint64]) {
				t.Errorf("%s: live\n %v, error %v, want\n %v", what, flat, err, w)
			}
		}
		first := map[lb.ServiceName]map[netip.AddrPort]uint64{
			a.name:   {a.backends[0].Addr: 2, a.backends[1].Addr: 1, gone: 1},
			b.name:   {b.backends[0].Addr: 0, a.backends[0].Addr: 1},
			udp.name: {udp.backends[0].Addr: 1},
			v6.name:  {v6.backends[0].Addr: 1},
		}
		want("at first", first)
		if slices.Sort(l.reads); !slices.Equal(l.reads, []string{"IPv4/TCP", "IPv4/UDP", "IPv6/TCP"}) {
			t.Errorf("read %v", l.reads)
		}
		// A backend that left is still known at the node port.
		a.backends = a.backends[:1]
		l.table = l.table[5:]
		<-time.After(recent - 1)
		want("asked soon again", first)
		<-time.After(1)
		want("asked later", map[lb.ServiceName]map[netip.AddrPort]uint64{
			a.name:   {local.backends[0].Addr: 0, ap("10.244.1.2:8080"): 1, gone: 0},
			b.name:   {b.backends[0].Addr: 0, local.backends[0].Addr: 1},
			udp.name: {udp.backends[0].Addr: 1},
			v6.name:  {v6.backends[0].Addr: 1},
		})
		l.err = errors.New("no conntrack")
		<-time.After(recent)
		if _, err := l.live(pools); !errors.Is(err, l.err) {
			t.Errorf("error %v, want %v", err, l.err)
		}
	})
}

// TestLiveOf: loads that tick has read are read by nobody else.
func TestLiveOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pool(t, 1, "least-connection", 1), pool(t, 2, "random", 1)
		l := newLoop(t, a)
		l.open(a, 0, 3)
		l.open(b, 0, 2)
		l.step()
		for _, tc := range []struct {
			p     loaded
			live  uint64
			reads int
		}{{a, 3, 0}, {b, 2, 1}, {b, 2, 0}} {
			l.reads = nil
			got, err := l.liveOf(tc.p.name, func() []loaded { return []loaded{a, b} })
			if err != nil || got[tc.p.backends[0].Addr].live != tc.live || len(l.reads) != tc.reads {
				t.Errorf("%s: %v, error %v, after %d readings, want %d after %d", tc.p.name, got, err, len(l.reads), tc.live, tc.reads)
			}
		}
	})
}

// TestSeen: the set of entries grows with their number and forgets after one reading.
func TestSeen(t *testing.T) {
	var s seen
	for round, size := range []int{100, 200000, 200000, 10} {
		set := s.next()
		fresh := 0
		for i := range size {
			if set.add(uint32(i) * 0x9e3779b1) {
				fresh++
			}
		}
		want := []int{0, 199900, 0, 0}[round]
		if fresh > want || fresh < want*15/16 {
			t.Errorf("reading %d of %d: %d are fresh, want %d or a little less", round, size, fresh, want)
		}
	}
	set := s.next()
	if set.add(7) != true || set.add(0x9e3779b1) != false {
		t.Error("what was not there at the last reading is not fresh, or what was there is")
	}
}

// TestSeenForgets: what was there three readings ago is fresh.
func TestSeenForgets(t *testing.T) {
	var s seen
	for round, id := range []uint32{1, 2, 3, 1} {
		if got, want := s.next().add(id), round > 0; got != want {
			t.Errorf("reading %d: %d is fresh: %t, want %t", round, id, got, want)
		}
	}
}
