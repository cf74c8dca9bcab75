// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"context"
	"fmt"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
)

// The selectors of what is watched. Source: Kubernetes 1.37 cmd/kube-proxy.
const (
	serviceLabels = "!" + labelProxyName
	serviceFields = "spec.clusterIP!=None"
	sliceLabels   = "!" + labelHeadless
)

// How long the start waits for Pods when all else has been listed, and how long
// until they are asked for again where that is forbidden.
const (
	podsPatience  = 10 * time.Second
	podsForbidden = time.Minute
)

// The resources of which only metadata is read.
var (
	nodeResource = v1.SchemeGroupVersion.WithResource("nodes")
	podResource  = v1.SchemeGroupVersion.WithResource("pods")
)

// RunKubernetes keeps s equal to what the API server has until ctx is done: the
// Services that are for us, their EndpointSlices, the own Node, the metadata of all
// Nodes unless their weights are ignored, and that of Pods with a weight. Listing,
// watching, their backoff and the log of their errors, by klog, are client-go's; s
// itself is the only cache. When s is told other options everything is listed anew;
// until it is, s keeps what it has.
func RunKubernetes(ctx context.Context, client kubernetes.Interface, meta metadata.Interface, s *Store) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.awaitPods(ctx) })
	for ctx.Err() == nil {
		until, stop := context.WithCancel(ctx)
		go func() {
			select {
			case <-until.Done():
			case <-s.relist:
				stop()
			}
		}()
		follow(until, client, meta, s)
		stop()
	}
	wg.Wait()
	return nil
}

// follow keeps s equal to what the API server has, by the options that s has now, until
// ctx is done.
func follow(ctx context.Context, client kubernetes.Interface, meta metadata.Interface, s *Store) {
	partial := &metav1.PartialObjectMetadata{}
	reflectors := []*cache.Reflector{
		reflector(client, serviceWatch(client), newServiceSink(s), Services, &v1.Service{}),
		reflector(client, sliceWatch(client), newSliceSink(s), EndpointSlices, nil), // of NewClient's they are compact
		reflector(client, ownNodeWatch(client, s.opts.NodeName), newOwnNodeSink(s), OwnNode, &v1.Node{}),
		reflector(meta, optional(podWatch(meta), s), newPodSink(s), Pods, partial),
	}
	if !s.options().IgnoreNodeWeights {
		reflectors = append(reflectors, reflector(meta, nodeWatch(meta), newNodeSink(s), Nodes, partial))
	}
	var wg sync.WaitGroup
	for _, r := range reflectors {
		wg.Go(func() { r.RunWithContext(ctx) })
	}
	wg.Wait()
}

// awaitPods gives Pods up when all else was listed podsPatience ago.
func (s *Store) awaitPods(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-s.needed:
	}
	select {
	case <-ctx.Done():
		return
	case <-time.After(podsPatience):
	}
	s.giveUpLatePods()
}

// giveUpLatePods gives Pods up unless they have been listed.
func (s *Store) giveUpLatePods() {
	s.locked(func() {
		if s.waiting[Pods] {
			s.giveUpPods(fmt.Errorf("were not listed within %s", podsPatience))
		}
	})
}

// optional makes lw, of Pods, give up where a list is forbidden: in a cluster with
// the ClusterRole of an older lbproxy. It is tried again every podsForbidden.
func optional(lw *cache.ListWatch, s *Store) *cache.ListWatch {
	list := lw.ListWithContextFunc
	lw.ListWithContextFunc = func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		got, err := list(ctx, o)
		if apierrors.IsForbidden(err) {
			s.locked(func() { s.giveUpPods(err) })
			select {
			case <-ctx.Done():
			case <-time.After(podsForbidden):
			}
		}
		return got, err
	}
	return lw
}

// reflector makes one of objects like example; nil: of any type.
func reflector(client any, lw *cache.ListWatch, to cache.ReflectorStore, src Source, example runtime.Object) *cache.Reflector {
	return cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lw, client), example, to,
		cache.ReflectorOptions{Name: string(src), TypeDescription: string(src), Backoff: newBackoff()})
}

// newBackoff returns how long a reflector waits between attempts to reach the API
// server: 0.2 s to 0.4 s at first, 4 s to 8 s in the end. Client-go's own goes to
// 60 s, for which changes would not come after an outage. A watch that has expired in
// the meantime costs one more wait.
func newBackoff() *wait.Backoff {
	return &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 10, Cap: 4 * time.Second}
}

// resource is a typed client's half that a ListWatch needs.
type resource[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

func listWatch[L runtime.Object](r resource[L], byLabel, byField string) *cache.ListWatch {
	narrow := func(o metav1.ListOptions) metav1.ListOptions {
		o.LabelSelector, o.FieldSelector = byLabel, byField
		return o
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return r.List(ctx, narrow(o))
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return r.Watch(ctx, narrow(o))
		},
	}
}

func serviceWatch(c kubernetes.Interface) *cache.ListWatch {
	return listWatch(c.CoreV1().Services(metav1.NamespaceAll), serviceLabels, serviceFields)
}

func sliceWatch(c kubernetes.Interface) *cache.ListWatch {
	return listWatch(c.DiscoveryV1().EndpointSlices(metav1.NamespaceAll), sliceLabels, "")
}

// ownNodeWatch sees the Node of the given name, with all it has.
func ownNodeWatch(c kubernetes.Interface, name string) *cache.ListWatch {
	return listWatch(c.CoreV1().Nodes(), "", fields.OneTermEqualSelector(metav1.ObjectNameField, name).String())
}

