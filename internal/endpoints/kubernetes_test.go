// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	metafake "k8s.io/client-go/metadata/fake"
	k8stesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"

	"github.com/lbproxy/lbproxy/internal/lb"
)

func testNode(zone string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: thisNode, Labels: map[string]string{v1.LabelTopologyZone: zone}},
	}
}

// heavyNode is this node, with a weight.
func heavyNode(weight string) *metav1.PartialObjectMetadata {
	n := testNode("")
	n.Annotations = map[string]string{keyWeight: weight}
	return n
}

// ownNode is this node in zone.
func ownNode(zone string) *v1.Node { return asNode(&testNode(zone).ObjectMeta) }

func asNode(meta *metav1.ObjectMeta) *v1.Node { return &v1.Node{ObjectMeta: *meta} }

func testPod(name, weight string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{keyWeight: weight}},
	}
}

// clients are an API server's two.
type clients struct {
	*fake.Clientset
	meta *metafake.FakeMetadataClient
}

func newClients(t *testing.T, objects ...runtime.Object) clients {
	t.Helper()
	var typed, partial []runtime.Object
	for _, obj := range objects {
		if _, ok := obj.(*metav1.PartialObjectMetadata); ok {
			partial = append(partial, obj)
		} else {
			typed = append(typed, obj)
		}
	}
	scheme := metafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	return clients{fake.NewClientset(typed...), metafake.NewSimpleMetadataClient(scheme, partial...)}
}

func (c clients) run(ctx context.Context, s *Store) error {
	return RunKubernetes(ctx, c.Clientset, c.meta, s)
}

// watched returns clients whose watches are announced on the channel: the fake
// client does not replay what happened between list and watch.
func watched(t *testing.T, objects ...runtime.Object) (clients, func(except ...Source)) {
	t.Helper()
	c := newClients(t, objects...)
	started := make(chan string, 100)
	c.PrependWatchReactor("*", func(a k8stesting.Action) (bool, watch.Interface, error) {
		w, err := c.Tracker().Watch(a.GetResource(), a.GetNamespace())
		started <- a.GetResource().Resource
		return true, w, err
	})
	c.meta.PrependWatchReactor("*", func(a k8stesting.Action) (bool, watch.Interface, error) {
		w, err := c.meta.Tracker().Watch(a.GetResource(), a.GetNamespace())
		started <- a.GetResource().Resource
		return true, w, err
	})
	return c, func(except ...Source) {
		t.Helper()
		for range len(KubernetesSources) - len(except) {
			select {
			case <-started:
			case <-time.After(2 * time.Minute):
				t.Fatal("not every kind is watched")
			}
		}
	}
}

func TestKubernetesSourceFollowsTheAPIServer(t *testing.T) {
	ctx := t.Context()
	client, ready := watched(t, ownNode("zone-b"), testService("web"), testSlice("web", "web-1", "10.0.0.1 zone=zone-a", "10.0.0.2 zone=zone-b"),
		testService("headless", clusterIP(v1.ClusterIPNone)))
	s := New(testOptions(), discard(), nil)
	run(t, func(ctx context.Context) error { return client.run(ctx, s) })
	v := view{}
	v.await(t, s, "web 10.96.0.1:80/TCP -> 2!")
	ready()

	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(client.CoreV1().Nodes().Update(ctx, ownNode("zone-a"), metav1.UpdateOptions{}))
	v.await(t, s, "web 10.96.0.1:80/TCP -> 1!")
	must(client.DiscoveryV1().EndpointSlices("default").Create(ctx, testSlice("web", "web-2", "10.0.0.3 zone=zone-a"), metav1.CreateOptions{}))
	v.await(t, s, "web 10.96.0.1:80/TCP -> 1! 3!")
	must(client.DiscoveryV1().EndpointSlices("default").Update(ctx, testSlice("web", "web-2", "10.0.0.4 zone=zone-a"), metav1.UpdateOptions{}))
	v.await(t, s, "web 10.96.0.1:80/TCP -> 1! 4!")
	must(client.CoreV1().Services("default").Create(ctx, testService("b", clusterIP("10.96.0.2")), metav1.CreateOptions{}))
	v.await(t, s, "b 10.96.0.2:80/TCP -> reject", "web 10.96.0.1:80/TCP -> 1! 4!")
	must(nil, client.DiscoveryV1().EndpointSlices("default").Delete(ctx, "web-1", metav1.DeleteOptions{}))
	must(nil, client.CoreV1().Services("default").Delete(ctx, "b", metav1.DeleteOptions{}))
	v.await(t, s, "web 10.96.0.1:80/TCP -> 4!")
	must(nil, client.CoreV1().Nodes().Delete(ctx, thisNode, metav1.DeleteOptions{}))
	must(nil, client.CoreV1().Services("default").Delete(ctx, "web", metav1.DeleteOptions{}))
	v.await(t, s)
}

