// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// random shows that backends get their share, as far as chance allows.
func (e *exhibit) random(ctx context.Context) error {
	bounds := chances(e.weights(), manyDraws)
	t := e.add(e.clients[0], manyDraws, fmt.Sprintf("%d, one after the other", manyDraws), bounds.String()+", "+e.ratio())
	if err := t.measure(ctx); err != nil {
		return err
	}
	t.checkCounts(bounds)
	return nil
}

// roundRobin shows whole turns.
func (e *exhibit) roundRobin(ctx context.Context) error {
	n := inTurn(e.weights())
	bounds := turns(e.weights(), n)
	t := e.add(e.clients[0], n, fmt.Sprintf("%d, one after the other", n), bounds.String()+", "+e.ratio())
	return t.measure(ctx) // and counts
}

// hash shows that a client stays with its backend, on both paths, and that clients
// of one source share it.
func (e *exhibit) hash(ctx context.Context) error {
	if !e.svc.sticky() {
		t := e.add(e.clients[0], fewDials, fmt.Sprintf("%d, one after the other", fewDials), "any: a socket has no port to hash yet")
		return t.measure(ctx)
	}
	first := map[netip.Prefix]*trial{} // of each source
	for i, c := range e.clients {
		t := e.add(c, fewDials, fmt.Sprintf("%d by its packets", fewDials), "")
		if c.socket {
			t.how = fmt.Sprintf("%d by its sockets", fewDials)
		}
		if err := t.measure(ctx); err != nil {
			return err
		}
		if err := e.compare(first, t); err != nil {
			return err
		}
		e.homes = append(e.homes, home{e, c, most(t.answers)})
		if i > 0 {
			continue
		}
		unseen := *c
		unseen.socket = false
		t = e.add(&unseen, fewDials, fmt.Sprintf("%d by its packets", fewDials), "")
		if err := t.byPackets(); err != nil {
			return err
		}
		if err := e.compare(first, t); err != nil {
			return err
		}
	}
	return nil
}

// compare checks that a line of a hash went where the first line of its source did.
func (e *exhibit) compare(first map[netip.Prefix]*trial, t *trial) error {
	src, err := e.sourceOf(t.from)
	if err != nil {
		return err
	}
	of := src.String()
	if src.IsSingleIP() {
		of = src.Addr().String()
	}
	before := first[src]
	if before == nil {
		first[src] = t
		t.expected = "one, for all of " + of
		return nil
	}
	home := most(before.answers)
	t.expected = home + ", for all of " + of
	if got := most(t.answers); got != home {
		t.fault("%s went to %s, but before to %s", src, got, home)
	}
	return nil
}

