// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lbproxy/lbproxy/internal/lb"
)

func object(name string) lb.Object { return lb.Object{Namespace: "default", Name: name} }

// woken tells whether the consumer was woken, and puts it back to sleep.
func woken(s *Store) bool {
	select {
	case <-s.Dirty():
		return true
	default:
		return false
	}
}

// TestSince: an event waits from when it came in until a Take, whatever comes after it.
func TestSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(testOptions(), discard(), nil)
		s.UpsertService(testService("web"))
		if at := s.Since(); !at.IsZero() {
			t.Errorf("before every source has listed: %s", at)
		}
		for _, src := range KubernetesSources {
			s.MarkSynced(src)
		}
		s.Take()
		first := time.Now()
		s.UpsertSlice(testSlice("web", "web-1", "10.0.0.1"))
		<-time.After(time.Second)
		s.UpsertSlice(testSlice("web", "web-1", "10.0.0.2"))
		if at := s.Since(); !at.Equal(first) {
			t.Errorf("got %s, want %s", at, first)
		}
		s.Take()
		if at := s.Since(); !at.IsZero() {
			t.Errorf("after a Take: %s", at)
		}
	})
}

func TestNothingIsPublishedBeforeEverySourceHasListed(t *testing.T) {
	ev := &events{}
	s := New(testOptions(), discard(), ev)
	s.UpsertService(testService("web", func(s *v1.Service) { s.Spec.ExternalIPs = []string{"x"} }))
	s.UpsertSlice(testSlice("web", "web-1", "10.0.0.1"))
	for _, src := range []Source{Services, EndpointSlices, Services, Pods, Manifests, OwnNode} {
		s.MarkSynced(src)
		if cs, full := s.Take(); cs != nil || full || woken(s) {
			t.Fatalf("after %s: got %v, full %v before the node was listed", src, cs, full)
		}
	}
	if len(ev.take()) != 0 {
		t.Fatal("events before every source has listed")
	}
	s.MarkSynced(Nodes)
	if !woken(s) {
		t.Fatal("not woken by the last source")
	}
	cs, full := s.Take()
	if !full || len(cs) != 1 || show(cs[0].Services[0].Cluster) != "1!" {
		t.Fatalf("got %v, full %v; want web, true", cs, full)
	}
	if cs, full := s.Take(); cs != nil || full {
		t.Errorf("second Take: got %v, full %v; want nothing", cs, full)
	}
	if got := ev.take(); len(got) != 1 || !strings.Contains(got[0], ReasonInvalidAddress) {
		t.Errorf("got events %q, want one", got)
	}
}

