// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// podSlice is testSlice with Pods: 10.0.0.7 is the Pod pod-7.
func podSlice(service, name string, specs ...string) *discovery.EndpointSlice {
	sl := testSlice(service, name, specs...)
	for i := range sl.Endpoints {
		ep := &sl.Endpoints[i]
		last := ep.Addresses[0][strings.LastIndexByte(ep.Addresses[0], '.')+1:]
		ep.TargetRef = &v1.ObjectReference{Kind: KindPod, Namespace: "default", Name: "pod-" + last}
	}
	return sl
}

func (s *Store) testPodWeight(name, value string) { s.UpsertPod(&testPod(name, value).ObjectMeta) }

func (s *Store) testNodeWeight(name, value string) {
	s.UpsertNode(asNode(&metav1.ObjectMeta{Name: name, Annotations: map[string]string{keyWeight: value}}))
}

// sliceWeight annotates a slice.
func sliceWeight(sl *discovery.EndpointSlice, value string) *discovery.EndpointSlice {
	sl.Annotations = map[string]string{keyWeight: value}
	return sl
}

// weightsOf returns the published weights of a Service's cluster pool.
func weightsOf(s *Store, name string) string {
	s.Take()
	return showWeights(s.entries[object(name)].published[0])
}

func showWeights(svc *lb.Service) string {
	var out []string
	for _, b := range svc.Cluster.Backends {
		out = append(out, fmt.Sprint(b.Weight))
	}
	return strings.Join(out, " ")
}

func TestWeightPrecedence(t *testing.T) {
	for _, pod := range []string{"", "1", "bad"} {
		for _, sl := range []string{"", "2", "bad"} {
			for _, node := range []string{"", "3", "bad"} {
				want := "100"
				for _, text := range []string{node, sl, pod} { // the last one wins
					if text != "" && text != "bad" {
						want = text
					}
				}
				for _, order := range permutations(3) {
					s, _ := newStore(t)
					s.UpsertService(testService("web"))
					steps := []func(){
						func() {
							es := podSlice("web", "web-1", "10.0.0.1")
							if sl != "" {
								sliceWeight(es, sl)
							}
							s.UpsertSlice(es)
						},
						func() {
							if pod != "" {
								s.testPodWeight("pod-1", pod)
							}
						},
						func() {
							if node != "" {
								s.testNodeWeight(thisNode, node)
							}
						},
					}
					for _, i := range order {
						steps[i]()
						s.Take()
					}
					if got := weightsOf(s, "web"); got != want {
						t.Errorf("pod %q, slice %q, node %q, order %v: weight %s, want %s", pod, sl, node, order, got, want)
					}
				}
			}
		}
	}
}

var badWeights = []string{"", "-1", "65536", "NaN", "abc", "1.5", " 1", "1 ", "+1", "0x10", "1e3", "١", "99999999999999999999", "inf", "1_0"}

func TestInvalidWeightKeepsThePreviousOne(t *testing.T) {
	set := map[string]func(s *Store, value string){
		KindPod:           func(s *Store, v string) { s.testPodWeight("pod-1", v) },
		KindNode:          func(s *Store, v string) { s.testNodeWeight(thisNode, v) },
		KindEndpointSlice: func(s *Store, v string) { s.UpsertSlice(sliceWeight(podSlice("web", "web-1", "10.0.0.1"), v)) },
	}
	for kind, set := range set {
		for _, bad := range badWeights {
			s, ev := newStore(t)
			s.UpsertService(testService("web"))
			s.UpsertSlice(podSlice("web", "web-1", "10.0.0.1"))
			check := func(when, want string, problem bool) {
				t.Helper()
				if got := weightsOf(s, "web"); got != want {
					t.Errorf("%s %q, %s: weight %s, want %s", kind, bad, when, got, want)
				}
				ps := s.Problems()
				if problem != slices.ContainsFunc(ps, func(p Problem) bool {
					return p.Reason == ReasonInvalidWeight && strings.Contains(p.Error(), kind) && strings.Contains(p.Field, keyWeight)
				}) {
					t.Errorf("%s %q, %s: problems %v, want one of the weight: %t", kind, bad, when, ps, problem)
				}
				if events := ev.take(); (len(events) > 0) != (problem && kind != KindNode) {
					t.Errorf("%s %q, %s: events %q", kind, bad, when, events)
				}
			}
			set(s, bad)
			check("at first", "100", true)
			set(s, "1")
			check("repaired", "1", false)
			set(s, "65535")
			check("the largest", "65535", false)
			set(s, bad)
			check("again", "65535", true)
			set(s, "7")
			check("repaired again", "7", false)
		}
	}
}

