// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"context"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"testing"
	"weak"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	k8stesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestDrainedEndpointsAndPolicies has some endpoints of weight 0: what takes new
// connections, and what becomes of them when nothing does.
func TestDrainedEndpointsAndPolicies(t *testing.T) {
	external := []func(*v1.Service){nodePort(30080), externalLocal}
	internal := []func(*v1.Service){internalLocal}
	for _, tc := range []struct {
		name           string
		edit           []func(*v1.Service)
		endpoints      []string
		drained        string // Pods
		cluster, local string // the backends with weight 0 too
		empty          lb.Verdict
	}{
		{"the only one of this zone", nil, []string{"10.0.0.1 zone=zone-a", "10.0.0.2 remote zone=zone-b"}, "1", "1! 2", "", lb.Reject},
		{"all of this zone", nil, []string{"10.0.0.1 zone=zone-a", "10.0.0.2 remote zone=zone-b", "10.0.0.3 zone=zone-a"}, "1 3", "1! 2 3!", "", lb.Reject},
		{"one of this zone's two", nil, []string{"10.0.0.1 zone=zone-a", "10.0.0.2 remote zone=zone-b", "10.0.0.3 zone=zone-a"}, "1", "1! 3!", "", lb.Reject},
		{"one of another zone", nil, []string{"10.0.0.1 zone=zone-a", "10.0.0.2 remote zone=zone-b"}, "2", "1!", "", lb.Reject},
		{"all of all zones", nil, []string{"10.0.0.1 zone=zone-a", "10.0.0.2 remote zone=zone-b"}, "1 2", "1! 2", "", lb.Reject},
		{"one without hint is still ready", nil, []string{"10.0.0.1 zone=zone-a", "10.0.0.2 remote"}, "2", "1! 2", "", lb.Reject},
		{
			"the only one of this node: zone", nil,
			[]string{"10.0.0.1 here=node-a zone=zone-a", "10.0.0.2 remote here=node-b zone=zone-b", "10.0.0.3 remote here=node-b zone=zone-a"},
			"1", "1! 3", "", lb.Reject,
		},
		{
			"all of this node and zone", nil,
			[]string{"10.0.0.1 here=node-a zone=zone-a", "10.0.0.2 remote here=node-b zone=zone-b", "10.0.0.3 remote here=node-b zone=zone-a"},
			"1 3", "1! 2 3", "", lb.Reject,
		},
		{"ready ones drained: terminating ones are not used", nil, []string{"10.0.0.1", "10.0.0.2 terminating"}, "1", "1!", "", lb.Reject},
		{"terminating one drained", nil, []string{"10.0.0.2 terminating", "10.0.0.3 terminating"}, "2", "2! 3!", "", lb.Reject},

		{"external local, all drained, none elsewhere", external, []string{"10.0.0.1"}, "1", "1!", "1!", lb.Reject},
		{"external local, all drained everywhere", external, []string{"10.0.0.1", "10.0.0.2 remote"}, "1 2", "1! 2", "1!", lb.Reject},
		{"external local, drained, one elsewhere", external, []string{"10.0.0.1", "10.0.0.2 remote"}, "1", "1! 2", "1!", lb.Drop},
		{"external local, drained, one elsewhere terminates", external, []string{"10.0.0.1", "10.0.0.2 remote terminating"}, "1", "1!", "1!", lb.Drop},
		{"external local, drained, one elsewhere is not ready", external, []string{"10.0.0.1", "10.0.0.2 remote notready"}, "1", "1!", "1!", lb.Reject},
		{"external local, none here, one elsewhere drained", external, []string{"10.0.0.2 remote"}, "2", "2", "", lb.Reject},
		{"external local, drained, one here terminates", external, []string{"10.0.0.1", "10.0.0.2 terminating"}, "1", "1!", "1!", lb.Reject},
		{"external local, hints do not matter", external, []string{"10.0.0.1 zone=zone-a", "10.0.0.2 remote zone=zone-b"}, "1", "1! 2", "1!", lb.Drop},
		{"internal local, all drained, none elsewhere", internal, []string{"10.0.0.1"}, "1", "", "1!", lb.Reject},
		{"internal local, drained, one elsewhere", internal, []string{"10.0.0.1", "10.0.0.2 remote"}, "1", "", "1!", lb.Drop},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _ := newStore(t)
			s.UpsertNode(asNode(&testNode(thisZone).ObjectMeta))
			s.UpsertService(testService("web", tc.edit...))
			s.UpsertSlice(podSlice("web", "web-1", tc.endpoints...))
			for pod := range strings.FieldsSeq(tc.drained) {
				s.testPodWeight("pod-"+pod, "0")
			}
			s.Take()
			got := s.entries[object("web")].published[0]
			for _, p := range []struct {
				name string
				pool lb.Pool
				want string
			}{{"cluster", got.Cluster, tc.cluster}, {"local", got.Local, tc.local}} {
				pool := ""
				if len(p.pool.Backends) > 0 {
					pool = show(p.pool)
				}
				if pool != p.want {
					t.Errorf("endpoints %q, drained %s: %s pool %q, want %q", tc.endpoints, tc.drained, p.name, pool, p.want)
				}
			}
			if got.Local.Empty != tc.empty || got.Cluster.Empty != lb.Reject {
				t.Errorf("endpoints %q, drained %s: verdict cluster %s, local %s; want %s, %s",
					tc.endpoints, tc.drained, got.Cluster.Empty, got.Local.Empty, lb.Reject, tc.empty)
			}
		})
	}
}