func TestKubernetesSourceWaitsForEveryList(t *testing.T) {
	client, _ := watched(t, testService("web"))
	refused := make(chan struct{}, 100)
	allow := make(chan struct{})
	client.PrependReactor("list", "endpointslices", func(k8stesting.Action) (bool, runtime.Object, error) {
		select {
		case <-allow:
			return false, nil, nil
		default:
			refused <- struct{}{}
			return true, nil, errors.New("the API server is down")
		}
	})
	s := New(testOptions(), discard(), nil)
	run(t, func(ctx context.Context) error { return client.run(ctx, s) })
	<-refused
	<-refused // client-go tries again
	if cs, full := s.Take(); cs != nil || full {
		t.Errorf("got %v, full %v before the slices were listed", cs, full)
	}
	close(allow)
	view{}.await(t, s, "web 10.96.0.1:80/TCP -> reject")
}

func TestWeightsFollowTheAPIServer(t *testing.T) {
	client, ready := watched(t, testService("web"), podSlice("web", "web-1", "10.0.0.1", "10.0.0.2"), testPod("pod-1", "5"))
	s := New(testOptions(), discard(), nil)
	run(t, func(ctx context.Context) error { return client.run(ctx, s) })
	await := func(want string) {
		t.Helper()
		deadline := time.After(2 * time.Minute)
		for {
			cs, _ := s.Take()
			for _, c := range cs {
				if len(c.Services) == 1 && showWeights(c.Services[0]) == want {
					return
				}
			}
			select {
			case <-s.Dirty():
			case <-deadline:
				t.Fatalf("weights never were %s", want)
			}
		}
	}
	await("5 100")
	ready()
	node := testNode("")
	node.Annotations = map[string]string{keyWeight: "9"}
	server := client.meta.Tracker()
	for _, step := range []struct {
		do   func() error
		want string
	}{
		{func() error { return server.Create(nodeResource, node, "") }, "5 9"},
		{func() error { return server.Update(podResource, testPod("pod-1", "6"), "default") }, "6 9"},
		{func() error { return server.Delete(podResource, "default", "pod-1") }, "9 9"},
		{func() error { return server.Delete(nodeResource, "", thisNode) }, "100 100"},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		await(step.want)
	}
}

// TestForbiddenPodsCostOnlyTheirWeights has the ClusterRole of an lbproxy that knew
// no weights, or an API server that does not answer.
func TestForbiddenPodsCostOnlyTheirWeights(t *testing.T) {
	for name, tc := range map[string]struct {
		answer func(ctx context.Context, allowed bool) (bool, error) // to a list of Pods
		wait   time.Duration                                         // until Services are published
		again  time.Duration                                         // at most, until Pods are known after they are allowed
		words  string
	}{
		"forbidden": {func(_ context.Context, allowed bool) (bool, error) {
			return !allowed, apierrors.NewForbidden(podResource.GroupResource(), "", errors.New("no rule"))
		}, 0, podsForbidden + 10*time.Second, "forbidden"},
		"failing": {func(_ context.Context, allowed bool) (bool, error) {
			return !allowed, errors.New("too many requests")
		}, podsPatience, 10 * time.Second, "were not listed within 10s"},
	} {
		t.Run(name, func(t *testing.T) {
			// One of the handlers limits itself by a global clock, which is not the bubble's.
			defer func(hs []utilruntime.ErrorHandler) { utilruntime.ErrorHandlers = hs }(utilruntime.ErrorHandlers)
			utilruntime.ErrorHandlers = nil
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				client := newClients(t, testService("web"), podSlice("web", "web-1", "10.0.0.1"), testPod("pod-1", "5"))
				var allowed atomic.Bool
				client.meta.PrependReactor("list", "pods", func(k8stesting.Action) (bool, runtime.Object, error) {
					handled, err := tc.answer(ctx, allowed.Load())
					return handled, nil, err
				})
				s := New(testOptions(), discard(), nil)
				done := make(chan error, 1)
				go func() { done <- client.run(ctx, s) }()
				<-time.After(tc.wait + time.Second - time.Nanosecond)
				synctest.Wait()
				if got := s.Problems(); len(got) != 1 || got[0].Reason != ReasonNotListed || !strings.Contains(got[0].Error(), tc.words) {
					t.Errorf("problems %v, want one of %s with %q", got, ReasonNotListed, tc.words)
				}
				cs, full := s.Take()
				if len(cs) != 1 || !full || showWeights(cs[0].Services[0]) != "100" {
					t.Fatalf("got %v, full %t; want web with default weights", cs, full)
				}
				allowed.Store(true)
				<-time.After(tc.again)
				synctest.Wait()
				if cs, _ = s.Take(); len(cs) != 1 || showWeights(cs[0].Services[0]) != "5" || len(s.Problems()) != 0 {
					t.Errorf("when Pods are allowed: got %v, problems %v; want weight 5 and none", cs, s.Problems())
				}
				cancel()
				if err := <-done; err != nil {
					t.Errorf("RunKubernetes: %v", err)
				}
			})
		})
	}
}

