// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// The backends of the algorithms' suite: 16, of which two are five times slower.
const (
	queueCount    = 16
	slowQueues    = 2
	slowdown      = 5
	meanNeed      = 20 * time.Millisecond
	oracle        = "join the shortest queue"
	speedOracle   = "shortest expected delay"
	vipAlgorithms = "10.96.254.0"
)

// contestants are the algorithms that are compared. With one client, ip-hash has but
// one backend, and hash is as random.
var contestants = []string{"random", "round-robin", "power-of-two", "least-connection", "least-time"}

// slowdowns are those of all queues.
func slowdowns() []float64 {
	s := make([]float64, queueCount)
	for i := range s {
		s[i] = 1
		if i < slowQueues {
			s[i] = slowdown
		}
	}
	return s
}

// capacity is how many requests a second all queues together can serve.
func capacity() float64 {
	sum := 0.0
	for _, s := range slowdowns() {
		sum += 1 / s
	}
	return sum / meanNeed.Seconds()
}

// contest is a lab where every algorithm has a Service with the same backends.
type contest struct {
	*place
	vips map[string]netip.AddrPort // by algorithm
	pod  netip.Addr
}

func newContest(ctx context.Context) (_ *contest, err error) {
	p, err := newPlace(ctx, "q", true)
	if err != nil {
		return nil, err
	}
	c := &contest{place: p, vips: map[string]netip.AddrPort{}, pod: p.lab.Host("backend1").Addr4}
	var d dataplane.Delta
	vip := netip.MustParseAddr(vipAlgorithms)
	for _, name := range contestants {
		vip = vip.Next()
		c.vips[name] = netip.AddrPortFrom(vip, 80)
		svc, err := c.service(name)
		if err != nil {
			return nil, errors.Join(err, p.Close())
		}
		d.Put = append(d.Put, svc)
	}
	if err := p.dp.Sync(ctx, d); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return c, nil
}

// queues returns the addresses of the backends.
func (c *contest) queues() []netip.AddrPort {
	var all []netip.AddrPort
	for i := range queueCount {
		all = append(all, netip.AddrPortFrom(c.pod, portQueue+uint16(i)))
	}
	return all
}

// service is balanced by the named algorithm.
func (c *contest) service(algorithm string) (*dataplane.Service, error) {
	svc, err := service(algorithm, lb.TCP, c.vips[algorithm], c.pod)
	if err != nil {
		return nil, err
	}
	svc.Balance = lb.Balance{Algorithm: algorithm, Signal: lb.SignalFirstByte}
	svc.Cluster.Backends = nil
	var members []algo.Member
	for i, at := range c.queues() {
		svc.Cluster.Backends = append(svc.Cluster.Backends, lb.Backend{Addr: at, Weight: lb.DefaultWeight, Local: true})
		members = append(members, algo.Member{ID: uint64(i) + 1, Weight: lb.DefaultWeight})
	}
	svc.Cluster.Table, err = algo.Build(algorithm, members)
	return svc, err
}

// run lets n requests arrive at load times the capacity. arm is an algorithm or an
// oracle.
func (c *contest) run(arm string, load float64, n int, seed uint64) (result, error) {
	if _, err := c.workers["backend1"].do(order{Verb: verbQueues, Slowdown: slowdowns()}); err != nil {
		return result{}, err
	}
	o := order{Verb: verbOpenLoop, N: n, Rate: load * capacity(), For: meanNeed, Seed: seed, Targets: c.queues()}
	switch arm {
	case oracle:
	case speedOracle:
		o.Slowdown = slowdowns()
	default:
		o.Targets = []netip.AddrPort{c.vips[arm]}
	}
	return c.workers["client1"].do(o)
}

// algorithms compares how long requests take under each algorithm, against an
// oracle that knows the length of every queue. The same requests arrive in every
// arm of a block.
func algorithms(ctx context.Context, sz size) (_ []row, err error) {
	c, err := newContest(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	var rows []row
	for _, load := range []float64{0.8, 0.9} {
		p99 := map[string][]float64{}
		arms := append(slices.Clone(contestants), oracle, speedOracle)
		for block := range sz.contests {
			for k := range arms {
				arm := arms[(k+block)%len(arms)]
				res, err := c.run(arm, load, sz.requests, uint64(block)+1)
				if err != nil {
					return nil, fmt.Errorf("%s at load %v: %w", arm, load, err)
				}
				p99[arm] = append(p99[arm], res.P99/1e6)
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
		}
		rows = append(rows, contestRows(load, p99)...)
	}
	return rows, nil
}

// contestRows judges the 99th percentiles.
func contestRows(load float64, p99 map[string][]float64) []row {
	group := fmt.Sprintf("p99 of requests at load %v: %d queues, %d of them %d times slower", load, queueCount, slowQueues, slowdown)
	var rows []row
	for _, name := range append(slices.Clone(contestants), speedOracle) {
		var lim *limit
		if name == "least-connection" || name == "least-time" {
			lim = atMost(1.1, "<= 1.1")
		}
		rows = append(rows, newRow(group, name+" against "+oracle, "ms", asRatio, p99[name], p99[oracle], lim))
	}
	for _, name := range []string{"least-connection", "least-time"} {
		rows = append(rows,
			newRow(group, "round-robin against "+name, "ms", asRatio, p99["round-robin"], p99[name], atLeast(2.5, ">= 2.5")))
		if load == 0.9 {
			rows = append(rows, newRow(group, "random against "+name, "ms", asRatio, p99["random"], p99[name], atLeast(4, ">= 4")))
		}
	}
	return rows
}
