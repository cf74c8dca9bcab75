// SPDX-License-Identifier: Apache-2.0

package fakeapi

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

const (
	acceptWhole   = "application/vnd.kubernetes.protobuf,application/json"
	acceptPartial = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1," + acceptWhole
	servicesPath  = "/api/v1/services"
)

// start serves objects.
func start(t *testing.T, objects ...Object) (*Server, string) {
	t.Helper()
	s := New()
	for _, obj := range objects {
		put(t, s, obj)
	}
	web := httptest.NewServer(s)
	t.Cleanup(web.Close)
	return s, web.URL
}

func put(t *testing.T, s *Server, obj Object) {
	t.Helper()
	if _, err := s.Put(obj); err != nil {
		t.Fatal(err)
	}
}

// ask sends a request that ends with the test.
func ask(t *testing.T, base, path, accept string, args url.Values) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path+"?"+args.Encode(), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", accept)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// open returns the type and the message of what is in an envelope.
func open(t *testing.T, b []byte) (kind string, raw []byte) {
	t.Helper()
	var u runtime.Unknown
	if len(b) < 4 || string(b[:4]) != "k8s\x00" {
		t.Fatalf("no envelope of Kubernetes: %q", b)
	}
	if err := u.Unmarshal(b[4:]); err != nil {
		t.Fatal(err)
	}
	return u.APIVersion + " " + u.Kind, u.Raw
}

// stream reads events of a watch.
type stream struct {
	t    *testing.T
	body io.Reader
}

// next returns one event: its type, the object's type and name, and its version.
func (s stream) next(into Object) string {
	s.t.Helper()
	var head [4]byte
	if _, err := io.ReadFull(s.body, head[:]); err != nil {
		s.t.Fatalf("watch: %v", err)
	}
	frame := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := io.ReadFull(s.body, frame); err != nil {
		s.t.Fatalf("watch: %v", err)
	}
	var ev metav1.WatchEvent
	if err := ev.Unmarshal(frame); err != nil {
		s.t.Fatal(err)
	}
	kind, raw := open(s.t, ev.Object.Raw)
	if err := into.(interface{ Unmarshal([]byte) error }).Unmarshal(raw); err != nil {
		s.t.Fatal(err)
	}
	end := ""
	if into.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true" {
		end = " end"
	}
	return fmt.Sprintf("%s %s %s %s%s", ev.Type, kind, into.GetName(), into.GetResourceVersion(), end)
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: got %q, want %q", what, got, want)
	}
}

func service(name, clusterIP string, labels map[string]string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: labels},
		Spec:       corev1.ServiceSpec{ClusterIP: clusterIP},
	}
}

func TestList(t *testing.T) {
	s, base := start(t, service("a", "10.0.0.1", nil), service("headless", "None", nil),
		service("other", "10.0.0.2", map[string]string{"service.kubernetes.io/service-proxy-name": "x"}))
	resp := ask(t, base, servicesPath, acceptWhole, url.Values{
		"labelSelector": {"!service.kubernetes.io/service-proxy-name"}, "fieldSelector": {"spec.clusterIP!=None"},
	})
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	kind, raw := open(t, body)
	expect(t, "type", kind, "v1 ServiceList")
	var list corev1.ServiceList
	if err := list.Unmarshal(raw); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, svc := range list.Items {
		names = append(names, svc.Name+" "+svc.Spec.ClusterIP+" "+svc.ResourceVersion)
	}
	if want := []string{"a 10.0.0.1 1"}; !slices.Equal(names, want) || list.ResourceVersion != "3" {
		t.Errorf("list: got %q at %q, want %q at 3", names, list.ResourceVersion, want)
	}
	if s.Listed().IsZero() {
		t.Error("Listed: zero after a list")
	}
}

func TestWatchList(t *testing.T) {
	s, base := start(t, service("a", "10.0.0.1", nil), service("b", "10.0.0.2", map[string]string{"skip": "1"}))
	resp := ask(t, base, servicesPath, acceptWhole, url.Values{
		"watch": {"true"}, "sendInitialEvents": {"true"}, "labelSelector": {"!skip"},
	})
	expect(t, "content type", resp.Header.Get("Content-Type"), "application/vnd.kubernetes.protobuf;stream=watch")
	w := stream{t, resp.Body}
	expect(t, "first", w.next(&corev1.Service{}), "ADDED v1 Service a 1")
	expect(t, "second", w.next(&corev1.Service{}), "BOOKMARK v1 Service  2 end")
	all := ask(t, base, servicesPath, acceptWhole, url.Values{"watch": {"true"}, "resourceVersion": {"2"}})
	put(t, s, service("b", "10.0.0.3", map[string]string{"skip": "1"}))
	put(t, s, service("a", "10.0.0.4", nil))
	var svc corev1.Service
	expect(t, "a change", w.next(&svc), "MODIFIED v1 Service a 4")
	expect(t, "its cluster IP", svc.Spec.ClusterIP, "10.0.0.4")
	put(t, s, service("c", "10.0.0.5", nil))
	expect(t, "a new one", w.next(&corev1.Service{}), "ADDED v1 Service c 5")
	for _, name := range []string{"b", "nobody", "c"} { // b is not selected
		if err := s.Delete(service(name, "", nil)); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, "one that goes", w.next(&corev1.Service{}), "DELETED v1 Service c 7")
	expect(t, "who selects nothing", stream{t, all.Body}.next(&corev1.Service{}), "MODIFIED v1 Service b 3")
}

