// SPDX-License-Identifier: Apache-2.0

//go:build root

package cluster

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/sys/unix"
)

const host = "172.30.0.10" // the API server's, in a namespace of its own

// newNetns makes a network namespace that has only the address host, on lo,
// and no route out. It ends with the test and its processes.
func newNetns(t *testing.T) *os.File {
	t.Helper()
	type result struct {
		ns  *os.File
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{nil, fmt.Errorf("unshare: %w", err)}
			return
		}
		for _, args := range [][]string{{"link", "set", "lo", "up"}, {"addr", "add", host + "/32", "dev", "lo"}} {
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				made <- result{nil, fmt.Errorf("ip %v: %w: %s", args, err, out)}
				return
			}
		}
		ns, err := os.Open("/proc/thread-self/ns/net")
		made <- result{ns, err}
	}()
	r := <-made
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _ = r.ns.Close() })
	return r.ns
}

// within calls f on a thread that is in ns.
func within[T any](ns *os.File, f func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked, as above
		var r result
		if r.err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); r.err == nil {
			r.v, r.err = f()
		}
		done <- r
	}()
	r := <-done
	return r.v, r.err
}

// A cluster runs in a namespace of the caller's, reachable only through Dial,
// and its servers end when the process that started them is gone.
func TestNetns(t *testing.T) {
	ns := newNetns(t)
	c := newCluster(t, Options{
		BindAddr: netip.MustParseAddr(host),
		Start: func(cmd *exec.Cmd) error {
			_, err := within(ns, func() (struct{}, error) { return struct{}{}, cmd.Start() })
			return err
		},
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return within(ns, func() (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, network, addr) })
		},
	})
	if want := "https://" + host + ":6443"; c.AdminConfig().Host != want {
		t.Errorf("got %s, want %s", c.AdminConfig().Host, want)
	}
	svc, err := c.PutService(t.Context(), NewService("web", corev1.ServiceTypeNodePort, Port("", corev1.ProtocolTCP, 80, 8080)))
	if err != nil {
		t.Fatal(err)
	}
	checkAllocated(t, svc)
	checkPublished(t, c)
	for _, p := range []*process{c.apiserver, c.etcd} {
		same, err := sameNetns(p.cmd.Process.Pid, ns)
		if err != nil || !same {
			t.Errorf("%s in the namespace: got %v, %v, want true", p.name, same, err)
		}
		_ = p.stdin.Close() // what the kernel does when we die
		select {
		case <-p.done:
		case <-time.After(stopGrace):
			t.Errorf("%s: still running without its parent", p.name)
		}
	}
}

// checkPublished waits for the endpoint of default/kubernetes, which the API
// server writes soon after it is ready.
func checkPublished(t *testing.T, c *Cluster) {
	t.Helper()
	err := c.poll(t.Context(), "default/kubernetes", func(ctx context.Context) error {
		s, err := c.Client().DiscoveryV1().EndpointSlices("default").Get(ctx, "kubernetes", metav1.GetOptions{})
		if err == nil && (len(s.Endpoints) != 1 || s.Endpoints[0].Addresses[0] != host) {
			t.Errorf("got endpoints %v, want %s", s.Endpoints, host)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func sameNetns(pid int, ns *os.File) (bool, error) {
	var a, b syscall.Stat_t
	if err := syscall.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &a); err != nil {
		return false, fmt.Errorf("stat: %w", err)
	}
	if err := syscall.Fstat(int(ns.Fd()), &b); err != nil {
		return false, fmt.Errorf("fstat: %w", err)
	}
	return a.Ino == b.Ino, nil
}
