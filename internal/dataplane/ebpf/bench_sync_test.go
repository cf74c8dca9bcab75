// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

const benchBackends = 10 // of each Service

// benchService is Service i with backends from 0 to n-1 of its own.
func benchService(b *testing.B, i, n int) *dataplane.Service {
	b.Helper()
	backends, members := make([]lb.Backend, n), make([]algo.Member, n)
	for k := range n {
		id := i*benchBackends + k
		a := netip.AddrFrom4([4]byte{10, byte(128 + id>>16), byte(id >> 8), byte(id)})
		backends[k] = lb.Backend{Addr: netip.AddrPortFrom(a, backendPort), Weight: lb.DefaultWeight}
		members[k] = algo.Member{ID: uint64(k), Weight: lb.DefaultWeight}
	}
	table, err := algo.Build("random", members)
	if err != nil {
		b.Fatal(err)
	}
	vip := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})
	return &dataplane.Service{
		Name: lb.ServiceName{
			Object: lb.Object{Namespace: "bench", Name: fmt.Sprintf("svc-%d", i)}, Proto: lb.TCP, Family: lb.IPv4,
		},
		Frontends: []lb.Frontend{{
			FrontendKey: lb.FrontendKey{Addr: netip.AddrPortFrom(vip, 80), Proto: lb.TCP}, Type: lb.ClusterIP,
		}},
		Cluster: dataplane.Pool{Backends: backends, Table: table},
	}
}

func benchServices(b *testing.B, n int) []*dataplane.Service {
	b.Helper()
	all := make([]*dataplane.Service, n)
	for i := range all {
		all[i] = benchService(b, i, benchBackends)
	}
	return all
}

func (r *benchRig) sync(d dataplane.Delta) {
	r.b.Helper()
	if err := r.d.Sync(context.Background(), d); err != nil {
		r.b.Fatal(err)
	}
}

// BenchmarkSyncOne is one Service losing or gaining one of its backends, while
// the janitor frees what that leaves behind. It should not depend on how many
// Services there are.
func BenchmarkSyncOne(b *testing.B) {
	r := newBenchRig(b)
	for _, services := range []int{1000, 10_000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			r.b = b
			r.sync(dataplane.Delta{Full: true, Put: benchServices(b, services)})
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- r.d.janitor(ctx) }()
			took := make([]time.Duration, b.N)
			b.ResetTimer()
			for n := range b.N {
				d := dataplane.Delta{Put: []*dataplane.Service{
					benchService(b, n%services, benchBackends-1+n/services%2),
				}}
				begin := time.Now()
				r.sync(d)
				took[n] = time.Since(begin)
			}
			b.StopTimer()
			cancel()
			if err := <-done; err != nil {
				b.Fatal(err)
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns/change")
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns/change")
			b.ReportMetric(0, "ns/op")
		})
		r.b = b
		r.removeAll()
	}
}

// BenchmarkReclaim is the processor time that a change costs afterwards, when its
// leftovers are looked for; most of it is spent with the lock held.
func BenchmarkReclaim(b *testing.B) {
	r := newBenchRig(b)
	for _, services := range []int{1000, 10_000} {
		r.sync(dataplane.Delta{Full: true, Put: benchServices(b, services)})
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			r.b = b
			var total time.Duration
			for n := range b.N {
				r.sync(dataplane.Delta{Put: []*dataplane.Service{
					benchService(b, n%services, benchBackends-1+n%2),
				}})
				begin := threadTime(b)
				r.d.reclaim(context.Background())
				total += threadTime(b) - begin
			}
			b.ReportMetric(float64(total.Nanoseconds())/float64(b.N), "ns/reclaim")
			b.ReportMetric(0, "ns/op")
		})
		r.b = b
		r.removeAll()
	}
}

// threadTime is the processor time that this thread has used.
func threadTime(b *testing.B) time.Duration {
	b.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// BenchmarkSyncFull programs everything into empty tables, as at the first start
// on a node.
func BenchmarkSyncFull(b *testing.B) {
	const services = 10_000
	r := newBenchRig(b)
	all := benchServices(b, services)
	b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
		r.b = b
		var total time.Duration
		for range b.N {
			begin := time.Now()
			r.sync(dataplane.Delta{Full: true, Put: all})
			total += time.Since(begin)
			r.removeAll()
		}
		b.ReportMetric(float64(total.Nanoseconds())/float64(b.N), "ns/sync")
		b.ReportMetric(0, "ns/op")
	})
}

// BenchmarkCommit compares two ways to bring a new table into use: storing the
// word of the pool, which all frontends share, and writing the record of each
// frontend with a system call.
func BenchmarkCommit(b *testing.B) {
	r := newBenchRig(b)
	const frontends = 10
	svc := benchService(b, 0, benchBackends)
	for i := range frontends - 1 {
		f := svc.Frontends[0]
		f.Addr = netip.AddrPortFrom(f.Addr.Addr(), uint16(8000+i))
		svc.Frontends = append(svc.Frontends, f)
	}
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc}})
	s := r.d.services[svc.Name]
	b.Run("word", func(b *testing.B) {
		word := r.d.maps.services[s.id].Pool[lb.ScopeCluster]
		begin := time.Now()
		for n := range b.N {
			r.d.maps.storePool(s.id, lb.ScopeCluster, word^uint64(1+n%2)<<20)
		}
		took := time.Since(begin)
		r.d.maps.storePool(s.id, lb.ScopeCluster, word)
		b.ReportMetric(float64(took.Nanoseconds())/float64(b.N), "ns/commit")
		b.ReportMetric(0, "ns/op")
	})
	for _, n := range []int{1, 3, 5, 10} {
		b.Run(fmt.Sprintf("frontends=%d", n), func(b *testing.B) {
			begin := time.Now()
			for range b.N {
				for _, key := range s.frontends[:n] {
					if err := r.d.maps.put(r.d.maps.frontends(), key, r.d.frontends[key]); err != nil {
						b.Fatal(err)
					}
				}
			}
			took := time.Since(begin)
			b.ReportMetric(float64(took.Nanoseconds())/float64(b.N), "ns/commit")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkSyncBig is one Service of 5,000 backends losing or gaining one.
func BenchmarkSyncBig(b *testing.B) {
	r := newBenchRig(b)
	const n = 5000
	worlds := []dataplane.Delta{
		{Put: []*dataplane.Service{benchService(b, 0, n)}}, {Put: []*dataplane.Service{benchService(b, 0, n-1)}},
	}
	r.sync(worlds[0])
	b.ResetTimer()
	for i := range b.N {
		r.sync(worlds[(i+1)%2])
		if i%64 == 0 {
			b.StopTimer()
			r.d.reclaim(context.Background())
			b.StartTimer()
		}
	}
}