// TestAnotherObjectOfTheNameKeepsNoWeight replaces an object without its deletion
// being seen: a list after the watch was interrupted shows only the new one.
func TestAnotherObjectOfTheNameKeepsNoWeight(t *testing.T) {
	set := map[string]func(s *Store, uid types.UID, value string){
		KindPod: func(s *Store, uid types.UID, v string) {
			pod := testPod("pod-1", v)
			pod.UID = uid
			if err := newPodSink(s).Replace([]any{pod}, "1"); err != nil {
				t.Fatal(err)
			}
		},
		KindNode: func(s *Store, uid types.UID, v string) {
			node := testNode("")
			node.UID, node.Annotations = uid, map[string]string{keyWeight: v}
			if err := newNodeSink(s).Replace([]any{node}, "1"); err != nil {
				t.Fatal(err)
			}
		},
		KindEndpointSlice: func(s *Store, uid types.UID, v string) {
			sl := sliceWeight(podSlice("web", "web-1", "10.0.0.1"), v)
			sl.UID = uid
			if err := newSliceSink(s).Replace([]any{sl}, "1"); err != nil {
				t.Fatal(err)
			}
		},
	}
	for kind, set := range set {
		s, _ := newStore(t)
		s.UpsertService(testService("web"))
		s.UpsertSlice(podSlice("web", "web-1", "10.0.0.1"))
		for _, step := range []struct {
			uid         types.UID
			value, want string
		}{
			{"a", "0", "0"}, {"a", "bad", "0"}, {"a", "worse", "0"}, // the same object keeps it
			{"b", "worse", "100"},            // another does not, though it says the same
			{"b", "7", "7"}, {"c", "7", "7"}, // nothing changes but the object
			{"c", "bad", "7"}, {"b", "bad", "100"}, // and that is remembered
		} {
			set(s, step.uid, step.value)
			if got := weightsOf(s, "web"); got != step.want {
				t.Errorf("%s %s of weight %q: %s, want %s", kind, step.uid, step.value, got, step.want)
			}
		}
	}
}

// onRecord calls itself for each record.
type onRecord func()

func (onRecord) Enabled(context.Context, slog.Level) bool { return true }

func (f onRecord) Handle(context.Context, slog.Record) error {
	f()
	return nil
}

func (f onRecord) WithAttrs([]slog.Attr) slog.Handler { return f }

func (f onRecord) WithGroup(string) slog.Handler { return f }

// TestPodsListedAtTheLastMomentAreNotGivenUp lets the time be over while a list of
// Pods is taken over: when it has been stored, and its problems are being logged.
func TestPodsListedAtTheLastMomentAreNotGivenUp(t *testing.T) {
	var s *Store
	logged := 0
	s = New(testOptions(), logger(onRecord(func() {
		logged++
		s.giveUpLatePods()
	})), nil)
	if err := newPodSink(s).Replace([]any{testPod("pod-1", "bad")}, "1"); err != nil {
		t.Fatal(err)
	}
	if got, want := reasons(s.Problems()), []string{ReasonInvalidWeight}; logged != 1 || !slices.Equal(got, want) {
		t.Errorf("problems %v, %d logged; want %v alone", got, logged, want)
	}
}

