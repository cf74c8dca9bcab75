// SPDX-License-Identifier: Apache-2.0

//go:build root

package lab

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"
)

// TestMoreNodes: every pod reaches every other one, and processes are in their own node's
// cgroup.
func TestMoreNodes(t *testing.T) {
	pods := []PodSpec{{Name: "far", Node: Node2}}
	nodes := []string{Node, MoreNode(0), MoreNode(1)}
	for i, node := range nodes {
		pods = append(pods, PodSpec{Name: fmt.Sprintf("pod%d", i), Node: node}, PodSpec{Name: fmt.Sprintf("free%d", i), Node: node, Unhooked: true})
	}
	l, ctx := newLab(t, Options{Name: "more", Nodes: 2, Pods: pods}), testContext(t)
	for _, p := range pods {
		serve(t, l.Host(p.Name), AnyAddr(7000), TCP)
	}
	for _, from := range append([]PodSpec{{Name: Outside}, {Name: Node}, {Name: MoreNode(0)}, {Name: MoreNode(1)}}, pods...) {
		for _, p := range pods {
			for _, a := range l.Host(p.Name).Addrs() {
				to := netip.AddrPortFrom(a, 7000)
				wantOK(t, from.Name+" to "+p.Name, to, p.Name, l.Host(from.Name).Dial(ctx, Request{Proto: TCP, To: to}))
			}
		}
	}
	for i, node := range nodes {
		root := l.Host(node).CgroupRoot()
		for name, want := range map[string]string{node: root, fmt.Sprintf("pod%d", i): root, fmt.Sprintf("free%d", i): l.Host(Outside).CgroupRoot()} {
			if got := l.Host(name).CgroupRoot(); got != want {
				t.Errorf("%s is in cgroup %s, want %s", name, got, want)
			}
		}
		var out bytes.Buffer
		cmd := l.Host(node).Command(ctx, "stat", "-f", "-c", "%T", l.Host(node).BPFFS())
		cmd.Stdout, cmd.Stderr = &out, os.Stderr
		if err := l.Host(node).Start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil || out.String() != "bpf_fs\n" {
			t.Errorf("%s: pins would be in a file system of type %q, %v", node, out.String(), err)
		}
		for _, other := range nodes[:i] {
			if l.Host(other).CgroupRoot() == root || l.Host(other).BPFFS() == l.Host(node).BPFFS() {
				t.Errorf("%s and %s share a cgroup or pins", other, node)
			}
		}
	}
}

// TestDialPaced: exchanges begin when they are due, also while others wait in vain.
func TestDialPaced(t *testing.T) {
	l, ctx := newLab(t, Options{Name: "paced", Pods: []PodSpec{{Name: "client"}, {Name: "server"}}}), testContext(t)
	serve(t, l.Host("server"), AnyAddr(7000), TCP)
	const n, every, wait = 20, 10 * time.Millisecond, 2 * time.Second
	for _, tc := range []struct {
		to   netip.AddrPort
		kind Kind
	}{
		{netip.AddrPortFrom(l.Host("server").Addr4, 7000), OK},
		{netip.AddrPortFrom(l.Host("server").Addr4, 7001), Refused},
		{netip.MustParseAddrPort("10.96.7.7:80"), Timeout}, // of nobody: outside forwards nothing
	} {
		start := time.Now().Add(50 * time.Millisecond)
		got, err := l.Host("client").DialPaced(ctx, Request{Proto: TCP, To: tc.to, Timeout: wait}, start, every, n)
		if err != nil || len(got) != n {
			t.Fatalf("%s: %d exchanges, want %d: %v", tc.to, len(got), n, err)
		}
		for i, p := range got {
			if want := start.Add(time.Duration(i) * every); !p.Due.Equal(want) || p.Begun.Before(want) {
				t.Errorf("%s: exchange %d was due at %s and begun at %s, want %s", tc.to, i, p.Due, p.Begun, want)
			}
			if p.Kind != tc.kind {
				t.Errorf("%s: exchange %d: %s %s, want %s", tc.to, i, p.Kind, p.Err, tc.kind)
			}
		}
		if took := time.Since(start); tc.kind == Timeout && took >= 2*wait {
			t.Errorf("%d exchanges that wait in vain took %s: they waited for each other", n, took)
		}
	}
}

// TestAddRange: any address of a range answers, to who is on the node and to its pods.
func TestAddRange(t *testing.T) {
	l, ctx := newLab(t, Options{Name: "range", Pods: []PodSpec{{Name: "client"}, {Name: "server"}}}), testContext(t)
	serve(t, l.Host("server"), AnyAddr(7000), TCP)
	all := netip.MustParsePrefix("10.245.0.0/16")
	if err := l.Host("server").AddRange(all); err != nil {
		t.Fatal(err)
	}
	if err := l.Host(Outside).Route(all, NodeAddr4); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{Node, "client", Outside} {
		for _, a := range []string{"10.245.0.1:7000", "10.245.255.254:7000"} {
			to := netip.MustParseAddrPort(a)
			wantOK(t, from+" to "+a, to, "server", l.Host(from).Dial(ctx, Request{Proto: TCP, To: to}))
		}
	}
	if err := l.Host(Node).AddRange(all); err == nil {
		t.Error("a node may have a range")
	}
}
