// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// randomWideSlice has few addresses, so that some are in two slices, ports that come
// and go, and both families.
func randomWideSlice(rng *rand.Rand, name string) *discovery.EndpointSlice {
	sl := podSlice("web", name)
	six := rng.IntN(4) == 0
	if six {
		sl.AddressType = discovery.AddressTypeIPv6
	}
	if rng.IntN(3) == 0 {
		sl.Ports = append(sl.Ports, discovery.EndpointPort{Name: ptr("dns"), Protocol: ptr(v1.ProtocolUDP), Port: ptr(int32(5353))})
	}
	if rng.IntN(6) == 0 {
		sl.Ports[0].Port = ptr(int32(8081))
	}
	if rng.IntN(8) == 0 {
		sl.Ports = sl.Ports[1:]
	}
	if rng.IntN(8) == 0 {
		sliceWeight(sl, fmt.Sprint(rng.IntN(3)))
	}
	first, size := rng.IntN(3), rng.IntN(8)
	for range size {
		k := 20*first + rng.IntN(30)
		ep := testSlice("", "", fmt.Sprintf("10.0.0.%d%s", k, []string{"", " remote", " notready", " terminating", " zone=z0", " zone=z1"}[rng.IntN(6)])).Endpoints[0]
		if six {
			ep.Addresses[0] = fmt.Sprintf("2001:db8::%x", k)
		}
		ep.TargetRef = &v1.ObjectReference{Kind: KindPod, Namespace: "default", Name: fmt.Sprint("pod-", k)}
		sl.Endpoints = append(sl.Endpoints, ep)
	}
	return sl
}

// TestWideServicesEndLikeAFreshStart makes every Service a wide one, and compares
// after each Take with what Resolve makes of the same objects, weights apart, and at
// the end with a Store that keeps nothing.
func TestWideServicesEndLikeAFreshStart(t *testing.T) {
	patched := 0
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 4))
		s, _ := newStore(t)
		s.wideFrom = 1
		plain, _ := newStore(t)
		plain.wideFrom = 1 << 30
		both := func(f func(*Store)) { f(s); f(plain) }
		for range 60 {
			switch name := fmt.Sprint("e", rng.IntN(5)); rng.IntN(12) {
			case 10: // which has the frontend of port http in the family of IPv4
				both(func(s *Store) { s.UpsertService(testService("elder")) })
			case 11:
				both(func(s *Store) { s.DeleteService(object("elder")) })
			case 0:
				both(func(s *Store) { s.DeleteSlice(object(name)) })
			case 1:
				pod, w := fmt.Sprint("pod-", rng.IntN(60)), fmt.Sprint(rng.IntN(3))
				both(func(s *Store) { s.testPodWeight(pod, w) })
			case 2:
				zone := fmt.Sprint("z", rng.IntN(3))
				both(func(s *Store) { s.UpsertNode(ownNode(zone)) })
			case 3:
				edit := []func(*v1.Service){dualStack, clusterIP("10.96.0.1"), nodePort(30080), externalLocal}[rng.IntN(4)]
				ports := rng.IntN(2)
				both(func(s *Store) {
					s.UpsertService(testService("web", edit, withSpec(func(s *v1.ServiceSpec) {
						if ports > 0 {
							s.Ports = append(s.Ports, v1.ServicePort{Name: "dns", Port: 53, Protocol: v1.ProtocolUDP})
						}
					})))
				})
			case 4:
				both(func(s *Store) { s.DeleteService(object("web")) })
			default:
				sl := randomWideSlice(rng, name)
				both(func(s *Store) { s.UpsertSlice(sl) })
			}
			if rng.IntN(3) == 0 {
				continue
			}
			both(func(s *Store) { s.Take() })
			got, want := published(s), published(plain)
			if d := cmp.Diff(want, got, cmp.Comparer(equalServices)); d != "" {
				t.Fatalf("seed %d: -plain +wide:\n%s", seed, d)
			}
			if e := s.entries[object("web")]; e != nil && e.wide != nil {
				patched += len(e.wide.lists)
			}
		}
	}
	if patched == 0 {
		t.Error("nothing was kept")
	}
}

func published(s *Store) []*lb.Service {
	if e := s.entries[object("web")]; e != nil {
		return e.published
	}
	return nil
}