func TestRemovedWeightIsForgotten(t *testing.T) {
	s, _ := newStore(t)
	s.UpsertService(testService("web"))
	s.UpsertSlice(podSlice("web", "web-1", "10.0.0.1"))
	for name, step := range map[string]func(){
		"the Pod is gone":  func() { s.testPodWeight("pod-1", "5"); s.DeletePod(object("pod-1")) },
		"the Node is gone": func() { s.testNodeWeight(thisNode, "5"); s.DeleteNode(thisNode) },
		"the label is gone": func() {
			s.testPodWeight("pod-1", "5")
			s.UpsertPod(&metav1.ObjectMeta{Namespace: "default", Name: "pod-1"})
		},
		"the Node has none":    func() { s.testNodeWeight(thisNode, "5"); s.UpsertNode(asNode(&metav1.ObjectMeta{Name: thisNode})) },
		"after an invalid one": func() { s.testPodWeight("pod-1", "5"); s.testPodWeight("pod-1", "x"); s.DeletePod(object("pod-1")) },
	} {
		step()
		if got := weightsOf(s, "web"); got != "100" || len(s.Problems()) != 0 || len(s.weights) != 0 {
			t.Errorf("%s: weight %s, problems %v, %d weights; want 100 and nothing", name, got, s.Problems(), len(s.weights))
		}
	}
}

func TestWeightTouchesOnlyTheServicesConcerned(t *testing.T) {
	s, _ := newStore(t)
	for i := range 5 {
		name := fmt.Sprint("s", i)
		s.UpsertService(testService(name, clusterIP(fmt.Sprint("10.96.0.", i+1))))
		node := ""
		if i%2 == 1 {
			node = " remote"
		}
		s.UpsertSlice(podSlice(name, name+"-1", fmt.Sprintf("10.0.0.%d%s", i, node), fmt.Sprintf("10.0.0.1%d%s", i/2, node)))
	}
	s.Take()
	woken(s)
	for _, step := range []struct {
		name string
		do   func()
		want []string
	}{
		{"a Pod of one Service", func() { s.testPodWeight("pod-3", "1") }, []string{"s3"}},
		{"a Pod of two", func() { s.testPodWeight("pod-11", "1") }, []string{"s2", "s3"}},
		{"the same again", func() { s.testPodWeight("pod-11", "1") }, nil},
		{"a Pod of none", func() { s.testPodWeight("pod-77", "1") }, nil},
		{"of another namespace", func() {
			s.UpsertPod(&metav1.ObjectMeta{Namespace: "x", Name: "pod-3", Labels: map[string]string{keyWeight: "9"}})
		}, nil},
		{"a Node without weight", func() { s.UpsertNode(asNode(&metav1.ObjectMeta{Name: "node-b"})) }, nil},
		{"a Node", func() { s.testNodeWeight("node-b", "1") }, []string{"s1", "s3"}},
		{"a Pod whose weight changes to invalid", func() { s.testPodWeight("pod-3", "x") }, []string{"s3"}},
		{"a slice loses the Pod", func() { s.UpsertSlice(podSlice("s3", "s3-1", "10.0.0.9")) }, []string{"s3"}},
		{"which is no concern then", func() { s.testPodWeight("pod-3", "4") }, nil},
		{"a slice goes", func() { s.DeleteSlice(object("s2-1")) }, []string{"s2"}},
		{"and its Pod too", func() { s.testPodWeight("pod-2", "4") }, nil},
	} {
		step.do()
		var got []string
		for _, e := range s.dirty {
			got = append(got, e.obj.Name)
		}
		if slices.Sort(got); !slices.Equal(got, step.want) || woken(s) != (step.want != nil) {
			t.Errorf("%s: resolves %q again, want %q", step.name, got, step.want)
		}
		s.Take()
	}
}