// nodeWatch sees all Nodes for their weights: annotations cannot be selected.
func nodeWatch(c metadata.Interface) *cache.ListWatch {
	return listWatch(c.Resource(nodeResource), "", "")
}

// podWatch sees Pods with a weight only: another one costs nothing.
func podWatch(c metadata.Interface) *cache.ListWatch {
	return listWatch(c.Resource(podResource).Namespace(metav1.NamespaceAll), keyWeight, "")
}

// compact stands for an API object in a reflector's temporary store: only the
// parsed form and the name live until the list is complete. What
// else an object has, its managed fields above all, is let go at once.
type compact struct {
	*metav1.ObjectMeta
	namespace, name string
	version         string            // of the object, where it is an event of a watch
	marks           map[string]string // annotations of a bookmark
	parsed          any
}

// noMeta answers what nobody asks of a compact.
var noMeta = &metav1.ObjectMeta{}

// GetNamespace returns the object's namespace.
func (c *compact) GetNamespace() string { return c.namespace }

// GetName returns the object's name.
func (c *compact) GetName() string { return c.name }

// GetResourceVersion returns where a watch is to go on.
func (c *compact) GetResourceVersion() string { return c.version }

// GetAnnotations returns what a bookmark marks.
func (c *compact) GetAnnotations() map[string]string { return c.marks }

// GetObjectKind says nothing: nobody who has a compact asks.
func (c *compact) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject returns c, which never changes.
func (c *compact) DeepCopyObject() runtime.Object { return c }

// parse makes a compact of an API object of src.
func (s *Store) parse(src Source, in any) (*compact, error) {
	switch obj := in.(type) {
	case *compact:
		return obj, nil
	case *v1.Service:
		return &compact{ObjectMeta: noMeta, namespace: obj.Namespace, name: obj.Name, parsed: parseService(obj, s.options())}, nil
	case *discovery.EndpointSlice:
		return compactSlice(obj, s.options()), nil
	case *v1.Node:
		return &compact{ObjectMeta: noMeta, name: obj.Name, parsed: parseNode(obj, s.options())}, nil
	case *metav1.PartialObjectMetadata:
		if src == Pods {
			return &compact{ObjectMeta: noMeta, namespace: obj.Namespace, name: obj.Name, parsed: parsePod(&obj.ObjectMeta)}, nil
		}
		return &compact{ObjectMeta: noMeta, name: obj.Name, parsed: weighNode(&obj.ObjectMeta, s.options())}, nil
	}
	return nil, fmt.Errorf("unexpected type %T", in)
}

// sink is what a reflector writes to: a Store's half for one kind, whose parsed
// form is P. Its functions are called with the Store's lock held.
type sink[P any] struct {
	store   *Store
	source  Source
	put     func(P)
	drop    func(P)
	replace func([]P)
}

var _ cache.TransformingStore = (*sink[*service])(nil)

func newServiceSink(s *Store) *sink[*service] {
	drop := func(svc *service) { s.dropService(svc.obj) }
	return &sink[*service]{s, Services, s.putService, drop, s.replaceServices}
}

func newSliceSink(s *Store) *sink[*slice] {
	drop := func(sl *slice) { s.dropSlice(sl.obj) }
	return &sink[*slice]{s, EndpointSlices, s.putSlice, drop, s.replaceSlices}
}

func newOwnNodeSink(s *Store) *sink[*node] {
	drop := func(n *node) { s.putOwnNode(newNode(n.name)) }
	return &sink[*node]{s, OwnNode, s.putOwnNode, drop, s.replaceOwnNode}
}

func newNodeSink(s *Store) *sink[*weighed] {
	drop := func(w *weighed) { s.putWeighed(newNode(w.obj.Name).weighed) }
	return &sink[*weighed]{s, Nodes, s.putWeighed, drop, s.replaceNodeWeights}
}

func newPodSink(s *Store) *sink[*weighed] {
	drop := func(w *weighed) { s.dropPod(w.obj) }
	return &sink[*weighed]{s, Pods, s.putPod, drop, s.replacePods}
}

func (k *sink[P]) parsed(in any) (p P, err error) {
	c, err := k.store.parse(k.source, in)
	if err != nil {
		return p, fmt.Errorf("%s: %w", k.source, err)
	}
	p, ok := c.parsed.(P)
	if !ok {
		return p, fmt.Errorf("%s: unexpected type %T", k.source, in)
	}
	return p, nil
}

func (k *sink[P]) apply(in any, f func(P)) error {
	p, err := k.parsed(in)
	if err == nil {
		k.store.locked(func() { f(p) })
	}
	return err
}

// Add stores a new object.
func (k *sink[P]) Add(in any) error { return k.apply(in, k.put) }

// Update stores a changed object.
func (k *sink[P]) Update(in any) error { return k.apply(in, k.put) }

// Delete forgets an object.
func (k *sink[P]) Delete(in any) error { return k.apply(in, k.drop) }

// Replace makes in everything there is; the source has listed then.
func (k *sink[P]) Replace(in []any, _ string) error {
	list := make([]P, 0, len(in))
	for i, obj := range in {
		p, err := k.parsed(obj)
		if err != nil {
			return err
		}
		list = append(list, p)
		in[i] = nil // the list is ours: let go of what was read
	}
	k.store.locked(func() {
		k.replace(list)
		k.store.markSynced(k.source)
	})
	return nil
}

// Resync has nothing to do.
func (k *sink[P]) Resync() error { return nil }

// Transformer makes the reflector's own stores hold parsed forms.
func (k *sink[P]) Transformer() cache.TransformFunc {
	return func(in any) (any, error) { return k.store.parse(k.source, in) }
}
