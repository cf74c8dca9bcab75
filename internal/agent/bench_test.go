// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/endpoints"
)

// benchEndpoints is how many endpoints a Service of a benchmark has.
const benchEndpoints = 10

// quick is a dataplane that does nothing, and tells when.
type quick struct{ synced chan int }

func (q quick) Sync(_ context.Context, d dataplane.Delta) error {
	if q.synced != nil {
		q.synced <- len(d.Put)
	}
	return nil
}

// Audit finds nothing.
func (q quick) Audit(context.Context, []*dataplane.Service) ([]string, error) { return nil, nil }

// benchSlice returns the EndpointSlice of Service i. One endpoint of it differs from
// that of the round before, and from that of round 0.
func benchSlice(i, round int) *discovery.EndpointSlice {
	name, port, proto := "http", int32(8080), v1.ProtocolTCP
	sl := &discovery.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "bench", Name: fmt.Sprintf("service-%d-x", i),
			Labels: map[string]string{discovery.LabelServiceName: fmt.Sprint("service-", i)},
		},
		AddressType: discovery.AddressTypeIPv4,
		Ports:       []discovery.EndpointPort{{Name: &name, Port: &port, Protocol: &proto}},
	}
	for e := range benchEndpoints {
		last := byte(e)
		if e == 0 && round > 0 {
			last = byte(100 + round%100)
		}
		addr := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), last})
		sl.Endpoints = append(sl.Endpoints, discovery.Endpoint{Addresses: []string{addr.String()}})
	}
	return sl
}

// benchStore returns a Store of n Services.
func benchStore(n int) *endpoints.Store {
	s := endpoints.New(endpoints.Options{
		NodeName: "n1", Sources: []endpoints.Source{endpoints.Manifests}, CheckAlgorithm: algo.Check, DefaultAlgorithm: "random",
	}, slog.New(slog.DiscardHandler), nil)
	for i := range n {
		s.UpsertService(&v1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "bench", Name: fmt.Sprint("service-", i)},
			Spec: v1.ServiceSpec{
				ClusterIP: netip.AddrFrom4([4]byte{172, 16 + byte(i>>16), byte(i >> 8), byte(i)}).String(),
				Ports:     []v1.ServicePort{{Name: "http", Port: 80, Protocol: v1.ProtocolTCP}},
			},
		})
		s.UpsertSlice(benchSlice(i, 0))
	}
	s.MarkSynced(endpoints.Manifests)
	return s
}

func benchAgent(b testing.TB, s Source, dp dataplane.Dataplane) *Agent {
	a, err := New(Options{Source: s, Dataplane: dp, Log: slog.New(slog.DiscardHandler), Algorithm: "random"})
	if err != nil {
		b.Fatal(err)
	}
	return a
}

// BenchmarkChange is the work for one endpoint change, the Store's included, in a
// cluster of so many Services. It should be the same for all of them.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{1000, 44000} {
		b.Run(fmt.Sprint("services=", n), func(b *testing.B) {
			store := benchStore(n)
			a := benchAgent(b, store, quick{})
			a.collect()
			a.sync(b.Context())
			slices := make([]*discovery.EndpointSlice, 1000)
			for i := range slices {
				slices[i] = benchSlice(i*n/len(slices), i/n+1)
			}
			b.ReportAllocs()
			round := 0
			for b.Loop() {
				store.UpsertSlice(slices[round%len(slices)])
				if round++; round%len(slices) == 0 {
					b.StopTimer()
					for i := range slices {
						slices[i] = benchSlice(i*n/len(slices), round/len(slices)+1)
					}
					b.StartTimer()
				}
				a.collect()
				a.sync(b.Context())
			}
		})
	}
}

// BenchmarkEvent is the time from the Store's hearing of a lone change until the
// dataplane is told, with all goroutines that are between.
func BenchmarkEvent(b *testing.B) {
	for _, n := range []int{1000, 44000} {
		b.Run(fmt.Sprint("services=", n), func(b *testing.B) {
			store, dp := benchStore(n), quick{make(chan int)}
			a := benchAgent(b, store, dp)
			go func() { _ = a.Run(b.Context()) }()
			<-dp.synced
			var took []time.Duration
			round := 0
			for b.Loop() {
				round++
				sl := benchSlice(round%n, round)
				<-time.After(paceWindow / paceCount) // a lone one
				begin := time.Now()
				store.UpsertSlice(sl)
				<-dp.synced
				took = append(took, time.Since(begin))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
		})
	}
}

// BenchmarkMemory is what Store and agent keep for 10,000 Services of 10 endpoints.
func BenchmarkMemory(b *testing.B) {
	const n = 10000
	for b.Loop() {
		empty := heap()
		store := benchStore(n)
		stored := heap()
		a := benchAgent(b, store, quick{})
		a.collect()
		resolved := heap()
		a.sync(b.Context())
		all := heap()
		b.ReportMetric(float64(stored-empty)/n, "B/service-stored")
		b.ReportMetric(float64(resolved-stored)/n, "B/service-resolved")
		b.ReportMetric(float64(all-resolved)/n, "B/service-compiled")
		runtime.KeepAlive(store)
		runtime.KeepAlive(a)
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