func TestOnlyWhatChangedIsPublished(t *testing.T) {
	s, _ := newStore(t)
	v := view{}
	s.UpsertService(testService("a"))
	s.UpsertService(testService("b", clusterIP("10.96.0.2")))
	s.UpsertSlice(testSlice("a", "a-1", "10.0.0.1"))
	if got := v.take(s); !slices.Equal(got, []string{"a", "b"}) {
		t.Fatalf("got changes %q, want a, b", got)
	}
	woken(s)
	for _, step := range []struct {
		name string
		do   func()
		want []string
	}{
		{"another endpoint", func() { s.UpsertSlice(testSlice("a", "a-1", "10.0.0.1", "10.0.0.2")) }, []string{"a"}},
		{"a second slice", func() { s.UpsertSlice(testSlice("b", "b-1", "10.0.0.3")) }, []string{"b"}},
		{"a slice moves to another Service", func() { s.UpsertSlice(testSlice("b", "a-1", "10.0.0.1")) }, []string{"a", "b"}},
		{"a slice of a Service that is not there", func() { s.UpsertSlice(testSlice("c", "c-1", "10.0.0.4")) }, nil},
		{"which comes", func() { s.UpsertService(testService("c", clusterIP("10.96.0.3"))) }, []string{"c"}},
		{"and becomes headless", func() { s.UpsertService(testService("c", clusterIP("None"))) }, []string{"c"}},
		{"a slice goes", func() { s.DeleteSlice(object("b-1")) }, []string{"b"}},
		{"a slice goes twice", func() { s.DeleteSlice(object("b-1")) }, nil},
		{"a Service goes", func() { s.DeleteService(object("a")) }, []string{"a"}},
		{"a Service goes twice", func() { s.DeleteService(object("a")) }, nil},
	} {
		step.do()
		if got := v.take(s); !slices.Equal(got, step.want) {
			t.Errorf("%s: got changes %q, want %q", step.name, got, step.want)
		}
	}
	if d := cmp.Diff([]string{"b 10.96.0.2:80/TCP -> 1!"}, v.lines()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestUpdatesThatChangeNothingArePassedOver(t *testing.T) {
	s, _ := newStore(t)
	s.UpsertService(testService("web"))
	s.UpsertSlice(testSlice("web", "web-1", "10.0.0.1", "10.0.0.2 notready"))
	s.Take()
	woken(s)
	for name, do := range map[string]func(){
		"same slice": func() { s.UpsertSlice(testSlice("web", "web-1", "10.0.0.1", "10.0.0.2 notready")) },
		"annotation": func() {
			sl := testSlice("web", "web-1", "10.0.0.1", "10.0.0.2 notready")
			sl.Annotations = map[string]string{v1.EndpointsLastChangeTriggerTime: "2026-11-01T00:00:00Z"}
			sl.ResourceVersion = "7"
			s.UpsertSlice(sl)
		},
		"same service": func() { s.UpsertService(testService("web")) },
		"label": func() {
			s.UpsertService(testService("web", func(s *v1.Service) { s.Labels = map[string]string{"a": "b"} }))
		},
		"another node": func() { s.UpsertNode(asNode(&metav1.ObjectMeta{Name: "node-b"})) },
	} {
		do()
		if woken(s) {
			t.Errorf("%s: woke the consumer", name)
		}
	}
	// What is stored differs, what is published does not: no change either.
	s.UpsertSlice(testSlice("web", "web-1", "10.0.0.1", "10.0.0.2 notready zone=x"))
	if cs, _ := s.Take(); cs != nil {
		t.Errorf("got %v, want no change", cs)
	}
}

func TestUnchangedPortsKeepTheirValue(t *testing.T) {
	s, _ := newStore(t)
	two := func(s *v1.Service) { s.Spec.Ports = append(s.Spec.Ports, v1.ServicePort{Name: "b", Port: 81}) }
	s.UpsertService(testService("web", two))
	before, _ := s.Take()
	s.UpsertSlice(testSlice("web", "web-1", "10.0.0.1"))
	after, _ := s.Take()
	if before[0].Services[0] != after[0].Services[0] {
		t.Error("port b has no endpoints, but is a new value")
	}
	if before[0].Services[1] == after[0].Services[1] || len(before[0].Services[1].Cluster.Backends) != 0 {
		t.Error("a published value was changed")
	}
}

func TestNodeZoneResolvesEverythingAgain(t *testing.T) {
	s, _ := newStore(t)
	v := view{}
	s.UpsertService(testService("a"))
	s.UpsertService(testService("b", clusterIP("10.96.0.2")))
	s.UpsertSlice(testSlice("a", "a-1", "10.0.0.1 zone=zone-a", "10.0.0.2 zone=zone-b"))
	s.UpsertSlice(testSlice("b", "b-1", "10.0.0.3"))
	v.take(s)
	node := &metav1.ObjectMeta{Name: thisNode, Labels: map[string]string{v1.LabelTopologyZone: thisZone}}
	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"zone a", func() { s.UpsertNode(asNode(node)) }, "a 10.96.0.1:80/TCP -> 1!"},
		{"zone b", func() {
			n := node.DeepCopy()
			n.Labels[v1.LabelTopologyZone] = "zone-b"
			s.UpsertNode(asNode(n))
		}, "a 10.96.0.1:80/TCP -> 2!"},
		{"none", func() { s.UpsertNode(ownNode("")) }, "a 10.96.0.1:80/TCP -> 1! 2!"},
	} {
		step.do()
		if got := v.take(s); !slices.Equal(got, []string{"a"}) || v.lines()[0] != step.want {
			t.Errorf("%s: got changes %q, %q; want a, %q", step.name, got, v.lines(), step.want)
		}
	}
}