func TestSelectorsOfListsAndWatches(t *testing.T) {
	client := newClients(t)
	got := map[string]string{}
	for name, f := range map[string]*k8stesting.Fake{"": &client.Fake, " metadata": &client.meta.Fake} {
		f.PrependReactor("list", "*", func(a k8stesting.Action) (bool, runtime.Object, error) {
			o := a.(k8stesting.ListActionImpl).ListOptions
			got["list "+a.GetResource().Resource+name] = o.LabelSelector + " & " + o.FieldSelector
			return false, nil, nil
		})
		f.PrependWatchReactor("*", func(a k8stesting.Action) (bool, watch.Interface, error) {
			o := a.(k8stesting.WatchActionImpl).ListOptions
			got["watch "+a.GetResource().Resource+name] = o.LabelSelector + " & " + o.FieldSelector
			return false, nil, nil
		})
	}
	for _, lw := range []*cache.ListWatch{
		serviceWatch(client), sliceWatch(client), ownNodeWatch(client, thisNode), nodeWatch(client.meta), podWatch(client.meta),
	} {
		if _, err := lw.ListWithContext(t.Context(), metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
		w, err := lw.WatchWithContext(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		w.Stop()
	}
	for resource, want := range map[string]string{
		"services":       "!service.kubernetes.io/service-proxy-name & spec.clusterIP!=None",
		"endpointslices": "!service.kubernetes.io/headless & ",
		"nodes":          " & metadata.name=" + thisNode,
		"nodes metadata": " & ",
		"pods metadata":  "lbproxy.io/weight & ",
	} {
		for _, verb := range []string{"list ", "watch "} {
			if got[verb+resource] != want {
				t.Errorf("%s%s: got selectors %q, want %q", verb, resource, got[verb+resource], want)
			}
		}
	}
}

func TestRelistForgetsWhatIsGone(t *testing.T) {
	s := New(testOptions(), discard(), nil)
	services, sls, own, nodes, pods := newServiceSink(s), newSliceSink(s), newOwnNodeSink(s), newNodeSink(s), newPodSink(s)
	replace := func(k cache.ReflectorStore, objects ...any) {
		t.Helper()
		if err := k.Replace(objects, "1"); err != nil {
			t.Fatal(err)
		}
	}
	v := view{}
	replace(services, testService("a"), testService("b", clusterIP("10.96.0.2")))
	replace(sls, testSlice("a", "a-1", "10.0.0.1"), testSlice("a", "a-2", "10.0.0.2"))
	replace(own, ownNode("zone-a"))
	replace(nodes, heavyNode("9"))
	replace(pods, testPod("a-1", "7"), testPod("a-2", "x"))
	v.await(t, s, "a 10.96.0.1:80/TCP -> 1! 2!", "b 10.96.0.2:80/TCP -> reject")
	replace(services, testService("a"))
	replace(sls, testSlice("a", "a-2", "10.0.0.2"))
	replace(own)
	replace(nodes)
	replace(pods)
	v.await(t, s, "a 10.96.0.1:80/TCP -> 2!")
	if len(s.weights) != 0 || len(s.Problems()) != 0 {
		t.Errorf("weights %v, problems %v of Pods that are gone", s.weights, s.Problems())
	}
	if s.node.Known || s.node.Zone == "" {
		t.Errorf("got %+v of a Node that is gone, want the last zone", s.node)
	}
}

func TestReflectorHoldsOnlyParsedForms(t *testing.T) {
	s := New(testOptions(), discard(), nil)
	k := newSliceSink(s)
	tmp := cache.NewStore(cache.DeletionHandlingMetaNamespaceKeyFunc, cache.WithTransformer(k.Transformer()))
	if err := tmp.Add(testSlice("web", "web-1", "10.0.0.1")); err != nil {
		t.Fatal(err)
	}
	if keys := tmp.ListKeys(); len(keys) != 1 || keys[0] != "default/web-1" {
		t.Errorf("got keys %q, want default/web-1", keys)
	}
	if _, ok := tmp.List()[0].(*compact); !ok {
		t.Errorf("the reflector keeps a %T", tmp.List()[0])
	}
	if err := k.Replace(tmp.List(), "1"); err != nil {
		t.Fatal(err)
	}
	if len(s.slices) != 1 {
		t.Errorf("got %d slices, want 1", len(s.slices))
	}
	if err := newServiceSink(s).Add(testSlice("web", "web-1")); err == nil || !strings.Contains(err.Error(), "services: unexpected type") {
		t.Errorf("a slice among services: got error %v", err)
	}
	if err := k.Add(&discovery.EndpointSliceList{}); err == nil {
		t.Error("a list among slices: got no error")
	}
}

func TestEventsAreWrittenToTheServer(t *testing.T) {
	client := fake.NewClientset()
	created := make(chan *v1.Event, 10)
	client.PrependReactor("create", "events", func(a k8stesting.Action) (bool, runtime.Object, error) {
		e := a.(k8stesting.CreateAction).GetObject().(*v1.Event)
		created <- e
		return true, e, nil
	})
	r := NewEventReporter(client, thisNode, discard())
	r.ServiceEvent(object("web"), v1.EventTypeWarning, ReasonConflict, "50% is not a format")
	run(t, func(ctx context.Context) error {
		return r.Run(ctx, func(o lb.Object) string { return "uid-of-" + o.Name })
	})
	select {
	case e := <-created:
		o := e.InvolvedObject
		if o.Kind != "Service" || o.Namespace != "default" || o.Name != "web" || o.UID != "uid-of-web" || o.APIVersion != "v1" {
			t.Errorf("the event is about %v", o)
		}
		if e.Reason != ReasonConflict || e.Message != "50% is not a format" || e.Source.Host != thisNode || e.Source.Component != component {
			t.Errorf("got %v", e)
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("no event was created")
	}
}

func TestReporterNeverBlocks(t *testing.T) {
	l := newLogged()
	r := NewEventReporter(fake.NewClientset(), thisNode, logger(l))
	for range eventQueue + 1 {
		r.ServiceEvent(object("web"), v1.EventTypeWarning, ReasonConflict, "m")
	}
	l.await(t, "event dropped")
}

// TestStreamedListIsParsedAsItArrives plays an API server that streams its list,
// which the fake client cannot.
func TestStreamedListIsParsedAsItArrives(t *testing.T) {
	o := testOptions()
	o.Sources = []Source{Services}
	s := New(o, discard(), nil)
	w := watch.NewFakeWithChanSize(10, false)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			t.Error("listed, not streamed")
			return &v1.ServiceList{}, nil
		},
		WatchFuncWithContext: func(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
			if o.SendInitialEvents == nil || !*o.SendInitialEvents {
				t.Error("the watch does not ask for what exists")
			}
			return w, nil
		},
	}
	w.Add(testService("a"))
	w.Add(testService("b", clusterIP("10.96.0.2")))
	w.Action(watch.Bookmark, &v1.Service{ObjectMeta: metav1.ObjectMeta{
		ResourceVersion: "9", Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"},
	}})
	r := cache.NewReflectorWithOptions(lw, &v1.Service{}, newServiceSink(s), cache.ReflectorOptions{Name: "test"})
	run(t, func(ctx context.Context) error {
		r.RunWithContext(ctx)
		return nil
	})
	v := view{}
	v.await(t, s, "a 10.96.0.1:80/TCP -> reject", "b 10.96.0.2:80/TCP -> reject")
	w.Delete(testService("a"))
	v.await(t, s, "b 10.96.0.2:80/TCP -> reject")
}
