// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// chooser is a Dataplane with one Service, and programs that pick from it.
type chooser struct {
	t     testing.TB
	d     *Dataplane
	progs programs
	name  lb.ServiceName
}

func newChooser(t testing.TB) *chooser {
	t.Helper()
	l, err := lab.New(lab.Options{Name: "choose", Pods: []lab.PodSpec{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	c := &chooser{t: t, progs: programs{}}
	c.name = lb.ServiceName{Object: lb.Object{Namespace: "ns", Name: "a"}, Proto: lb.TCP, Family: lb.IPv4}
	if err := l.Host(lab.Node).Do(func() (err error) {
		c.d, err = openState(Options{CgroupRoot: l.CgroupRoot(), BPFFS: l.BPFFS(), NodeName: "node"})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.progs.close()
		if err := c.d.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// load loads the test programs, with constants.
func (c *chooser) load(constants map[string]any) {
	c.t.Helper()
	spec, err := loadChoose()
	if err != nil {
		c.t.Fatal(err)
	}
	c.progs.close()
	if err := c.progs.load(spec, c.d.maps, constants); err != nil {
		c.t.Fatalf("%+v", err)
	}
}

// put makes the Service balance over backends of the given weights, of which the
// first few are in slow start.
func (c *chooser) put(algorithm string, weights []uint16, ramps int) *dataplane.Pool {
	c.t.Helper()
	svc := &dataplane.Service{Name: c.name, Balance: lb.Balance{Algorithm: algorithm}, Terms: lb.Terms{Suspect: time.Second}}
	var ms []algo.Member
	for i, w := range weights {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 80)
		svc.Cluster.Backends = append(svc.Cluster.Backends, lb.Backend{Addr: addr, Weight: w})
		m := algo.Member{ID: uint64(i) + 1, Weight: w}
		if i < ramps {
			m.Ramp = uint16(1000 * (i + 7))
		}
		ms = append(ms, m)
	}
	var err error
	if svc.Cluster.Table, err = algo.Build(algorithm, ms); err != nil {
		c.t.Fatal(err)
	}
	if err := c.d.Sync(context.Background(), dataplane.Delta{Full: true, Put: []*dataplane.Service{svc}}); err != nil {
		c.t.Fatal(err)
	}
	c.d.reclaim(context.Background())
	return &svc.Cluster
}

// pick picks in the kernel, and by the reference.
func (c *chooser) pick(table algo.Table, in algo.Input) (kernel, want int, backend uint32) {
	c.t.Helper()
	id := c.d.services[c.name].id
	slots := c.d.maps.pool(c.d.services[c.name].id, lb.ScopeCluster)
	now := uint32(monotonic() / time.Millisecond)
	in.Load = func(i int) algo.Load {
		us, at := c.d.maps.latencyAt(slots[i].Backend)
		return algo.Load{Active: uint32(c.d.maps.liveOf(slots[i].Backend)), Latency: us, Idle: min(now-at, now-c.d.maps.stats[slots[i].Backend].Given)}
	}
	want = algo.Pick(table, in)
	suspect := func(i int) bool { return c.d.maps.suspectFor(slots[i].Backend) > 0 }
	if suspect(want) {
		takes := func(i int) bool { return c.d.maps.weights[slots[i].Backend] > 0 && !suspect(i) }
		want, _ = algo.Avoid(table, in, want, takes)
	}
	call := choosePickCall{Service: id, Open: 1}
	call.In.Rand, call.In.Seq, call.In.Hash = in.Rand, in.Seq, in.Hash
	out, err := runSyscall(c.progs["test_pick"], &call)
	if err != nil {
		c.t.Fatal(err)
	}
	return int(out.Index), want, out.Backend
}

func (c *chooser) close(backend uint32) {
	c.t.Helper()
	if _, err := runSyscall(c.progs["test_close"], &chooseCloseCall{Backend: backend}); err != nil {
		c.t.Fatal(err)
	}
}

// TestPickEqualsReference opens and closes connections at random, changes weights
// and membership in between, and picks by each algorithm: the kernel must pick what
// the reference does, through bounds that were raised and lowered thousands of times.
func TestPickEqualsReference(t *testing.T) {
	c := newChooser(t)
	c.load(nil)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, name := range algo.Names() {
		for _, n := range []int{1, 2, 15, 17, 31, 32, 33, 64, 100, 300} {
			t.Run(fmt.Sprintf("%s of %d", name, n), func(t *testing.T) {
				c.t = t
				var open []uint32
				for range 4 {
					open = c.wander(rng, name, 1+rng.IntN(n), open)
				}
				for _, be := range open {
					c.close(be)
				}
			})
		}
	}
}

// suspect makes new connections avoid some backends, or none, as others do all the time.
func (c *chooser) suspect(rng *rand.Rand, pool *dataplane.Pool) {
	c.t.Helper()
	chance := rng.IntN(4) // in 4
	for _, b := range pool.Backends {
		until := time.Time{}
		if rng.IntN(4) < chance {
			until = time.Now().Add(time.Hour)
		}
		if err := c.d.Suspect(c.name, b.Addr, until, 0); err != nil {
			c.t.Fatal(err)
		}
	}
}

// wander makes a table of n members and follows it for a while.
func (c *chooser) wander(rng *rand.Rand, name string, n int, open []uint32) []uint32 {
	weights := make([]uint16, n)
	span := 1 + rng.IntN(4) // 1: all are equal
	for i := range weights {
		weights[i] = uint16(1 + rng.IntN(span))
		if i > 0 && span == 4 && rng.IntN(5) == 0 {
			weights[i] = 0
		}
	}
	pool := c.put(name, weights, rng.IntN(2)*rng.IntN(n))
	for step := range 150 {
		if step%10 == 0 {
			c.suspect(rng, pool)
		}
		if len(open) > 0 && rng.IntN(5) < 2 {
			i := rng.IntN(len(open))
			c.close(open[i])
			open[i] = open[len(open)-1]
			open = open[:len(open)-1]
			continue
		}
		in := algo.Input{Seq: rng.Uint32(), Hash: rng.Uint32()}
		for i := range in.Rand {
			in.Rand[i] = rng.Uint32()
		}
		got, want, backend := c.pick(pool.Table, in)
		if got != want {
			c.t.Fatalf("%s of %d, step %d: pick %d, want %d: %+v", name, n, step, got, want, in.Rand)
		}
		open = append(open, backend)
	}
	return open
}

// TestBoundsUnderLoad picks and closes on all CPUs while the agent changes the
// table: afterwards no bound is higher than what a member of its group costs.
func TestBoundsUnderLoad(t *testing.T) {
	c := newChooser(t)
	weights := make([]uint16, 200)
	for i := range weights {
		weights[i] = uint16(1 + i%3)
	}
	c.put("least-connection", weights, 0)
	c.load(map[string]any{"bench_service": c.d.services[c.name].id, "bench_close": uint32(500)})
	frame := packetCase{family: lb.IPv4, proto: lb.TCP}.frame(0, tcpACK)
	var stop atomic.Bool
	done := make(chan error, 3)
	for range 3 {
		go func() {
			for !stop.Load() {
				if _, _, err := c.progs["bench_choose"].Benchmark(frame, 1000, nil); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for i := range 50 {
		weights[i] = uint16(1 + i%5)
		c.put("least-connection", weights[:100+i], 0)
		<-time.After(10 * time.Millisecond) // let programs run; nothing depends on how many
		c.d.reclaim(t.Context())
	}
	stop.Store(true)
	for range 3 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if _, _, err := c.progs["bench_choose"].Benchmark(frame, 1000, nil); err != nil { // nobody else is at work now
		t.Fatal(err)
	}
	for i, s := range c.d.maps.pool(c.d.services[c.name].id, lb.ScopeCluster) {
		if live := int64(c.d.maps.liveOf(s.Backend)); live < 0 || live > 500 {
			t.Errorf("member %d has %d connections, want 0 to 500", i, live)
		}
	}
	c.checkBounds()
}

// checkBounds fails for a bound that is higher than a cost in its group.
func (c *chooser) checkBounds() {
	c.t.Helper()
	svc := c.d.services[c.name]
	slots, content := c.d.maps.pool(svc.id, lb.ScopeCluster), c.d.content(svc, lb.ScopeCluster)
	h, table := tableOf(content, uint32(len(slots)))
	l := h.layout(uint32(len(slots)))
	if !h.has(howBounds) || content[l.bounds].Backend != 0 {
		c.t.Errorf("bounds: %t, spoilt: %d, want some that are known", h.has(howBounds), content[l.bounds].Backend)
	}
	known := 0
	for i, s := range slots {
		b := content[l.bounds+1+uint32(i)/algo.GroupMembers]
		bound := uint64(b.Alias&0xffff)<<32 | uint64(b.Backend)
		factor := uint32(1)
		if table.Factors != nil {
			factor = table.Factors[i]
		}
		cost := algo.CostConns(algo.Load{Active: uint32(c.d.maps.liveOf(s.Backend))}, factor)
		if bound > cost {
			c.t.Errorf("member %d costs %d, the bound of its group is %d", i, cost, bound)
		}
		if bound > 0 {
			known++
		}
	}
	if known == 0 {
		c.t.Errorf("no bound of %d members is known", len(slots))
	}
}

// BenchmarkChoose is what a pick costs by each algorithm: the whole of choose() and
// the counting of one connection opened and one closed, interleaved so that all
// meet the same machine.
func BenchmarkChoose(b *testing.B) {
	const rounds, batch = 15, 20_000
	c := newChooser(b)
	frame := packetCase{family: lb.IPv4, proto: lb.TCP}.frame(0, tcpACK)
	for _, n := range []int{10, 256, 1000, 5000} {
		b.Run(fmt.Sprintf("backends=%d", n), func(b *testing.B) {
			best := map[string]float64{}
			weights := make([]uint16, n)
			for i := range weights {
				weights[i] = 100
			}
			for range rounds {
				for _, name := range algo.Names() {
					c.put(name, weights, 0)
					c.load(map[string]any{"bench_service": c.d.services[c.name].id, "bench_close": uint32(1000)})
					if _, _, err := c.progs["bench_choose"].Benchmark(frame, 2000, nil); err != nil {
						b.Fatal(err)
					}
					_, took, err := c.progs["bench_choose"].Benchmark(frame, batch, nil)
					if err != nil {
						b.Fatal(err)
					}
					if ns := float64(took.Nanoseconds()); best[name] == 0 || ns < best[name] {
						best[name] = ns
					}
				}
			}
			for _, name := range algo.Names() {
				b.ReportMetric(best[name]-best["random"], name+"-over-random-ns")
			}
			b.ReportMetric(best["random"], "random-ns")
			b.ReportMetric(0, "ns/op")
		})
	}
}