func TestInvalidAlgorithmKeepsTheLastValidOne(t *testing.T) {
	s, ev := newStore(t)
	set := func(name string) string {
		s.UpsertService(testService("web", func(s *v1.Service) { s.Annotations = map[string]string{annotationAlgorithm: name} }))
		s.Take()
		return s.entries[object("web")].published[0].Balance.Algorithm
	}
	for _, step := range []struct{ in, want string }{
		{"magic", ""}, {"hash", "hash"}, {"magic", "hash"}, {"more magic", "hash"}, {"least-time", "least-time"}, {"", ""}, {"magic", ""},
	} {
		if got := set(step.in); got != step.want {
			t.Errorf("annotation %q: got algorithm %q, want %q", step.in, got, step.want)
		}
	}
	set("hash")
	s.DeleteService(object("web"))
	s.Take()
	if got := set("magic"); got != "" {
		t.Errorf("a new Service has the algorithm %q of a deleted one", got)
	}
	if got := len(ev.take()); got != 5 {
		t.Errorf("got %d events, want one for each time an invalid value came", got)
	}
}

func TestProblemsAreReportedOnceUntilTheyReturn(t *testing.T) {
	s, ev := newStore(t)
	bad := func(s *v1.Service) { s.Spec.ExternalIPs = []string{"x"} }
	put := func(edit ...func(*v1.Service)) []string {
		s.UpsertService(testService("web", edit...))
		s.Take()
		return ev.take()
	}
	want := []string{`web InvalidAddress spec.externalIPs[0]: "x" is not an IP address`}
	if got := put(bad); !slices.Equal(got, want) {
		t.Errorf("first: got %q, want %q", got, want)
	}
	if got := s.Problems(); len(got) != 1 {
		t.Errorf("got problems %v, want one", got)
	}
	if got := put(bad, nodePort(30080)); got != nil {
		t.Errorf("still there: got %q, want nothing", got)
	}
	if got := put(); got != nil || len(s.Problems()) != 0 {
		t.Errorf("resolved: got %q, problems %v; want nothing", got, s.Problems())
	}
	if got := put(bad); !slices.Equal(got, want) {
		t.Errorf("returned: got %q, want %q", got, want)
	}
	s.DeleteService(object("web"))
	s.Take()
	if len(s.Problems()) != 0 {
		t.Errorf("the Service is gone, its problems are not: %v", s.Problems())
	}
}

func TestSliceWithoutServiceIsReported(t *testing.T) {
	s, _ := newStore(t)
	orphan := testSlice("", "orphan", "10.0.0.1")
	for name, leave := range map[string]func(){
		"deleted":  func() { s.DeleteSlice(object("orphan")) },
		"relisted": func() { s.locked(func() { s.replaceSlices(nil) }) },
		"labelled": func() { s.UpsertSlice(testSlice("web", "orphan", "10.0.0.1")) },
	} {
		s.UpsertSlice(orphan)
		if got := s.Problems(); len(got) != 1 || got[0].Reason != ReasonNoService {
			t.Errorf("got %v, want %s", got, ReasonNoService)
		}
		leave()
		if got := s.Problems(); len(got) != 0 {
			t.Errorf("%s: problems left: %v", name, got)
		}
	}
}

// at gives a Service its age: the number of seconds after 1970.
func at(seconds int64) func(*v1.Service) {
	return func(s *v1.Service) { s.CreationTimestamp = metav1.NewTime(time.Unix(seconds, 0)) }
}

// conflictServices want the same addresses and node ports. Their outcome must be the
// same in every order of arrival.
func conflictServices() []*v1.Service {
	udp := func(s *v1.Service) {
		s.Spec.Ports = append(s.Spec.Ports, v1.ServicePort{Name: "dns", Protocol: v1.ProtocolUDP, Port: 53, NodePort: 30053})
	}
	return []*v1.Service{
		testService("old", at(100), nodePort(30080)),
		testService("young", at(300), nodePort(30080), udp), // loses both TCP frontends to old
		testService("other", at(200), clusterIP("10.96.0.2"), nodePort(30080)),
		testService("twin", at(100), clusterIP("10.96.0.2")), // same age as old, older than other
	}
}

