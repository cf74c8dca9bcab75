// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// Source is where objects come from. Nothing is published before every source
// has listed once: a partial list would take away what still exists.
type Source string

// The sources.
const (
	Services       Source = "services"
	EndpointSlices Source = "endpointslices"
	OwnNode        Source = "node"  // the Node of this name
	Nodes          Source = "nodes" // the weights of all; not there if they do not count
	Pods           Source = "pods"  // optional, see giveUpPods
	Manifests      Source = "manifests"
)

// KubernetesSources are those that RunKubernetes feeds.
var KubernetesSources = []Source{Services, EndpointSlices, OwnNode, Nodes, Pods}

// Reporter tells the owner of a Service about it. It must not block and is called
// without locks held; eventtype is Normal or Warning, reason a CamelCase word.
type Reporter interface {
	ServiceEvent(obj lb.Object, eventtype, reason, message string)
}

// Store holds what is known of Services, EndpointSlices, Pods and Nodes, in a
// compact form, and says which Services changed. All methods may be called from
// any goroutine; objects handed in are not kept.
type Store struct {
	opts     Options                 // at first
	current  atomic.Pointer[Options] // opts, as SetOptions has changed them
	relist   chan struct{}           // capacity 1: objects are to be read again
	log      *slog.Logger
	reporter Reporter
	wake     chan struct{}

	mu       sync.Mutex
	waiting  map[Source]bool
	needed   chan struct{} // closed when none or only Pods is waited for
	taken    bool          // the first Take has happened
	started  int64         // nanoseconds since 1970
	node     lb.Node       // the own one
	lastNode lb.Node       // what it said before it was deleted, as far as it has not been said since
	entries  map[lb.Object]*entry
	slices   map[lb.Object]*entry // by the slice's name
	weights  weights
	index    map[ref][]*entry // by the Pods and Nodes of their slices; nil: there was no weight yet
	claims   *claims
	dirty    []*entry
	since    time.Time // when the first event came in that made one of them dirty; zero: no Take may have it yet
	problems tracker
	fresh    []Problem   // to be reported when the lock is released
	scratch  []candidate // memory for resolve
	tallies  Tallies

	wideFrom  int    // as the constant; tests have another
	weighings uint64 // how often weights has changed

	announced bool // OnNode was told, or will be
	nodeNews  bool // OnNode is to be told
	telling   bool // some goroutine does
}

// entry is everything about one Service name. It exists while there is a Service,
// a slice of it, or something published that is to be withdrawn.
type entry struct {
	obj       lb.Object
	svc       *service // nil when only slices are known
	slices    []*slice // sorted by name
	published []*lb.Service
	health    lb.HealthCheck // published, too
	wide      *wide          // nil: it is not
	triggered int64          // when the first change since the last Take came about, see slice; 0: not known
	dirty     bool           // is in Store.dirty
}

// New returns an empty Store. reporter may be nil.
func New(o Options, log *slog.Logger, reporter Reporter) *Store {
	if o.Sources == nil {
		o.Sources = KubernetesSources
	}
	s := &Store{
		opts:     o,
		relist:   make(chan struct{}, 1),
		log:      log,
		reporter: reporter,
		wake:     make(chan struct{}, 1),
		waiting:  map[Source]bool{},
		needed:   make(chan struct{}),
		started:  time.Now().UnixNano(),
		wideFrom: wideFrom,
		entries:  map[lb.Object]*entry{},
		slices:   map[lb.Object]*entry{},
		weights:  weights{},
		claims:   newClaims(),
		problems: tracker{},
	}
	s.current.Store(&o)
	for _, src := range o.Sources {
		s.waiting[src] = src != Nodes || !o.IgnoreNodeWeights
	}
	maps.DeleteFunc(s.waiting, func(_ Source, waits bool) bool { return !waits })
	s.noteNeeded()
	return s
}

// UpsertService stores svc in place of what had its name.
func (s *Store) UpsertService(svc *v1.Service) {
	s.locked(func() { s.putService(parseService(svc, s.options())) })
}

// DeleteService forgets a Service. One that is not there is no error.
func (s *Store) DeleteService(obj lb.Object) { s.locked(func() { s.dropService(obj) }) }

