// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"fmt"
	"runtime"
	"testing"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
)

const endpointsPerService = 10

func bigService(i int) *v1.Service {
	return testService(fmt.Sprint("service-", i), clusterIP(fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255)), func(s *v1.Service) {
		s.UID = "0123456789-0123-0123-0123-" + "0123456789"
	})
}

func bigSlice(i, variant int) *discovery.EndpointSlice {
	var specs []string
	for n := range endpointsPerService {
		k := i*endpointsPerService + n
		specs = append(specs, fmt.Sprintf("10.%d.%d.%d remote zone=zone-%d", 128+k>>16, k>>8&255, k&255, n%3))
	}
	if variant%2 == 1 {
		specs[0] += " notready"
	}
	name := fmt.Sprint("service-", i)
	sl := testSlice(name, name+"-abcde", specs...)
	for n := range sl.Endpoints {
		sl.Endpoints[n].TargetRef = &v1.ObjectReference{Kind: KindPod, Namespace: "default", Name: fmt.Sprintf("pod-%d-%d", i, n)}
	}
	return sl
}

func bigStore(n int) *Store {
	s := New(testOptions(), discard(), nil)
	for i := range n {
		s.UpsertService(bigService(i))
		s.UpsertSlice(bigSlice(i, 0))
	}
	for _, src := range KubernetesSources {
		s.MarkSynced(src)
	}
	s.Take()
	return s
}

// BenchmarkStoreEndpointChange measures one changed endpoint. It must cost the
// same whatever the number of Services.
func BenchmarkStoreEndpointChange(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := bigStore(n)
			variants := []*discovery.EndpointSlice{bigSlice(n/2, 1), bigSlice(n/2, 0)}
			runtime.GC()
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				s.UpsertSlice(variants[i%2])
				if cs, _ := s.Take(); len(cs) != 1 {
					b.Fatalf("%d changes, want 1", len(cs))
				}
				i++
			}
		})
	}
}

// BenchmarkColdLoad measures a start with 10,000 Services of 10 endpoints, and
// what the Store and all it has published keep in memory.
func BenchmarkColdLoad(b *testing.B) {
	const n = 10000
	var kept uint64
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		svcs, sls := make([]*v1.Service, n), make([]*discovery.EndpointSlice, n)
		for i := range n {
			svcs[i], sls[i] = bigService(i), bigSlice(i, 0)
		}
		before := heap()
		b.StartTimer()
		s := New(testOptions(), discard(), nil)
		for i := range n {
			s.UpsertService(svcs[i])
			s.UpsertSlice(sls[i])
		}
		for _, src := range KubernetesSources {
			s.MarkSynced(src)
		}
		cs, _ := s.Take()
		b.StopTimer()
		kept = heap() - before
		if len(cs) != n {
			b.Fatalf("%d changes, want %d", len(cs), n)
		}
		runtime.KeepAlive(svcs)
		runtime.KeepAlive(sls)
		runtime.KeepAlive(s)
		b.StartTimer()
	}
	b.ReportMetric(float64(kept), "kept-bytes")
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestTenThousandServicesFitIn60MB(t *testing.T) {
	if testing.Short() {
		t.Skip("long")
	}
	before := heap()
	s := bigStore(10000)
	s.testPodWeight("pod-0-0", "1") // and now the index is there too
	kept := heap() - before
	runtime.KeepAlive(s)
	t.Logf("10,000 Services x %d endpoints keep %.1f MB", endpointsPerService, float64(kept)/1e6)
	if kept > 60e6 {
		t.Errorf("got %d bytes, want at most 60 MB", kept)
	}
}
