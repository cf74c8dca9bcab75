// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// fullNode has everything of a Node that matters, and more.
func fullNode() *v1.Node {
	n := ownNode(thisZone)
	n.Spec.PodCIDR = "10.244.7.0/24"
	n.Spec.PodCIDRs = []string{"10.244.7.0/24", "fd00:7::1/64"}
	n.Status.Addresses = []v1.NodeAddress{
		{Type: v1.NodeHostName, Address: "10.9.9.9"},
		{Type: v1.NodeExternalIP, Address: "198.51.100.1"},
		{Type: v1.NodeInternalIP, Address: "172.30.0.11"},
		{Type: v1.NodeInternalIP, Address: "172.30.0.12"},
		{Type: v1.NodeInternalDNS, Address: "node-a.example"},
		{Type: v1.NodeInternalIP, Address: "2001:db8::11"},
		{Type: v1.NodeExternalIP, Address: "172.30.0.11"},
		{Type: v1.NodeInternalIP, Address: "nonsense"},
	}
	return n
}

func wantNode() lb.Node {
	return lb.Node{
		Known: true, Zone: thisZone, Addrs: addrs("172.30.0.11", "2001:db8::11"),
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.7.0/24"), netip.MustParsePrefix("fd00:7::/64")},
	}
}

func TestWhatANodeSays(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(*v1.Node)
		want func(*lb.Node)
	}{
		{"everything", func(*v1.Node) {}, func(*lb.Node) {}},
		{"the one pod range", func(n *v1.Node) { n.Spec.PodCIDRs = nil }, func(n *lb.Node) { n.PodCIDRs = n.PodCIDRs[:1] }},
		{"no pod range", func(n *v1.Node) { n.Spec.PodCIDRs, n.Spec.PodCIDR = nil, "" }, func(n *lb.Node) { n.PodCIDRs = nil }},
		{"a range that is none", func(n *v1.Node) { n.Spec.PodCIDRs[0] = "x" }, func(n *lb.Node) { n.PodCIDRs = n.PodCIDRs[1:] }},
		{"no zone", func(n *v1.Node) { n.Labels = nil }, func(n *lb.Node) { n.Zone = "" }},
		{"no addresses", func(n *v1.Node) { n.Status.Addresses = nil }, func(n *lb.Node) { n.Addrs = nil }},
		{"an external address of a family that has no internal one", func(n *v1.Node) {
			n.Status.Addresses = append(n.Status.Addresses[:4:4], v1.NodeAddress{Type: v1.NodeExternalIP, Address: "2001:db8::99"},
				v1.NodeAddress{Type: v1.NodeExternalIP, Address: "2001:db8::9a"})
		}, func(n *lb.Node) { n.Addrs = addrs("172.30.0.11", "2001:db8::99") }},
		{"external addresses only", func(n *v1.Node) { n.Status.Addresses = n.Status.Addresses[:2] }, func(n *lb.Node) { n.Addrs = addrs("198.51.100.1") }},
		{"deletion", func(n *v1.Node) { n.DeletionTimestamp = &metav1.Time{} }, func(n *lb.Node) { n.Leaving = true }},
		{"another taint", func(n *v1.Node) { n.Spec.Taints = []v1.Taint{{Key: v1.TaintNodeUnschedulable}} }, func(*lb.Node) {}},
		{"the autoscaler's taint", func(n *v1.Node) { n.Spec.Taints = []v1.Taint{{Key: "x"}, {Key: taintLeaving}} }, func(n *lb.Node) { n.Leaving = true }},
	} {
		in, want := fullNode(), wantNode()
		tc.edit(in)
		tc.want(&want)
		if got := describe(in); !got.Equal(want) {
			t.Errorf("%s: got %+v, want %+v", tc.name, got, want)
		}
	}
}