// UpsertSlice stores sl in place of what had its name.
func (s *Store) UpsertSlice(sl *discovery.EndpointSlice) {
	s.locked(func() { s.putSlice(parseSlice(sl, s.options())) })
}

// DeleteSlice forgets an EndpointSlice. One that is not there is no error.
func (s *Store) DeleteSlice(obj lb.Object) { s.locked(func() { s.dropSlice(obj) }) }

// UpsertNode takes over the weight of a Node, and of the own one what lb.Node has.
func (s *Store) UpsertNode(n *v1.Node) {
	s.locked(func() { s.putNode(parseNode(n, s.options())) })
}

// DeleteNode forgets a Node. One that is not there is no error.
func (s *Store) DeleteNode(name string) { s.locked(func() { s.putNode(newNode(name)) }) }

// UpsertPod takes over the weight of a Pod. Nothing else of a Pod matters.
func (s *Store) UpsertPod(pod *metav1.ObjectMeta) { s.locked(func() { s.putPod(parsePod(pod)) }) }

// DeletePod forgets a Pod. One that is not there is no error.
func (s *Store) DeletePod(obj lb.Object) { s.locked(func() { s.dropPod(obj) }) }

// MarkSynced says that src has listed everything it has.
func (s *Store) MarkSynced(src Source) { s.locked(func() { s.markSynced(src) }) }

// markSynced is MarkSynced with s.mu held.
func (s *Store) markSynced(src Source) {
	if !s.waiting[src] {
		return
	}
	delete(s.waiting, src)
	if (src == OwnNode || src == Manifests) && !s.announced {
		s.announceNode() // there is no Node of our name
	}
	s.noteNeeded()
	if len(s.waiting) == 0 {
		s.tell()
	}
}

// noteNeeded closes s.needed when its time has come.
func (s *Store) noteNeeded() {
	if len(s.waiting) > 1 || len(s.waiting) == 1 && !s.waiting[Pods] {
		return
	}
	select {
	case <-s.needed:
	default:
		close(s.needed)
	}
}

// ownerPods has the problem that Pods are not known.
var ownerPods = owner{KindPod, lb.Object{Name: "*"}}

// giveUpPods reports that Pods cannot be listed, and goes on as if there were none
// with a weight: weights are not worth a node without Services. What was known
// stays, and the list is used when it comes.
// s.mu is held.
func (s *Store) giveUpPods(err error) {
	err = fmt.Errorf("%w: weights of Pods are not known", err)
	s.setProblems(ownerPods, []Problem{{Kind: KindPod, Object: ownerPods.object, Reason: ReasonNotListed, Err: err}})
	s.markSynced(Pods)
}

// Dirty has a value when Take may have something. Its capacity is 1: a burst of
// events is one wake-up.
func (s *Store) Dirty() <-chan struct{} { return s.wake }

// Since returns when the oldest event came in that no Take has taken up; zero: there is
// none.
func (s *Store) Since() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.since
}

// Take returns the Services that differ from what it returned before, sorted by
// name. It returns nothing until every source has listed. The first result after
// that is everything there is, and full: what it does not name does not exist.
func (s *Store) Take() (changes []lb.Change, full bool) {
	s.locked(func() {
		if len(s.waiting) > 0 {
			return
		}
		s.tallies.Services.Pending, s.tallies.Slices.Pending = 0, 0
		full = !s.taken
		s.taken = true
		dirty := s.dirty
		s.dirty, s.since = nil, time.Time{}
		slices.SortFunc(dirty, func(a, b *entry) int { return compareObjects(a.obj, b.obj) })
		for _, e := range dirty {
			e.dirty = false
			if s.publish(e) {
				changes = append(changes, e.change())
			}
			e.triggered = 0
			if e.svc == nil && len(e.slices) == 0 {
				delete(s.entries, e.obj)
			}
		}
	})
	return changes, full
}

// change returns what is published of e.
func (e *entry) change() lb.Change {
	c := lb.Change{Object: e.obj, Services: e.published, Health: e.health}
	if e.triggered != 0 {
		c.Triggered = time.Unix(0, e.triggered)
	}
	return c
}

// Problems returns what is wrong now, sorted by object.
func (s *Store) Problems() []Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.problems.all()
}

// Tally counts events of one kind of object.
type Tally struct {
	Total   uint64
	Pending uint64 // that changed something, and that no Take has taken up
}