func TestConflictsDoNotDependOnTheOrderOfArrival(t *testing.T) {
	want := []string{
		"old 0.0.0.0:30080/TCP -> reject",
		"old 10.96.0.1:80/TCP -> reject",
		"twin 10.96.0.2:80/TCP -> reject",
		"young 0.0.0.0:30053/UDP -> reject",
		"young 10.96.0.1:53/UDP -> reject",
	}
	wantProblems := []string{
		"other ClusterIP 10.96.0.2:80/TCP: is served by Service default/twin, which has precedence",
		"other NodePort 0.0.0.0:30080/TCP: is served by Service default/old, which has precedence",
		"young ClusterIP 10.96.0.1:80/TCP: is served by Service default/old, which has precedence",
		"young NodePort 0.0.0.0:30080/TCP: is served by Service default/old, which has precedence",
	}
	for _, order := range permutations(4) {
		for _, eager := range []bool{false, true} {
			s, _ := newStore(t)
			v := view{}
			svcs := conflictServices()
			for _, i := range order {
				s.UpsertService(svcs[i])
				if eager {
					v.take(s)
				}
			}
			v.take(s)
			if d := cmp.Diff(want, v.lines()); d != "" {
				t.Errorf("order %v, eager %v: -want +got:\n%s", order, eager, d)
			}
			var got []string
			for _, p := range s.Problems() {
				got = append(got, p.Object.Name+" "+p.Message())
			}
			if d := cmp.Diff(wantProblems, got); d != "" {
				t.Errorf("order %v, eager %v: problems: -want +got:\n%s", order, eager, d)
			}
		}
	}
}

func permutations(n int) [][]int {
	if n == 0 {
		return [][]int{nil}
	}
	var out [][]int
	for _, p := range permutations(n - 1) {
		for i := 0; i <= len(p); i++ {
			out = append(out, slices.Insert(slices.Clone(p), i, n-1))
		}
	}
	return out
}