// visit connects once to one of lab's servers in the namespace of this thread.
func visit(to netip.AddrPort) (res lab.Result, err error) {
	began := time.Now()
	conn, err := net.DialTimeout("tcp", to.String(), patience)
	if err != nil {
		return res, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(began.Add(patience)); err != nil {
		return res, err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return res, err
	}
	f := strings.Fields(line)
	if len(f) != 3 {
		return res, fmt.Errorf("answer %q", line)
	}
	if res.Seen, err = netip.ParseAddrPort(f[1]); err != nil {
		return res, err
	}
	if res.ServerLocal, err = netip.ParseAddrPort(f[2]); err != nil {
		return res, err
	}
	res.Kind, res.Backend, res.Took = lab.OK, f[0], time.Since(began)
	res.Local, res.Peer = unmapped(conn.LocalAddr()), unmapped(conn.RemoteAddr())
	return res, nil
}

// powerOfTwo makes the lightest backend busy and shows that new connections avoid
// it. Of two different backends the busy one never wins, so with equal weights,
// when two always differ, it gets none.
func (e *exhibit) powerOfTwo(ctx context.Context) error {
	ws := e.weights()
	names := slices.Sorted(maps.Keys(ws))
	busy := slices.MinFunc(names, func(a, b string) int { return ws[a] - ws[b] })
	t := e.addAll(0, "", "any, "+e.ratio())
	for i := 0; e.loads()[busy] < busyConns; i++ {
		if i == 100*busyConns {
			return fmt.Errorf("%s got %d of %d connections", busy, e.loads()[busy], i)
		}
		if _, err := e.open(ctx, t, e.clients[i%len(e.clients)]); err != nil {
			return err
		}
		t.n++
	}
	t.how = fmt.Sprintf("%d held, until %s has %d", t.n, busy, busyConns)
	if err := e.release(ctx, []string{busy}); err != nil {
		return err
	}
	most := e.mostWhileBusy(busy, busyConns)
	t = e.add(e.clients[0], busyConns, fmt.Sprintf("%d, while %s has %d more", busyConns, busy, busyConns),
		fmt.Sprintf("%s at %s", most, busy))
	if err := t.measure(ctx); err != nil {
		return err
	}
	t.checkCounts(spans{busy: most})
	return nil
}

// mostWhileBusy says how many of n connections a busy backend may get: those for
// which it was drawn twice, which it never is if the weights are equal.
func (e *exhibit) mostWhileBusy(busy string, n int) span {
	ws := e.weights()
	if len(ws) == 1 {
		return span{n, n}
	}
	if _, period := turn(ws); period == len(ws) {
		return span{0, 0}
	}
	p := float64(ws[busy]) / sum(ws)
	return span{0, binomial(n, p*p).most}
}

// leastConnection shows that each connection goes where least are, also when all
// of one backend have ended.
func (e *exhibit) leastConnection(ctx context.Context) error {
	ws := e.weights()
	if err := e.fill(ctx, inTurn(ws), "held open"); err != nil {
		return err
	}
	names := slices.Sorted(maps.Keys(ws))
	empty := slices.MaxFunc(names, func(a, b string) int { return ws[a] - ws[b] })
	n := e.loads()[empty]
	if err := e.release(ctx, slices.DeleteFunc(names, func(pod string) bool { return pod == empty })); err != nil {
		return err
	}
	return e.fill(ctx, n, "more, when all of "+empty+" have ended")
}

// fill opens n connections and checks that each goes to a backend for which
// (connections + 1)/weight is least.
func (e *exhibit) fill(ctx context.Context, n int, how string) error {
	ws, now := e.weights(), e.loads()
	goal := now.fill(ws, n)
	var texts []string
	for _, pod := range slices.Sorted(maps.Keys(ws)) {
		texts = append(texts, fmt.Sprint(goal[pod]))
	}
	t := e.addAll(n, fmt.Sprintf("%d %s", n, how), strings.Join(texts, " ")+", "+e.ratio())
	astray := 0
	for i := range n {
		pod, err := e.open(ctx, t, e.clients[i%len(e.clients)])
		if err != nil {
			return err
		}
		if _, ok := ws[pod]; ok && !now.cheapest(ws, pod) {
			astray++
		}
		now[pod]++
	}
	if astray > 0 {
		t.fault("%d of %d did not go to a backend of the least (connections + 1)/weight", astray, n)
	}
	return nil
}

// leastTime shows that slow backends get few connections, where their slowness is
// what is measured. Connections stay open, because else the fastest gets them all.
func (e *exhibit) leastTime(ctx context.Context) error {
	ws, bounds := e.weights(), spans{}
	var slow []string
	for _, p := range e.svc.endpoints {
		if _, ok := ws[p.pod]; !ok || p.delay == 0 || e.svc.annotations[signalKey] == "connect" {
			continue
		}
		bounds[p.pod] = span{0, int(float64(enough) * float64(ws[p.pod]) / sum(ws) / 2)} // half its share
		slow = append(slow, fmt.Sprintf("%s at %s, which takes %s", bounds[p.pod], p.pod, p.delay))
	}
	if len(bounds) == 0 || len(bounds) == len(ws) {
		slow, bounds = []string{"any, all are alike"}, nil
	}
	t := e.addAll(enough, "", strings.Join(slow, "; "))
	for i := range enough {
		if _, err := e.open(ctx, t, e.clients[i%len(e.clients)]); err != nil {
			return err
		}
	}
	t.checkCounts(bounds)
	measured, err := e.latencies(ctx)
	t.how = fmt.Sprintf("%d held open; measured %s", enough, measured)
	return err
}

// latencies is what lbproxy has measured of the backends, in the order of the columns.
func (e *exhibit) latencies(ctx context.Context) (string, error) {
	v, err := e.view(ctx, e.to)
	if err != nil {
		return "", err
	}
	byPod := map[string]string{}
	for _, b := range v.Backends {
		byPod[e.podAt(b.Address)] = fmt.Sprintf("%.1f", float64(b.LatencyMicros)/1000)
	}
	var texts []string
	for _, pod := range slices.Sorted(maps.Keys(byPod)) {
		texts = append(texts, byPod[pod])
	}
	return strings.Join(texts, " ") + " ms", nil
}
