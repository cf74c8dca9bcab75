// SPDX-License-Identifier: Apache-2.0

//go:build root

package cluster

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	followLimit = 5 * time.Second       // for a change to be seen by everybody
	pollTimeout = 50 * time.Millisecond // of a call while waiting for a change, or for no answer
	patience    = 2 * time.Second       // of a call that should be answered
	lookAgain   = 8                     // calls of everybody once it was seen
	perBackend  = 12                    // calls for each backend, so that rarely one is missed
)

// target is an address at which a Service is called.
type target struct {
	proto string // lab.TCP or lab.UDP
	to    netip.AddrPort
}

// caller is who calls and how.
type caller struct {
	host    string
	connect bool // also for UDP, which the socket programs treat differently
}

// callers are a process on each path to a Service: the socket programs see the
// first two hosts, the packet programs the others.
var callers = []caller{
	{"client1", true}, {"client1", false},
	{lab.Node, true}, {lab.Node, false},
	{"client2", true},
	{lab.Outside, true},
}

// targets are addr at every port of svc; port chooses one of the port's numbers.
func targets(svc *corev1.Service, port func(corev1.ServicePort) int32, addrs ...netip.Addr) []target {
	var ts []target
	for _, p := range svc.Spec.Ports {
		proto := lab.TCP
		if p.Protocol == corev1.ProtocolUDP {
			proto = lab.UDP
		}
		for _, a := range addrs {
			ts = append(ts, target{proto, netip.AddrPortFrom(a, uint16(port(p)))})
		}
	}
	return ts
}

func servicePort(p corev1.ServicePort) int32 { return p.Port }
func nodePort(p corev1.ServicePort) int32    { return p.NodePort }

// atCluster is svc at its cluster IPs.
func atCluster(svc *corev1.Service) []target {
	var addrs []netip.Addr
	for _, ip := range svc.Spec.ClusterIPs {
		addrs = append(addrs, netip.MustParseAddr(ip))
	}
	return targets(svc, servicePort, addrs...)
}

// atNode is svc at its node ports, on both addresses of the node.
func atNode(svc *corev1.Service) []target {
	return targets(svc, nodePort, lab.NodeAddr4, lab.NodeAddr6, lab.NodeSecond4, lab.NodeSecond6)
}

// want is what callers should meet.
type want struct {
	kind     lab.Kind // lab.OK, lab.Refused, lab.Timeout, also for unreachable, or empty for any but OK
	port     uint16   // of the backends
	backends []string // each of them has to answer, and no other may
}

func answers(backends ...string) want { return answersAt(podPort, backends...) }

func answersAt(port uint16, backends ...string) want { return want{lab.OK, port, backends} }

// refused is the answer of a Service without endpoints. At an address that is no
// Service's, nobody answers; at the node's own, the node refuses, but does not
// tell UDP sockets that are not connected. A cluster IP refuses at the ports that it has
// not; connected UDP sockets of the node are not told. closed is any of these.
var (
	refused = want{kind: lab.Refused}
	silent  = want{kind: lab.Timeout}
	closed  = want{}
)

// calls is how many calls it takes to see all of w.
func (w want) calls() int { return max(1, perBackend*len(w.backends)) }

// timeout is that of a call which should meet w.
func (w want) timeout() time.Duration {
	if w.kind == lab.OK || w.kind == lab.Refused {
		return patience
	}
	return pollTimeout
}

// allow returns an error unless r is one of the outcomes of w.
func (w want) allow(r lab.Result) error {
	if r.Kind == lab.Unreachable {
		r.Kind = lab.Timeout
	}
	switch {
	case w.kind == "" && r.Kind == lab.OK:
		return fmt.Errorf("%s answers, want no answer", r.Backend)
	case w.kind != "" && r.Kind != w.kind:
		return fmt.Errorf("got %s %s %s, want %s", r.Kind, r.Backend, r.Err, w.kind)
	case r.Kind == lab.OK && (!slices.Contains(w.backends, r.Backend) || r.ServerLocal.Port() != w.port):
		return fmt.Errorf("%s answers at %s, want %v at port %d", r.Backend, r.ServerLocal, w.backends, w.port)
	}
	return nil
}

// check returns an error unless rs are all of w.
func (w want) check(rs []lab.Result) error {
	seen := map[string]bool{}
	for _, r := range rs {
		if err := w.allow(r); err != nil {
			return err
		}
		if r.Kind == lab.OK {
			seen[r.Backend] = true
		}
	}
	if len(seen) != len(w.backends) {
		return fmt.Errorf("only %v answer, want %v", slices.Sorted(maps.Keys(seen)), w.backends)
	}
	return nil
}

// probe is one caller of one target.
type probe struct {
	caller
	target
	lab *lab.Lab
}

func (p probe) String() string {
	how := p.proto
	if p.proto == lab.UDP && !p.connect {
		how += ", unconnected,"
	}
	return fmt.Sprintf("%s from %s to %s", how, p.host, p.to)
}

// probes are all callers of all targets.
func (s *stage) probes(ts []target) []probe {
	var ps []probe
	for _, c := range callers {
		for _, t := range ts {
			if t.proto == lab.UDP || c.connect {
				ps = append(ps, probe{c, t, s.lab})
			}
		}
	}
	return ps
}

// dial calls n times.
func (p probe) dial(ctx context.Context, n int, timeout time.Duration) ([]lab.Result, error) {
	rs, err := p.lab.Host(p.host).DialMany(ctx, lab.Request{Proto: p.proto, To: p.to, Connected: p.connect, Timeout: timeout}, n)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	return rs, nil
}