// Tallies are those of Services and of EndpointSlices.
type Tallies struct{ Services, Slices Tally }

// Tallies returns how many events there have been. An object that is listed again is
// an event, as in kube-proxy.
func (s *Store) Tallies() Tallies {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tallies
}

// UID returns the UID of a Service, or "" if it has none or is not there.
func (s *Store) UID(obj lb.Object) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[obj]; e != nil && e.svc != nil {
		return e.svc.uid
	}
	return ""
}

// publish resolves e and tells whether the result is another one than before.
func (s *Store) publish(e *entry) bool {
	var next []*lb.Service
	var ps []Problem
	if e.svc != nil {
		next, ps = s.resolve(e)
	} else {
		e.wide = nil
	}
	s.setProblems(owner{KindService, e.obj}, ps)
	same := 0
	for i, svc := range next {
		j, found := slices.BinarySearchFunc(e.published, svc.Name, func(p *lb.Service, n lb.ServiceName) int { return p.Name.Compare(n) })
		if found && equalServices(e.published[j], svc) {
			next[i] = e.published[j] // what did not change stays the same value
			same++
		}
	}
	health := healthCheck(e.svc, e.slices, s.weights)
	if same == len(next) && same == len(e.published) && health == e.health {
		return false
	}
	e.published, e.health = next, health
	return true
}

// resolve resolves e, which has a Service.
func (s *Store) resolve(e *entry) ([]*lb.Service, []Problem) {
	at := place{
		node: s.node, weights: s.weights, scratch: s.scratch,
		lost: func(fe lb.Frontend) *Problem { return s.lost(e, fe) },
	}
	if isWide(e.slices, s.wideFrom) {
		at.wide = e.wide.begin(e.slices, s.weighings)
		defer at.wide.end(e.slices)
	}
	e.wide = at.wide
	defer func() { s.scratch = at.scratch }()
	return at.resolve(e.svc, e.slices)
}

// lost returns the problem of a frontend that an older Service has.
func (s *Store) lost(e *entry, fe lb.Frontend) *Problem {
	h := s.claims.holder[fe.FrontendKey]
	if h == e || h == nil {
		return nil
	}
	return &Problem{
		Kind: KindService, Object: e.obj, Field: fmt.Sprintf("%s %s", fe.Type, fe.FrontendKey), Reason: ReasonConflict,
		Err: fmt.Errorf("is served by Service %s, which has precedence", h.obj),
	}
}

// setProblems makes ps the problems of o; those that are new will be reported.
// s.mu is held.
func (s *Store) setProblems(o owner, ps []Problem) {
	s.fresh = append(s.fresh, s.problems.set(o, ps)...)
}

// locked runs f under the lock, and reports what it found when the lock is free.
func (s *Store) locked(f func()) {
	s.mu.Lock()
	f()
	fresh, news := s.fresh, s.nodeNews
	s.fresh = nil
	s.mu.Unlock()
	if news {
		s.tellNode()
	}
	for _, p := range fresh {
		s.log.Warn("not served as asked", "kind", p.Kind, "object", p.Object, "field", p.Field, "reason", p.Reason, "error", p.Err)
		if p.Kind == KindService && !p.Quiet && s.reporter != nil {
			s.reporter.ServiceEvent(p.Object, v1.EventTypeWarning, p.Reason, p.Message())
		}
	}
}

// tell tells the consumer of an event. s.mu is held.
func (s *Store) tell() {
	if s.since.IsZero() {
		s.since = time.Now()
	}
	s.Nudge()
}

// Nudge makes Dirty have a value.
func (s *Store) Nudge() {
	select {
	case s.wake <- struct{}{}:
	default: // it has not yet looked
	}
}

func compareObjects(a, b lb.Object) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

func compareSlices(a, b *slice) int { return compareObjects(a.obj, b.obj) }

func equalServices(a, b *lb.Service) bool {
	return a.Name == b.Name && a.Balance == b.Balance && a.Health == b.Health && slices.Equal(a.Frontends, b.Frontends) &&
		equalPools(&a.Cluster, &b.Cluster) && equalPools(&a.Local, &b.Local) && a.Terms.Equal(b.Terms)
}

func equalPools(a, b *lb.Pool) bool {
	return a.Empty == b.Empty && slices.Equal(a.Backends, b.Backends)
}
