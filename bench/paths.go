// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"
)

// arm is one way to reach a server.
type arm struct {
	name   string
	place  *place
	client string
	vip    bool // through the cluster IP; otherwise the pod's own address
	family int  // 4 or 6
}

func (a arm) to(port uint16) netip.AddrPort {
	backend := a.place.lab.Host("backend1")
	switch {
	case a.vip && a.family == 6:
		return netip.AddrPortFrom(vip6, port)
	case a.vip:
		return netip.AddrPortFrom(vip4, port)
	case a.family == 6:
		return netip.AddrPortFrom(backend.Addr6, port)
	}
	return netip.AddrPortFrom(backend.Addr4, port)
}

// do has the arm's client carry out o with the arm's server as its target.
func (a arm) do(o order, port uint16) (result, error) {
	o.To = a.to(port)
	r, err := a.place.workers[a.client].do(o)
	if err != nil {
		return r, fmt.Errorf("%s: %w", a.name, err)
	}
	return r, nil
}

func (a arm) server(verb string) (result, error) {
	return a.place.workers["backend1"].do(order{Verb: verb})
}

// pin moves client and server to one processor: all work is then on the path that
// is measured, and a ratio of times or rates is one of processor time.
func (a arm) pin(cpu int) error {
	for _, host := range []string{a.client, "backend1"} {
		if _, err := a.place.workers[host].do(order{Verb: verbPin, CPU: cpu}); err != nil {
			return err
		}
	}
	return nil
}

// The names of the arms, in the order in which they are measured.
const (
	armDirect   = "direct, no lbproxy"
	armControl  = "direct, another lab"
	armUnhooked = "pod IP, unhooked"
	armHooked   = "pod IP, hooked"
	armVIP      = "ClusterIP, hooked"
	armPackets  = "ClusterIP, packets"
)

// paths are the labs that are compared.
type paths struct {
	plain, control, balanced *place
}