func TestLoserGetsTheFrontendWhenTheWinnerLeaves(t *testing.T) {
	s, ev := newStore(t)
	v := view{}
	for _, svc := range conflictServices() {
		s.UpsertService(svc)
	}
	v.take(s)
	ev.take()
	s.DeleteService(object("old"))
	if got := v.take(s); !slices.Equal(got, []string{"old", "other", "young"}) {
		t.Errorf("got changes %q, want old, other and young", got)
	}
	want := []string{
		"other 0.0.0.0:30080/TCP -> reject",
		"twin 10.96.0.2:80/TCP -> reject",
		"young 0.0.0.0:30053/UDP -> reject",
		"young 10.96.0.1:53/UDP -> reject",
		"young 10.96.0.1:80/TCP -> reject",
	}
	if d := cmp.Diff(want, v.lines()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if got, want := ev.take(), []string{"young FrontendConflict NodePort 0.0.0.0:30080/TCP: is served by Service default/other, which has precedence"}; !slices.Equal(got, want) {
		t.Errorf("got events %q, want %q", got, want)
	}
	// The winner comes back as a younger object of the same name.
	s.UpsertService(testService("old", at(400)))
	v.take(s)
	if d := cmp.Diff(want, v.lines()); d != "" {
		t.Errorf("a recreated Service is not the oldest any more: -want +got:\n%s", d)
	}
	// The winner is recreated between two lists: nobody has seen it go.
	s.UpsertService(testService("young", at(500)))
	v.take(s)
	if got := v.lines(); !slices.Contains(got, "old 10.96.0.1:80/TCP -> reject") {
		t.Errorf("got %q, want old to have 10.96.0.1:80", got)
	}
}

func TestNodePortsConflictOnlyWithNodePorts(t *testing.T) {
	s, _ := newStore(t)
	v := view{}
	s.UpsertService(testService("a", nodePort(30080)))
	s.UpsertService(testService("b", clusterIP("10.96.0.2"), func(s *v1.Service) { s.Spec.Ports[0].Port = 30080 }))
	s.UpsertService(testService("c", clusterIP("10.96.0.3"), nodePort(30080), func(s *v1.Service) { s.Spec.Ports[0].Protocol = v1.ProtocolUDP }))
	s.UpsertService(testService("d", clusterIP("fd00::4"), nodePort(30080), func(s *v1.Service) { s.Spec.IPFamilies = nil }))
	v.take(s)
	if got := s.Problems(); len(got) != 0 {
		t.Errorf("got problems %v, want none", got)
	}
	if got := len(v.lines()); got != 7 {
		t.Errorf("got %d frontends, want 7: %q", got, v.lines())
	}
}

// TestAnyHistoryEndsLikeAFreshStart replays random operations on a Store that is
// taken from at random, and compares with a Store that sees only the last state.
func TestAnyHistoryEndsLikeAFreshStart(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		s, _ := newStore(t)
		v := view{}
		svcs, sls := map[string]*v1.Service{}, map[string]*discovery.EndpointSlice{}
		zone := ""
		for range 200 {
			name := fmt.Sprint("s", rng.IntN(5))
			switch rng.IntN(6) {
			case 0:
				s.DeleteService(object(name))
				delete(svcs, name)
			case 1, 2:
				svc := randomService(rng, name)
				s.UpsertService(svc)
				svcs[name] = svc
			case 3:
				sl := testSlice(name, fmt.Sprint("e", rng.IntN(6)), fmt.Sprintf("10.0.0.%d zone=z%d", 1+rng.IntN(4), rng.IntN(2)))
				s.UpsertSlice(sl)
				sls[sl.Name] = sl
			case 4:
				sl := fmt.Sprint("e", rng.IntN(6))
				s.DeleteSlice(object(sl))
				delete(sls, sl)
			case 5:
				zone = fmt.Sprint("z", rng.IntN(3))
				s.UpsertNode(asNode(&metav1.ObjectMeta{Name: thisNode, Labels: map[string]string{v1.LabelTopologyZone: zone}}))
			}
			if rng.IntN(3) == 0 {
				v.take(s)
			}
		}
		v.take(s)
		fresh, freshView := New(testOptions(), discard(), nil), view{}
		fresh.UpsertNode(asNode(&metav1.ObjectMeta{Name: thisNode, Labels: map[string]string{v1.LabelTopologyZone: zone}}))
		for _, svc := range svcs {
			fresh.UpsertService(svc)
		}
		for _, sl := range sls {
			fresh.UpsertSlice(sl)
		}
		for _, src := range KubernetesSources {
			fresh.MarkSynced(src)
		}
		freshView.take(fresh)
		if d := cmp.Diff(freshView.lines(), v.lines()); d != "" {
			t.Errorf("seed %d: -fresh +history:\n%s", seed, d)
		}
		if a, b := fmt.Sprint(fresh.Problems()), fmt.Sprint(s.Problems()); a != b {
			t.Errorf("seed %d: problems\nfresh   %s\nhistory %s", seed, a, b)
		}
		if len(s.claims.losers) != len(fresh.claims.losers) || len(s.claims.holder) != len(fresh.claims.holder) {
			t.Errorf("seed %d: claims leak", seed)
		}
	}
}

func randomService(rng *rand.Rand, name string) *v1.Service {
	edits := []func(*v1.Service){clusterIP(fmt.Sprint("10.96.0.", 1+rng.IntN(3))), at(int64(rng.IntN(3)))}
	if rng.IntN(2) == 0 {
		edits = append(edits, nodePort(30080+rng.Int32N(2)))
	}
	if rng.IntN(4) == 0 {
		edits = append(edits, externalLocal)
	}
	if rng.IntN(8) == 0 {
		edits = append(edits, clusterIP(v1.ClusterIPNone))
	}
	return testService(name, edits...)
}

func TestStoreIsSafeForConcurrentUse(t *testing.T) {
	s, _ := newStore(t)
	done := make(chan struct{})
	const writers, rounds = 4, 200
	for w := range writers {
		go func() {
			defer func() { done <- struct{}{} }()
			for i := range rounds {
				s.UpsertService(testService(fmt.Sprint("s", i%5), clusterIP(fmt.Sprint("10.96.0.", 1+w))))
				s.UpsertSlice(testSlice(fmt.Sprint("s", i%5), fmt.Sprint("e", w), fmt.Sprint("10.0.0.", 1+i%9)))
				s.DeleteSlice(object(fmt.Sprint("e", (w+1)%writers)))
				s.Problems()
				s.UID(object("s0"))
			}
		}()
	}
	for range writers {
		<-done
	}
	s.Take()
}