// TestWhatWasGatheredIsKeptForWideServicesOnly looks at when memory is spent.
func TestWhatWasGatheredIsKeptForWideServicesOnly(t *testing.T) {
	s, _ := newStore(t)
	s.UpsertService(testService("wide"))
	sls := wideSlices(wideFrom, 100)
	kept := func() bool {
		s.Take()
		return s.entries[object("wide")].wide != nil
	}
	for _, sl := range sls {
		if kept() {
			t.Fatal("kept before it was wide")
		}
		s.UpsertSlice(sl)
	}
	if !kept() || len(s.entries[object("wide")].wide.lists) != 1 {
		t.Error("not kept when it was wide")
	}
	s.UpsertService(testService("wide", withSpec(func(s *v1.ServiceSpec) { s.Ports[0].Name = "other" })))
	if kept(); len(s.entries[object("wide")].wide.lists) != 1 {
		t.Error("the port is gone, what was gathered for it is not")
	}
	s.DeleteSlice(object("wide-0"))
	if kept() {
		t.Error("still kept when it is no longer wide")
	}
	for _, sl := range sls {
		s.UpsertSlice(sl)
	}
	if s.Take(); !kept() {
		t.Error("not kept again")
	}
	s.DeleteService(object("wide"))
	if kept() {
		t.Error("still kept when the Service is gone")
	}
}

// TestAddressInTwoNewSlicesOfAWideService adds both between two Takes, and takes one
// away again.
func TestAddressInTwoNewSlicesOfAWideService(t *testing.T) {
	s, _ := newStore(t)
	s.wideFrom = 1
	s.UpsertService(testService("web"))
	s.UpsertSlice(testSlice("web", "web-1", "10.0.0.1"))
	s.Take()
	s.UpsertSlice(testSlice("web", "web-2", "10.0.0.2"))
	s.UpsertSlice(testSlice("web", "web-3", "10.0.0.2 remote", "10.0.0.3"))
	s.Take()
	if got := show(published(s)[0].Cluster); got != "1! 2! 3!" {
		t.Errorf("both are there: got %q, want 1! 2! 3!", got)
	}
	s.DeleteSlice(object("web-2"))
	s.Take()
	if got := show(published(s)[0].Cluster); got != "1! 2 3!" {
		t.Errorf("one is gone: got %q, want 1! 2 3!", got)
	}
}

// TestUnitThatIsSkippedIsGatheredAnew: while another Service has its frontend, its
// slices change.
func TestUnitThatIsSkippedIsGatheredAnew(t *testing.T) {
	s, _ := newStore(t)
	s.wideFrom = 1
	s.UpsertService(testService("web"))
	s.UpsertSlice(testSlice("web", "web-1", "10.0.0.1"))
	s.Take()
	s.UpsertService(testService("elder"))
	s.UpsertSlice(testSlice("web", "web-1", "10.0.0.2"))
	if s.Take(); len(published(s)) != 0 {
		t.Fatalf("got %v while another Service has the frontend", published(s))
	}
	s.DeleteService(object("elder"))
	s.Take()
	if got := show(published(s)[0].Cluster); got != "2!" {
		t.Errorf("got %q, want 2!", got)
	}
}

// TestWeightsDropWhatWasGatheredOfTheirServicesOnly also has a Pod that leaves the
// slices before its weight changes, to that of what comes in its place.
func TestWeightsDropWhatWasGatheredOfTheirServicesOnly(t *testing.T) {
	s, _ := newStore(t)
	s.wideFrom = 1
	s.UpsertService(testService("web"))
	s.UpsertService(testService("other", clusterIP("10.96.0.2")))
	s.UpsertSlice(podSlice("web", "web-1", "10.0.0.1"))
	s.UpsertSlice(podSlice("other", "other-1", "10.0.0.9"))
	s.testPodWeight("pod-1", "1")
	s.Take()
	kept := s.entries[object("other")].wide
	s.UpsertSlice(testSlice("web", "web-1", "10.0.0.1")) // of no Pod
	s.testPodWeight("pod-1", "100")
	s.Take()
	if got := weightsOf(s, "web"); got != "100" {
		t.Errorf("weight %s, want 100", got)
	}
	s.UpsertSlice(podSlice("web", "web-1", "10.0.0.1"))
	s.testPodWeight("pod-1", "7")
	s.Take()
	if got := weightsOf(s, "web"); got != "7" {
		t.Errorf("weight %s, want 7", got)
	}
	s.UpsertSlice(podSlice("other", "other-1", "10.0.0.9", "10.0.0.8"))
	s.Take()
	if got := s.entries[object("other")].wide; got != kept || len(got.lists) != 1 {
		t.Errorf("what was gathered of a Service without that Pod is gone")
	}
}
