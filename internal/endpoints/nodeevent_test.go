// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestEventReferences: a Service is named by its UID, a Node by its name.
func TestEventReferences(t *testing.T) {
	r := NewEventReporter(fake.NewClientset(), "n1", slog.New(slog.DiscardHandler))
	r.NodeEvent(v1.EventTypeNormal, "Starting", "hello")
	r.ServiceEvent(lb.Object{Namespace: "shop", Name: "web"}, v1.EventTypeWarning, "Bad", "bye")
	uid := func(obj lb.Object) string { return "uid of " + obj.String() }
	for _, want := range []struct {
		ref                  v1.ObjectReference
		typ, reason, message string
	}{
		{v1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: "n1", UID: "n1"}, "Normal", "Starting", "hello"},
		{v1.ObjectReference{Kind: "Service", APIVersion: "v1", Namespace: "shop", Name: "web", UID: "uid of shop/web"}, "Warning", "Bad", "bye"},
	} {
		e := <-r.queue
		if got := e.reference(uid); *got != want.ref || e.typ != want.typ || e.reason != want.reason || e.message != want.message {
			t.Errorf("got %+v of %+v, want %+v", e, got, want)
		}
	}
}

// TestLongValuesAreCut has the longest annotations that an API server takes, and more
// problems than one Event has room for.
func TestLongValuesAreCut(t *testing.T) {
	long := strings.Repeat("\u20ac0", 50_000) // 200 KB; a cut at 64 bytes would be inside a character
	log := newLogged()
	ev := &events{}
	o := testOptions()
	o.DefaultAlgorithm = "random"
	s := New(o, logger(log), ev)
	for i, a := range serviceAnnotations { // one has room for a dozen problems only
		svc := testService(fmt.Sprint("web-", i), clusterIP(fmt.Sprint("10.96.1.", i)))
		svc.Annotations = map[string]string{a.key: long}
		s.UpsertService(svc)
	}
	s.UpsertService(testService("web"))
	s.UpsertSlice(sliceWeight(testSlice("web", "web-1", "10.0.0.1"), long))
	s.testNodeWeight(thisNode, long)
	for _, src := range KubernetesSources {
		s.MarkSynced(src)
	}
	s.Take()
	const most = 400
	for _, p := range s.Problems() {
		text := p.Error()
		if tells := strings.Contains(text, long[:60]+"...") || strings.Contains(text, " bytes of headers, at most "); len(text) > most || !tells {
			t.Errorf("%s %s has %d bytes: %.100s", p.Kind, p.Field, len(text), text)
		}
	}
	for _, text := range ev.take() {
		if len(text) > most {
			t.Errorf("an Event has %d bytes: %.100s", len(text), text)
		}
	}
	if got, want := len(s.Problems()), len(serviceAnnotations)+2; got != want || len(log.records) != want {
		t.Errorf("%d problems, %d lines in the log, want %d", got, len(log.records), want)
	}
	for len(log.records) > 0 {
		if text := <-log.records; len(text) > most {
			t.Errorf("a line in the log has %d bytes: %.100s", len(text), text)
		}
	}
	later := testService("web")
	later.Annotations = map[string]string{annotationSlowStart: strings.Repeat("0", 200_000) + "50ms"} // a duration
	_, ps := Resolve(later, nil, lb.Node{}, o)
	if len(ps) != 1 || len(ps[0].Error()) > most {
		t.Errorf("a long number: %.200v", fmt.Sprint(ps))
	}
}

func TestMessagesOfEventsAreBounded(t *testing.T) {
	r := NewEventReporter(fake.NewClientset(), "n1", slog.New(slog.DiscardHandler))
	for _, n := range []int{1023, 1024, 1025, 200_000} {
		r.ServiceEvent(lb.Object{Namespace: "shop", Name: "web"}, v1.EventTypeWarning, "Bad", strings.Repeat("x", n))
		got := (<-r.queue).message
		if len(got) != min(n, 1024) || strings.HasSuffix(got, "...") != (n > 1024) {
			t.Errorf("of %d bytes: %d, ending in %s", n, len(got), got[len(got)-5:])
		}
	}
}
