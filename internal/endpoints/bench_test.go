// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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

// wideSlices are n endpoints in slices of the given size. As in a cluster, their
// addresses are in no order, neither in a slice nor between slices.
func wideSlices(n, size int) []*discovery.EndpointSlice {
	order := rand.New(rand.NewPCG(1, 2)).Perm(n)
	var sls []*discovery.EndpointSlice
	for i := 0; i < n; i += size {
		var specs []string
		for _, k := range order[i:min(i+size, n)] {
			specs = append(specs, fmt.Sprintf("10.%d.%d.%d remote zone=zone-%d", 128+k>>16, k>>8&255, k&255, k%3))
		}
		sl := testSlice("wide", fmt.Sprint("wide-", i/size), specs...)
		for e := range sl.Endpoints {
			sl.Endpoints[e].TargetRef = &v1.ObjectReference{Kind: KindPod, Namespace: "default", Name: fmt.Sprintf("pod-%d", i+e)}
		}
		sls = append(sls, sl)
	}
	return sls
}

// BenchmarkWideService measures one changed endpoint of a Service that has 5,000.
func BenchmarkWideService(b *testing.B) {
	for _, size := range []int{100, 1000} {
		for _, zone := range []string{"", "zone-1"} {
			b.Run(fmt.Sprintf("slices of %d, zone %q", size, zone), func(b *testing.B) {
				s := New(testOptions(), discard(), nil)
				s.UpsertService(testService("wide"))
				s.UpsertNode(asNode(&metav1.ObjectMeta{Name: thisNode, Labels: map[string]string{v1.LabelTopologyZone: zone}}))
				sls := wideSlices(5000, size)
				for _, sl := range sls {
					s.UpsertSlice(sl)
				}
				for _, src := range KubernetesSources {
					s.MarkSynced(src)
				}
				s.Take()
				changed := sls[len(sls)/2].DeepCopy()
				changed.Endpoints[0].Conditions.Ready = ptr(false)
				changed.Endpoints[1].Conditions.Ready = ptr(false) // one of them is in the zone, or none of three
				changed.Endpoints[2].Conditions.Ready = ptr(false)
				changed.Endpoints[3].Conditions.Ready = ptr(false)
				variants := []*discovery.EndpointSlice{changed, sls[len(sls)/2]}
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
}

// BenchmarkWideHealthCheck measures one changed endpoint, of another node, of a Service
// that has 5,000, of which 50 are on this node, and a health check; and what source
// ranges add to that.
func BenchmarkWideHealthCheck(b *testing.B) {
	for _, ranges := range []int{0, 500} {
		b.Run(fmt.Sprintf("%d ranges", ranges), func(b *testing.B) {
			s := New(testOptions(), discard(), nil)
			s.UpsertNode(fullNode())
			svc := testService("wide", balancer("203.0.113.1"), externalLocal, healthPort(31000))
			for i := range ranges {
				svc.Spec.LoadBalancerSourceRanges = append(svc.Spec.LoadBalancerSourceRanges, fmt.Sprintf("172.%d.%d.0/24", 30+i>>8, i&255))
			}
			s.UpsertService(svc)
			sls := wideSlices(5000, 100)
			for _, sl := range sls {
				sl.Endpoints[50].NodeName = ptr(thisNode)
				s.UpsertSlice(sl)
			}
			for _, src := range KubernetesSources {
				s.MarkSynced(src)
			}
			s.Take()
			if got := s.entries[object("wide")].health.Ready[0]; got != 50 {
				b.Fatalf("%d local endpoints, want 50", got)
			}
			changed := sls[25].DeepCopy()
			changed.Endpoints[0].Conditions.Ready = ptr(false)
			variants := []*discovery.EndpointSlice{changed, sls[25]}
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