// TestIndexEndsLikeAFreshOne replays random changes of slices.
func TestIndexEndsLikeAFreshOne(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 2))
		s, _ := newStore(t)
		s.testPodWeight("pod-1", "1") // from now on there is an index
		for range 100 {
			name := fmt.Sprint("e", rng.IntN(5))
			if rng.IntN(4) == 0 {
				s.DeleteSlice(object(name))
				continue
			}
			var eps []string
			for range rng.IntN(4) {
				eps = append(eps, fmt.Sprintf("10.0.0.%d%s", rng.IntN(6), []string{"", " remote"}[rng.IntN(2)]))
			}
			s.UpsertSlice(podSlice(fmt.Sprint("s", rng.IntN(3)), name, eps...))
			if rng.IntN(3) == 0 {
				s.Take()
			}
		}
		got := s.index
		s.index = nil
		s.buildIndex()
		count := func(index map[ref][]*entry) map[string]int {
			n := map[string]int{}
			for r, es := range index {
				for _, e := range es {
					n[fmt.Sprint(r, " ", e.obj)]++
				}
			}
			return n
		}
		if a, b := fmt.Sprint(count(got)), fmt.Sprint(count(s.index)); a != b {
			t.Errorf("seed %d:\ngot  %s\nwant %s", seed, a, b)
		}
	}
}

// TestAnyHistoryOfWeightsEndsLikeAFreshStart compares with a Store that sees only
// the last state.
func TestAnyHistoryOfWeightsEndsLikeAFreshStart(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 3))
		s, _ := newStore(t)
		last := map[string]func(*Store){} // by object: what makes it what it is
		do := func(object string, f func(*Store)) {
			f(s)
			last[object] = f
		}
		for i := range 3 {
			svc := testService(fmt.Sprint("s", i), clusterIP(fmt.Sprint("10.96.0.", i+1)))
			do(svc.Name, func(s *Store) { s.UpsertService(svc) })
		}
		for range 150 {
			n, w := rng.IntN(6), fmt.Sprint(rng.IntN(4)*50)
			switch rng.IntN(6) {
			case 0, 1:
				sl := podSlice(fmt.Sprint("s", n%3), fmt.Sprint("e", n), fmt.Sprint("10.0.0.", rng.IntN(6)), fmt.Sprintf("10.0.0.1%d remote", rng.IntN(6)))
				if rng.IntN(3) == 0 {
					sliceWeight(sl, w)
				}
				do(sl.Name, func(s *Store) { s.UpsertSlice(sl) })
			case 2:
				do(fmt.Sprint("e", n), func(s *Store) { s.DeleteSlice(object(fmt.Sprint("e", n))) })
			case 3:
				pod := fmt.Sprint("pod-", n+10*rng.IntN(2))
				do(pod, func(s *Store) { s.testPodWeight(pod, w) })
			case 4:
				pod := fmt.Sprint("pod-", n)
				do(pod, func(s *Store) { s.DeletePod(object(pod)) })
			case 5:
				node := []string{thisNode, "node-b"}[n%2]
				do(node, func(s *Store) { s.testNodeWeight(node, w) })
			}
			if rng.IntN(3) == 0 {
				s.Take()
			}
		}
		fresh, _ := newStore(t)
		for _, f := range last {
			f(fresh)
		}
		for i := range 3 {
			name := fmt.Sprint("s", i)
			if got, want := weightsOf(s, name), weightsOf(fresh, name); got != want {
				t.Errorf("seed %d: %s has weights %q, want %q", seed, name, got, want)
			}
		}
		if got, want := fmt.Sprint(s.Problems()), fmt.Sprint(fresh.Problems()); got != want {
			t.Errorf("seed %d: problems %s, want %s", seed, got, want)
		}
	}
}