func TestPartial(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"zone": "z"}}}
	s, base := start(t, node, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "m"}})
	resp := ask(t, base, "/api/v1/nodes", acceptPartial, url.Values{
		"watch": {"true"}, "sendInitialEvents": {"true"}, "fieldSelector": {"metadata.name=n"},
	})
	w := stream{t, resp.Body}
	var got metav1.PartialObjectMetadata
	expect(t, "first", w.next(&got), "ADDED meta.k8s.io/v1 PartialObjectMetadata n 1")
	expect(t, "its label", got.Labels["zone"], "z")
	expect(t, "second", w.next(&metav1.PartialObjectMetadata{}), "BOOKMARK meta.k8s.io/v1 PartialObjectMetadata  2 end")
	node.Labels = map[string]string{"zone": "y"}
	put(t, s, node)
	got = metav1.PartialObjectMetadata{}
	expect(t, "a change", w.next(&got), "MODIFIED meta.k8s.io/v1 PartialObjectMetadata n 3")
	expect(t, "its label", got.Labels["zone"], "y")
}

func TestWatchFrom(t *testing.T) {
	s, base := start(t, service("a", "10.0.0.1", nil), service("b", "10.0.0.2", nil))
	from := func(version string) *http.Response {
		return ask(t, base, servicesPath, acceptWhole, url.Values{"watch": {"true"}, "resourceVersion": {version}})
	}
	if resp := from("1"); resp.StatusCode != http.StatusGone {
		t.Errorf("watch from an old version: status %d, want 410", resp.StatusCode)
	}
	resp := from("2")
	put(t, s, service("b", "10.0.0.3", nil))
	w := stream{t, resp.Body}
	expect(t, "what follows", w.next(&corev1.Service{}), "MODIFIED v1 Service b 3")
}

// TestDuration: a watch ends when the client said, so that it asks again.
func TestDuration(t *testing.T) {
	_, base := start(t)
	resp := ask(t, base, "/api/v1/pods", acceptWhole, url.Values{
		"watch": {"true"}, "sendInitialEvents": {"true"}, "timeoutSeconds": {"1"},
	})
	w := stream{t, resp.Body}
	expect(t, "the end of nothing", w.next(&corev1.Pod{}), "BOOKMARK v1 Pod  0 end")
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
		t.Errorf("the end: got %d bytes and error %v", len(rest), err)
	}
}

func TestRefused(t *testing.T) {
	s, base := start(t)
	for _, tc := range []struct {
		path, accept, args string
		want               int
	}{
		{servicesPath, "application/json", "", http.StatusNotAcceptable},
		{servicesPath, acceptWhole, "labelSelector=%3D%3D", http.StatusBadRequest},
		{servicesPath, acceptWhole, "fieldSelector=a", http.StatusBadRequest},
		{"/api/v1/configmaps", acceptWhole, "", http.StatusNotFound},
	} {
		args, err := url.ParseQuery(tc.args)
		if err != nil {
			t.Fatal(err)
		}
		resp := ask(t, base, tc.path, tc.accept, args)
		body, _ := io.ReadAll(resp.Body)
		kind, _ := open(t, body)
		if resp.StatusCode != tc.want || kind != "v1 Status" {
			t.Errorf("%s?%s: got %d and %s, want %d and a Status", tc.path, tc.args, resp.StatusCode, kind, tc.want)
		}
	}
	resp, err := http.Post(base+"/apis/events.k8s.io/v1/namespaces/default/events", contentType, strings.NewReader("k8s"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated || s.Events() != 1 {
		t.Errorf("event: status %d and %d counted, want 201 and 1", resp.StatusCode, s.Events())
	}
	if _, err := s.Put(&corev1.Secret{}); err == nil {
		t.Error("Put of a Secret: no error")
	}
	if _, err := s.Put(&discovery.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "x"}}); err != nil {
		t.Errorf("Put of an EndpointSlice: %v", err)
	}
}