// TestDeletedNodeKeepsWhatItSaid: the machine is still there. A Node that comes back
// says one thing after the other.
func TestDeletedNodeKeepsWhatItSaid(t *testing.T) {
	s, _ := newStore(t)
	s.UpsertNode(fullNode())
	edited := func(edit func(*v1.Node)) *v1.Node {
		n := fullNode()
		edit(n)
		return n
	}
	bare := func(n *v1.Node) { n.Labels, n.Spec, n.Status = nil, v1.NodeSpec{}, v1.NodeStatus{} }
	moved := func(n *v1.Node) { n.Labels[v1.LabelTopologyZone] = "z" }
	for _, step := range []struct {
		name string
		do   func()
		want func(*lb.Node)
	}{
		{"it goes", func() { s.DeleteNode(thisNode) }, func(n *lb.Node) { n.Known = false }},
		{"it is not there", func() { s.replaceOwnNode(nil) }, func(n *lb.Node) { n.Known = false }},
		{"it comes back bare", func() { s.UpsertNode(edited(bare)) }, func(*lb.Node) {}},
		{"it goes again", func() { s.DeleteNode(thisNode) }, func(n *lb.Node) { n.Known = false }},
		{"it comes back without ranges", func() {
			s.UpsertNode(edited(func(n *v1.Node) { moved(n); n.Spec = v1.NodeSpec{} }))
		}, func(n *lb.Node) { n.Zone = "z" }},
		{"that it says no zone is an update", func() { s.UpsertNode(edited(func(n *v1.Node) { n.Labels, n.Spec = nil, v1.NodeSpec{} })) },
			func(n *lb.Node) { n.Zone = "" }},
		{"its ranges come", func() { s.UpsertNode(edited(moved)) }, func(n *lb.Node) { n.Zone = "z" }},
		{"and go", func() { s.UpsertNode(edited(func(n *v1.Node) { n.Spec = v1.NodeSpec{} })) }, func(n *lb.Node) { n.PodCIDRs = nil }},
		{"its addresses go", func() { s.UpsertNode(edited(func(n *v1.Node) { n.Status = v1.NodeStatus{} })) }, func(n *lb.Node) { n.Addrs = nil }},
	} {
		step.do()
		want := wantNode()
		step.want(&want)
		if got := s.Node(); !got.Equal(want) {
			t.Errorf("%s: got %+v, want %+v", step.name, got, want)
		}
	}
}

// told remembers what OnNode was told.
type told struct {
	mu   sync.Mutex
	news chan struct{}
	all  []lb.Node
}

func newTold() *told { return &told{news: make(chan struct{}, 1000)} }

func (x *told) onNode(n lb.Node) {
	x.mu.Lock()
	x.all = append(x.all, n)
	x.mu.Unlock()
	x.news <- struct{}{}
}

// take returns the zones that were told since the last call; "-" for no Node.
func (x *told) take() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var words []string
	for _, n := range x.all {
		w := n.Zone
		if !n.Known {
			w = "-"
		} else if n.Leaving {
			w += "!"
		}
		words = append(words, w)
	}
	x.all = nil
	return strings.Join(words, " ")
}

func TestOnNodeIsToldAtFirstAndOfChanges(t *testing.T) {
	x := newTold()
	var s *Store
	o := testOptions()
	o.OnNode = func(n lb.Node) {
		if got := s.Node(); !got.Equal(n) { // which needs the lock
			t.Errorf("Node() is %+v when %+v is told", got, n)
		}
		x.onNode(n)
	}
	s = New(o, discard(), nil)
	own := newOwnNodeSink(s)
	replace := func(nodes ...any) {
		if err := own.Replace(nodes, "1"); err != nil {
			t.Fatal(err)
		}
	}
	leaving := ownNode("a")
	leaving.Spec.Taints = []v1.Taint{{Key: taintLeaving}}
	other := ownNode("x")
	other.Name = "node-b"
	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"another source", func() { s.MarkSynced(Services); s.MarkSynced(Nodes) }, ""},
		{"there is no Node", func() { replace() }, "-"},
		{"there still is none", func() { replace() }, ""},
		{"it comes", func() { s.UpsertNode(ownNode("a")) }, "a"},
		{"the same again", func() { s.UpsertNode(ownNode("a")); replace(ownNode("a")) }, ""},
		{"another Node", func() { s.UpsertNode(other); replace(other, ownNode("a")) }, ""},
		{"it is about to go", func() { s.UpsertNode(leaving) }, "a!"},
		{"another zone", func() { replace(ownNode("b")) }, "b"},
		{"another Node goes", func() { s.DeleteNode("node-b") }, ""},
		{"it goes", func() { s.DeleteNode(thisNode) }, "-"},
		{"it comes back in a list", func() { replace(ownNode("b")) }, "b"},
		{"and is not in the next", func() { replace(other) }, "-"},
	} {
		step.do()
		if got := x.take(); got != step.want {
			t.Errorf("%s: told %q, want %q", step.name, got, step.want)
		}
	}
}