func TestAllWeightsZeroIsReported(t *testing.T) {
	s, ev := newStore(t)
	s.UpsertService(testService("web", nodePort(30080), externalLocal))
	s.UpsertSlice(podSlice("web", "web-1", "10.0.0.1", "10.0.0.2 remote"))
	s.Take()
	s.testPodWeight("pod-1", "0")
	if got := weightsOf(s, "web"); got != "0 100" {
		t.Fatalf("weights %s, want 0 100", got)
	}
	const local = "default/web:http/TCP/IPv4: all endpoints on this node have weight 0: new connections find none"
	if ps := s.Problems(); len(ps) != 1 || ps[0].Reason != ReasonNoWeight || ps[0].Message() != local {
		t.Errorf("the local one: problems %v, want %s", ps, local)
	}
	if got := ev.take(); len(got) != 0 { // each node would write its own
		t.Errorf("the local one: events %q, want none", got)
	}
	s.testPodWeight("pod-2", "0")
	if got := weightsOf(s, "web"); got != "0 0" {
		t.Fatalf("weights %s, want 0 0", got)
	}
	want := []string{"web NoWeight default/web:http/TCP/IPv4: all endpoints have weight 0: new connections find none"}
	if got := ev.take(); !slices.Equal(got, want) {
		t.Errorf("all: events %q, want %q", got, want)
	}
	s.UpsertSlice(podSlice("web", "web-1", "10.0.0.1"))
	s.Take()
	if got := ev.take(); len(got) != 0 {
		t.Errorf("scaled while drained: events %q, want none", got)
	}
	s.DeletePod(object("pod-1"))
	s.Take()
	if got := s.Problems(); len(got) != 0 {
		t.Errorf("repaired: problems %v", got)
	}
}

func TestManifestsHaveWeights(t *testing.T) {
	f := newFolder(t)
	pod := func(labels string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata: {name: pod-1, labels: " + labels + "}\nspec: {nonsense: 7}\n"
	}
	node := "apiVersion: v1\nkind: Node\nmetadata: {name: node-b, annotations: {lbproxy.io/weight: \"20\"}}\n"
	eps := strings.Replace(sliceDoc("a", "a-1", "10.0.0.1"), "[10.0.0.1]", "[10.0.0.1], nodeName: node-b, targetRef: {kind: Pod, name: pod-1}", 1)
	check := func(what, want string, problems ...string) {
		t.Helper()
		f.check(what, []string{"a 10.96.0.1:80/TCP -> 1"}, problems)
		if got := weightsOf(f.s, "a"); got != want {
			t.Errorf("%s: weight %s, want %s", what, got, want)
		}
	}
	f.put("a.yaml", docs(serviceDoc("a", "10.96.0.1"), eps))
	check("none", "100")
	f.put("n.yaml", node)
	check("the Node's", "20")
	f.put("p.yaml", pod(`{lbproxy.io/weight: "30"}`))
	check("the Pod's", "30")
	f.put("p.yaml", pod(`{lbproxy.io/weight: heavy}`))
	check("invalid", "30", "Pod default/pod-1: metadata.labels[lbproxy.io/weight]", `Service default/a: Pod pod-1: metadata.labels[lbproxy.io/weight]: "heavy"`)
	f.put("p.yaml", pod(`{lbproxy.io/weight: 5}`)) // a number, where a label is text
	check("malformed: that object keeps what it said", "30", "Manifest p.yaml: document 1, Pod default/pod-1: json: cannot unmarshal",
		"Pod default/pod-1: metadata.labels", "Service default/a: Pod pod-1")
	f.put("p.yaml", pod(`{app: x}`))
	check("without label", "20")
	f.remove("n.yaml")
	check("the Node goes", "100")
}

// BenchmarkPodWeight measures one changed weight. It must cost the same whatever
// the number of Services.
func BenchmarkPodWeight(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := bigStore(n)
			i := 0
			for b.Loop() {
				s.testPodWeight(fmt.Sprintf("pod-%d-3", n/2), fmt.Sprint(1+i%2))
				if cs, _ := s.Take(); len(cs) != 1 {
					b.Fatalf("%d changes, want 1", len(cs))
				}
				i++
			}
		})
	}
}