// lastPort is the source port of the last fresh call. Ports from firstPort on are
// neither among those that the kernel gives to sockets nor among those that lbproxy
// masquerades with: a process of the node that takes one of the latter may meet a
// connection that has it.
var lastPort atomic.Uint32

const firstPort = 61000

// dialFresh calls n times, each time from a port that was not used before. A UDP
// socket with the port of an earlier one may go on where that one was.
func (p probe) dialFresh(ctx context.Context, n int) []lab.Result {
	source := netip.IPv4Unspecified()
	if p.to.Addr().Is6() {
		source = netip.IPv6Unspecified()
	}
	var rs []lab.Result
	for range n {
		from := netip.AddrPortFrom(source, uint16(firstPort+lastPort.Add(1)))
		rs = append(rs, p.lab.Host(p.host).Dial(ctx,
			lab.Request{Proto: p.proto, To: p.to, From: from, Connected: p.connect, Timeout: patience}))
	}
	return rs
}

// await polls until p meets w, and returns since when that was so: when the
// calls began that all met it.
func (p probe) await(ctx context.Context, w want, limit, timeout time.Duration) (at time.Time, err error) {
	err = poll(limit, func() error {
		at = time.Now()
		rs, err := p.dial(ctx, w.calls(), timeout)
		if err == nil {
			err = w.check(rs)
		}
		return err
	})
	if err != nil {
		return at, fmt.Errorf("%s: %w", p, err)
	}
	return at, nil
}

// holds fails unless p meets w without any exception.
func (p probe) holds(ctx context.Context, w want) error {
	n := lookAgain
	if w.timeout() < patience {
		n = 1
	}
	rs, err := p.dial(ctx, n, w.timeout())
	for _, r := range rs {
		if err == nil && w.allow(r) != nil {
			err = fmt.Errorf("%s, a moment later: %w", p, w.allow(r))
		}
	}
	return err
}

// expect is what every caller of some targets should meet after a change.
type expect struct {
	what string
	want
	at []target
}

// follow waits until everybody meets es, checks that it stays so, and logs how
// long after began that was: first for one caller who is almost alone with the
// machine, then for all at once.
func (s *stage) follow(t *testing.T, began time.Time, es ...expect) {
	t.Helper()
	s.followWithin(t, began, followLimit, es...)
}

func (s *stage) followWithin(t *testing.T, began time.Time, limit time.Duration, es ...expect) {
	t.Helper()
	first, all := make([]time.Time, len(es)), make([]time.Time, len(es))
	s.each(t, es, func(i int, e expect, ps []probe) { first[i] = e.await(t, ps[:1], limit, pollTimeout) })
	s.each(t, es, func(i int, e expect, ps []probe) { all[i] = e.await(t, ps, limit, e.timeout()) })
	s.each(t, es, func(_ int, e expect, ps []probe) {
		atOnce(ps, func(p probe) {
			if err := p.holds(t.Context(), e.want); err != nil {
				t.Errorf("%s: %v", e.what, err)
			}
		})
	})
	for i, e := range es {
		t.Logf("%-40s first caller after %4d ms, all %d after %4d ms", e.what,
			first[i].Sub(began).Milliseconds(), len(s.probes(e.at)), all[i].Sub(began).Milliseconds())
	}
}

// each calls f for all of es at once, with the probes of each, and ends the test
// if one of them failed.
func (s *stage) each(t *testing.T, es []expect, f func(int, expect, []probe)) {
	t.Helper()
	var wg sync.WaitGroup
	for i, e := range es {
		wg.Go(func() { f(i, e, s.probes(e.at)) })
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// await waits until all of ps meet e and returns since when that is so.
func (e expect) await(t *testing.T, ps []probe, limit, timeout time.Duration) (last time.Time) {
	t.Helper()
	var mu sync.Mutex
	atOnce(ps, func(p probe) {
		at, err := p.await(t.Context(), e.want, limit, timeout)
		if err != nil {
			t.Errorf("%s: not within %v: %v", e.what, limit, err)
		}
		mu.Lock()
		defer mu.Unlock()
		if at.After(last) {
			last = at
		}
	})
	return last
}

// atOnce calls f for all of ps.
func atOnce(ps []probe, f func(probe)) {
	var wg sync.WaitGroup
	for _, p := range ps {
		wg.Go(func() { f(p) })
	}
	wg.Wait()
}

// turns waits until every caller gets the n backends of svc in strict rotation.
func (s *stage) turns(t *testing.T, what string, began time.Time, n int, ts ...target) {
	t.Helper()
	ps := s.probes(ts)
	rotate := func(p probe) error {
		met := map[string]bool{}
		rs := p.dialFresh(t.Context(), 4*n)
		for i, r := range rs {
			met[r.Backend] = true
			if r.Kind != lab.OK || len(met) != min(i+1, n) || i >= n && r.Backend != rs[i-n].Backend {
				return fmt.Errorf("%s: call %d of %d got %s %s %s, want each of %d backends in turn",
					p, i, len(rs), r.Kind, r.Backend, r.Err, n)
			}
		}
		return nil
	}
	s.await(t, what, followLimit, func() error { return rotate(ps[0]) })
	took := time.Since(began)
	for _, p := range ps { // one after the other: they share the turns
		if err := rotate(p); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%-40s first caller after %4d ms", what, took.Milliseconds())
}