func TestNodesAreNotWatchedWhenTheirWeightsDoNotCount(t *testing.T) {
	client, ready := watched(t, testService("web"), testSlice("web", "web-1", "10.0.0.1 zone=zone-a", "10.0.0.2 zone=zone-b"))
	selectors := make(chan string, 100)
	note := func(a k8stesting.Action, o metav1.ListOptions) {
		selectors <- a.GetVerb() + " " + o.LabelSelector + " & " + o.FieldSelector
	}
	node := ownNode(thisZone)
	node.Annotations = map[string]string{keyWeight: "7"}
	for _, f := range []*k8stesting.Fake{&client.Fake, &client.meta.Fake} {
		f.PrependReactor("list", "nodes", func(a k8stesting.Action) (bool, apiruntime.Object, error) {
			note(a, a.(k8stesting.ListActionImpl).ListOptions)
			return false, nil, nil
		})
		f.PrependWatchReactor("nodes", func(a k8stesting.Action) (bool, watch.Interface, error) {
			note(a, a.(k8stesting.WatchActionImpl).ListOptions)
			return false, nil, nil
		})
	}
	o := testOptions()
	o.IgnoreNodeWeights = true
	s := New(o, discard(), nil)
	run(t, func(ctx context.Context) error { return client.run(ctx, s) })
	v := view{}
	v.await(t, s, "web 10.96.0.1:80/TCP -> 1! 2!")
	ready(Nodes)
	if _, err := client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	v.await(t, s, "web 10.96.0.1:80/TCP -> 1!")
	if got := weightsOf(s, "web"); got != "100" {
		t.Errorf("weight %s: that of the own Node counts, want 100", got)
	}
	close(selectors)
	var got []string
	for text := range selectors {
		got = append(got, text)
	}
	want := []string{"list  & metadata.name=" + thisNode, "watch  & metadata.name=" + thisNode}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("Nodes: got %q, want %q", got, want)
	}
}

// TestNothingOfMetadataStaysButWhatIsRead looks whether a Node's metadata can be
// collected when the reflector has stored it, and when the Store has taken it over.
func TestNothingOfMetadataStaysButWhatIsRead(t *testing.T) {
	s, _ := newStore(t)
	for _, source := range []struct {
		sink   cache.TransformingStore
		object func() *metav1.PartialObjectMetadata
	}{
		{newNodeSink(s), func() *metav1.PartialObjectMetadata { return heavyNode("9") }},
		{newPodSink(s), func() *metav1.PartialObjectMetadata { return testPod("pod-1", "7") }},
	} {
		tmp := cache.NewStore(cache.DeletionHandlingMetaNamespaceKeyFunc, cache.WithTransformer(source.sink.Transformer()))
		meta, fields := addManaged(t, tmp, source.object)
		check := func(when string) {
			t.Helper()
			runtime.GC()
			if meta.Value() != nil || fields.Value() != nil {
				t.Errorf("%T: %s: metadata is held: %t, managed fields: %t", source.sink, when, meta.Value() != nil, fields.Value() != nil)
			}
		}
		check("listed")
		if err := source.sink.Replace(tmp.List(), "1"); err != nil {
			t.Fatal(err)
		}
		check("stored")
		runtime.KeepAlive(tmp)
	}
	if len(s.weights) != 2 {
		t.Errorf("%d weights, want 2", len(s.weights))
	}
	runtime.KeepAlive(s)
}

// addManaged adds what object returns, with managed fields, to tmp. It returns where
// the object and the fields are.
//
//go:noinline
func addManaged(t *testing.T, tmp cache.Store, object func() *metav1.PartialObjectMetadata) (
	weak.Pointer[metav1.PartialObjectMetadata], weak.Pointer[metav1.ManagedFieldsEntry],
) {
	t.Helper()
	obj := object()
	obj.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet"}, {Manager: "kubectl"}}
	if err := tmp.Add(obj); err != nil {
		t.Fatal(err)
	}
	return weak.Make(obj), weak.Make(&obj.ManagedFields[0])
}