// TestOnNodeIsToldTheLastNewsLast changes the Node from many goroutines.
func TestOnNodeIsToldTheLastNewsLast(t *testing.T) {
	var last lb.Node
	calls := 0
	o := testOptions()
	var inside atomic.Int32
	o.OnNode = func(n lb.Node) {
		if inside.Add(1) > 1 {
			t.Error("two goroutines tell at once")
		}
		last, calls = n, calls+1
		for range 100 {
			runtime.Gosched()
		}
		inside.Add(-1)
	}
	s := New(o, discard(), nil)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				s.UpsertNode(ownNode(fmt.Sprint(g, "-", i)))
			}
		})
	}
	wg.Wait()
	if got := s.Node(); !last.Equal(got) || calls == 0 {
		t.Errorf("told %+v last, in %d calls; the Store has %+v", last, calls, got)
	}
}

func TestOwnNodeFollowsTheAPIServer(t *testing.T) {
	other := ownNode("x")
	other.Name = "node-b"
	client, ready := watched(t, testService("web"), fullNode(), other)
	x := newTold()
	o := testOptions()
	o.OnNode = x.onNode
	s := New(o, discard(), nil)
	run(t, func(ctx context.Context) error { return client.run(ctx, s) })
	await := func(want string) {
		t.Helper()
		select {
		case <-x.news:
		case <-time.After(2 * time.Minute):
			t.Fatalf("OnNode was not told %q", want)
		}
		if got := x.take(); got != want {
			t.Errorf("OnNode was told %q, want %q", got, want)
		}
	}
	await(thisZone)
	if got := s.Node(); !got.Equal(wantNode()) {
		t.Errorf("got %+v, want %+v", got, wantNode())
	}
	ready()
	nodes := client.CoreV1().Nodes()
	if _, err := nodes.Update(t.Context(), ownNode("c"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	await("c")
	if err := nodes.Delete(t.Context(), thisNode, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await("-")
}

func TestOwnNodeInManifests(t *testing.T) {
	x := newTold()
	o := testOptions()
	o.Sources, o.OnNode = []Source{Manifests}, x.onNode
	f := &folder{t: t, dir: t.TempDir(), v: view{}, log: newLogged()}
	f.s = New(o, logger(f.log), nil)
	f.m = newManifests(f.dir, f.s, logger(f.log))
	scan := func(what, want string) {
		t.Helper()
		f.check(what, nil, nil)
		if got := x.take(); got != want {
			t.Errorf("%s: told %q, want %q", what, got, want)
		}
	}
	scan("nothing yet", "")
	f.s.MarkSynced(Manifests)
	scan("there is none", "-")
	doc := func(zone string) string {
		return "apiVersion: v1\nkind: Node\nmetadata: {name: node-a, labels: {topology.kubernetes.io/zone: " + zone + "}}\n" +
			"spec: {podCIDRs: [10.244.7.0/24, 'fd00:7::/64']}\nstatus: {addresses: [" +
			"{type: ExternalIP, address: 198.51.100.1}, {type: InternalIP, address: 172.30.0.11}, {type: InternalIP, address: '2001:db8::11'}]}\n"
	}
	f.put("n.yaml", doc(thisZone))
	scan("it comes", thisZone)
	if got := f.s.Node(); !got.Equal(wantNode()) {
		t.Errorf("got %+v, want %+v", got, wantNode())
	}
	f.put("n.yaml", doc("b"))
	scan("it changes", "b")
	f.remove("n.yaml")
	scan("it goes", "-")

	f.put("n.yaml", doc(thisZone))
	f.s = New(o, logger(f.log), nil)
	f.m = newManifests(f.dir, f.s, logger(f.log))
	scan("it is there at the start", thisZone)
	f.s.MarkSynced(Manifests)
	scan("and was told", "")
}
