// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
	k8stesting "k8s.io/client-go/testing"
)

// outage is an API server that can be away. When it is back, watches have expired.
type outage struct {
	mu      sync.Mutex
	away    bool
	listed  map[string]bool // resources that were, since it came back: others' watches have expired
	watches []watch.Interface
}

// over puts o between client-go and a fake API server.
func (o *outage) over(f *k8stesting.Fake, tracker k8stesting.ObjectTracker) {
	f.PrependReactor("list", "*", func(a k8stesting.Action) (bool, runtime.Object, error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.away {
			return true, nil, fmt.Errorf("dial tcp: %w", syscall.ECONNREFUSED)
		}
		o.listed[a.GetResource().Resource] = true
		return false, nil, nil
	})
	f.PrependWatchReactor("*", func(a k8stesting.Action) (bool, watch.Interface, error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		switch {
		case o.away:
			return true, nil, fmt.Errorf("dial tcp: %w", syscall.ECONNREFUSED)
		case !o.listed[a.GetResource().Resource]:
			return true, nil, apierrors.NewResourceExpired("too old resource version")
		}
		w, err := tracker.Watch(a.GetResource(), a.GetNamespace())
		o.watches = append(o.watches, w)
		return true, w, err
	})
}

// begin ends all watches, as a server that dies.
func (o *outage) begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.away, o.listed = true, map[string]bool{}
	for _, w := range o.watches {
		w.Stop()
	}
	o.watches = nil
}

// end lets the server answer again, without any history.
func (o *outage) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.away = false
}

// TestAPIServerGoneForTenMinutes: all that time everything stays as it was. When it is
// back, the changes that were made meanwhile are known within seconds, although each of
// its watches has expired.
func TestAPIServerGoneForTenMinutes(t *testing.T) {
	// One of the handlers limits itself by a global clock, which is not the bubble's.
	defer func(hs []utilruntime.ErrorHandler) { utilruntime.ErrorHandlers = hs }(utilruntime.ErrorHandlers)
	utilruntime.ErrorHandlers = nil
	synctest.Test(t, goneForTenMinutes)
}

func goneForTenMinutes(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	client := newClients(t, ownNode(thisZone), testService("web"), testSlice("web", "web-1", "10.0.0.1"),
		testService("old", clusterIP("10.96.0.2")), testSlice("old", "old-1", "10.0.0.2"))
	o := &outage{listed: map[string]bool{}}
	o.over(&client.Fake, client.Tracker())
	o.over(&client.meta.Fake, client.meta.Tracker())
	s := New(testOptions(), discard(), nil)
	done := make(chan error, 1)
	go func() { done <- client.run(ctx, s) }()
	v := view{}
	await := func(what string, d time.Duration, want ...string) {
		t.Helper()
		<-time.After(d)
		synctest.Wait()
		v.take(s)
		if !slices.Equal(v.lines(), want) {
			t.Errorf("%s: got %q, want %q", what, v.lines(), want)
		}
	}
	before := []string{"old 10.96.0.2:80/TCP -> 2!", "web 10.96.0.1:80/TCP -> 1!"}
	await("at first", time.Second, before...)

	o.begin()
	_, errService := client.CoreV1().Services("default").Create(ctx, testService("new", clusterIP("10.96.0.3")), metav1.CreateOptions{})
	_, errSlice := client.DiscoveryV1().EndpointSlices("default").Update(ctx, testSlice("web", "web-1", "10.0.0.4"), metav1.UpdateOptions{})
	errDelete := client.CoreV1().Services("default").Delete(ctx, "old", metav1.DeleteOptions{})
	if errService != nil || errSlice != nil || errDelete != nil {
		t.Fatal(errService, errSlice, errDelete)
	}
	for minute := range 10 {
		await(fmt.Sprintf("away for %d minutes", minute+1), time.Minute, before...)
	}

	o.end()
	// Twice the longest wait between attempts: one that finds the server back and its watch
	// expired, one that lists.
	await("back", 17*time.Second, "new 10.96.0.3:80/TCP -> reject", "web 10.96.0.1:80/TCP -> 4!")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("RunKubernetes: %v", err)
	}
}