func newPaths(ctx context.Context) (_ *paths, err error) {
	p := &paths{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if p.plain, err = newPlace(ctx, "plain", false); err != nil {
		return nil, err
	}
	if p.control, err = newPlace(ctx, "control", false); err != nil {
		return nil, err
	}
	if p.balanced, err = newPlace(ctx, "lb", true); err != nil {
		return nil, err
	}
	for _, a := range p.arms(4) { // also says whether all are what they should be
		if _, err := a.do(order{Verb: verbRR, N: 10}, portEcho); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Close ends everything.
func (p *paths) Close() error {
	var errs []error
	for _, pl := range []*place{p.plain, p.control, p.balanced} {
		if pl != nil {
			errs = append(errs, pl.Close())
		}
	}
	return errors.Join(errs...)
}

// arms are the ways to one server. Those through the packet path have a client of
// their own: what they leave in the connection table must not meet anybody else.
func (p *paths) arms(family int) []arm {
	return []arm{
		{armDirect, p.plain, "client1", false, family},
		{armControl, p.control, "client1", false, family},
		{armUnhooked, p.balanced, "client2", false, family},
		{armHooked, p.balanced, "client1", false, family},
		{armVIP, p.balanced, "client1", true, family},
		{armPackets, p.balanced, "client3", true, family},
	}
}

// samples are the blocks of each arm, by what was measured.
type samples map[string]map[string][]float64 // metric, arm

// interleave measures every arm twice in each block, in one order and back, so
// that what changes steadily is the same for all; the two are averaged. Blocks
// take turns on the processors.
func interleave(ctx context.Context, blocks int, arms []arm, measure func(arm) (map[string]float64, error)) (samples, error) {
	out := samples{}
	for block := range blocks {
		sums := map[string]map[string]float64{}
		for i := range 2 * len(arms) {
			a := arms[min(i, 2*len(arms)-1-i)]
			if err := errors.Join(ctx.Err(), a.pin(block%runtime.NumCPU())); err != nil {
				return nil, err
			}
			got, err := measure(a)
			if err != nil {
				return nil, err
			}
			for metric, x := range got {
				if sums[metric] == nil {
					sums[metric] = map[string]float64{}
				}
				sums[metric][a.name] += x / 2
			}
		}
		for metric, by := range sums {
			if out[metric] == nil {
				out[metric] = map[string][]float64{}
			}
			for name, x := range by {
				out[metric][name] = append(out[metric][name], x)
			}
		}
	}
	return out, nil
}

// rows compares arms of a metric with a baseline.
func (s samples) rows(group, prefix, metric, unit, how, base string, lims map[string]*limit, arms ...string) []row {
	var rows []row
	for _, name := range arms {
		rows = append(rows, newRow(group, prefix+": "+name, unit, how, s[metric][name], s[metric][base], lims[name]))
	}
	return rows
}

// size is how much is measured.
type size struct {
	blocks, connects, rounds int
	stream                   time.Duration
	passes                   int    // of the dataplane's own benchmarks
	gobench                  string // their -test.benchtime
	services, changes        int
	starts                   int
}

func (p *paths) connects(ctx context.Context, sz size) ([]row, error) {
	const group = "connect(), time until it returns; baseline: " + armDirect
	var rows []row
	for _, family := range []int{4, 6} {
		s, err := interleave(ctx, sz.blocks, p.arms(family), func(a arm) (map[string]float64, error) {
			r, err := a.do(order{Verb: verbConnect, N: sz.connects}, portBacklog)
			if err != nil {
				return nil, err
			}
			if _, err := a.server(verbDrain); err != nil {
				return nil, err
			}
			return map[string]float64{"p50": r.P50, "cycle": r.Cycle}, nil
		})
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("TCP/IPv%d p50", family)
		rows = append(rows, s.rows(group, name, "p50", "ns", asDifference, armDirect,
			map[string]*limit{armVIP: atMost(1000, "<= 1 us")},
			armControl, armUnhooked, armHooked, armVIP, armPackets)...)
		rows = append(rows, s.rows(group, name, "p50", "ns", asDifference, armHooked,
			map[string]*limit{armVIP: atMost(1000, "<= 1 us")}, armVIP)...)
		rows[len(rows)-1].Name += " vs. pod IP, hooked"
		rows = append(rows, s.rows(group, fmt.Sprintf("TCP/IPv%d socket..close p50", family), "cycle", "ns",
			asDifference, armDirect, nil, armVIP)...)
	}
	return rows, nil
}

// hooks measures connect() of UDP sockets, which sends nothing.
func (p *paths) hooks(ctx context.Context, sz size) ([]row, error) {
	const group = "UDP connect(): no packet, only the hook; baseline: " + armDirect
	var rows []row
	for _, v := range []struct{ verb, name string }{
		{verbUDP, "new socket"}, {verbReconnect, "same socket"},
	} {
		for _, family := range []int{4, 6} {
			arms := p.arms(family)[:5] // without packets there is no packet path
			s, err := interleave(ctx, sz.blocks, arms, func(a arm) (map[string]float64, error) {
				r, err := a.do(order{Verb: v.verb, N: sz.connects}, portEcho)
				return map[string]float64{"p50": r.P50}, err
			})
			if err != nil {
				return nil, err
			}
			rows = append(rows, s.rows(group, fmt.Sprintf("UDP/IPv%d %s", family, v.name), "p50", "ns", asDifference,
				armDirect, nil, armControl, armHooked, armVIP)...)
		}
	}
	return rows, nil
}

// exchanges measures round trips on established connections.
func (p *paths) exchanges(ctx context.Context, sz size) ([]row, error) {
	const group = "1-byte TCP round trip, p50; baseline: " + armDirect
	var rows []row
	for _, family := range []int{4, 6} {
		s, err := interleave(ctx, sz.blocks, p.arms(family), func(a arm) (map[string]float64, error) {
			r, err := a.do(order{Verb: verbRR, N: sz.rounds}, portEcho)
			return map[string]float64{"p50": r.P50}, err
		})
		if err != nil {
			return nil, err
		}
		rows = append(rows, s.rows(group, fmt.Sprintf("RR/IPv%d", family), "p50", "ns", asInverse, armDirect,
			map[string]*limit{armVIP: atLeast(0.99, ">= 0.99")},
			armControl, armUnhooked, armVIP, armPackets)...)
		rows = append(rows, s.rows(group, fmt.Sprintf("RR/IPv%d", family), "p50", "ns", asInverse, armUnhooked,
			map[string]*limit{armVIP: atLeast(0.99, ">= 0.99")}, armVIP)...)
		rows[len(rows)-1].Name += " vs. pod IP, unhooked"
	}
	return rows, nil
}

// streams measures bulk transfer.
func (p *paths) streams(ctx context.Context, sz size) ([]row, error) {
	const group = "TCP stream on one processor; baseline: " + armDirect
	all := p.arms(4)
	s, err := interleave(ctx, sz.blocks, all, func(a arm) (map[string]float64, error) {
		before, err := a.server(verbUsage)
		if err != nil {
			return nil, err
		}
		r, err := a.do(order{Verb: verbStream, For: sz.stream}, portSink)
		if err != nil {
			return nil, err
		}
		after, err := a.server(verbUsage)
		return map[string]float64{
			"rate": r.Bytes * 8 / r.Seconds / 1e9,
			"cpu":  (r.CPU + after.CPU - before.CPU) / r.Total * 1e9,
		}, err
	})
	if err != nil {
		return nil, err
	}
	rows := s.rows(group, "stream", "rate", "Gbit/s", asRatio, armDirect,
		map[string]*limit{armVIP: atLeast(0.99, ">= 0.99")}, armControl, armVIP, armPackets)
	return append(rows, s.rows(group, "stream cost", "cpu", "CPU-s/GB", asInverse, armDirect,
		map[string]*limit{armVIP: atLeast(0.99, ">= 0.99")}, armControl, armVIP, armPackets)...), nil
}
