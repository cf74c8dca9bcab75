// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"context"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestSettingsFollow: objects that the API server has already mean something else, and
// mean again what they meant.
func TestSettingsFollow(t *testing.T) {
	external := func(s *v1.Service) { s.Spec.ExternalIPs = []string{"192.0.2.9"} }
	client, ready := watched(t, testService("web", external), testSlice("web", "web-1", "10.0.0.1"), heavyNode("9"))
	s := New(testOptions(), discard(), nil)
	run(t, func(ctx context.Context) error { return client.run(ctx, s) })
	v := view{}
	before := s.Settings()
	const (
		web       = "web 10.96.0.1:80/TCP -> 1!"
		external9 = "web 192.0.2.9:80/TCP -> 1!"
	)
	v.await(t, s, web, external9)
	ready()
	of := func() string {
		svc := v[lb.Object{Namespace: "default", Name: "web"}][0]
		return showWeights(svc) + " " + showFrontend(svc.Frontends[0])
	}
	wait := func(set Settings, want string) {
		t.Helper()
		s.SetSettings(set)
		for of() != want {
			<-s.Dirty() // the test's own limit of time is enough
			v.take(s)
		}
	}
	const off, always = " ClusterIP 10.96.0.1:80/TCP cluster/cluster off", " ClusterIP 10.96.0.1:80/TCP cluster/cluster always"
	if of() != "9"+off {
		t.Fatalf("at first it is %s", of())
	}
	set := before
	set.MasqueradeAll = true
	wait(set, "9"+always)
	ready()
	set.IgnoreNodeWeights = true
	wait(set, "100"+always)
	ready(Nodes)
	set.DenyExternalIPs = true
	s.SetSettings(set)
	v.await(t, s, web)
	ready(Nodes)
	s.SetSettings(before)
	v.await(t, s, web, external9)
	wait(before, "9"+off)
}

// TestSettingsOfManifests does the same for a directory.
func TestSettingsOfManifests(t *testing.T) {
	f := newFolder(t)
	f.put("web.yaml", docs(strings.Replace(serviceDoc("web", "10.96.0.1"), "clusterIP:", "externalIPs: [192.0.2.9]\n  clusterIP:", 1), sliceDoc("web", "web-1", "10.0.0.1")))
	run(t, func(ctx context.Context) error { return RunManifests(ctx, f.dir, f.s, discard()) })
	v := view{}
	v.await(t, f.s, "web 10.96.0.1:80/TCP -> 1", "web 192.0.2.9:80/TCP -> 1")
	set := f.s.Settings()
	set.DenyExternalIPs = true
	f.s.SetSettings(set)
	v.await(t, f.s, "web 10.96.0.1:80/TCP -> 1")
	set.DenyExternalIPs = false
	f.s.SetSettings(set)
	v.await(t, f.s, "web 10.96.0.1:80/TCP -> 1", "web 192.0.2.9:80/TCP -> 1")
}

// TestDefaultsDecideWhatHasNoEffect: without reading anything again.
func TestDefaultsDecideWhatHasNoEffect(t *testing.T) {
	s, ev := newStore(t)
	set := s.Settings()
	set.DefaultAlgorithm, set.DefaultHealth = "random", lb.DefaultHealth()
	s.SetSettings(set)
	<-s.relist // the kind of probes was not said before
	svc := testService("web")
	svc.Annotations = map[string]string{annotationHashKey: "5-tuple", annotationPrefix + "health-max-ejected": "7"}
	s.UpsertService(svc)
	s.Take()
	if got := ev.take(); len(got) != 1 || !strings.Contains(got[0], "has no effect with algorithm random") {
		t.Fatalf("events %q", got)
	}
	set.DefaultAlgorithm = "hash"
	set.DefaultHealth.Passive = lb.SwitchOff
	s.SetSettings(set)
	s.Take()
	if got := ev.take(); len(got) != 1 || !strings.Contains(got[0], "health-passive false") {
		t.Errorf("events %q, want one about health-max-ejected", got)
	}
	if got := reasons(s.Problems()); !slices.Equal(got, []string{ReasonNoEffect}) {
		t.Errorf("problems %q, want only that", got)
	}
	select {
	case <-s.relist:
		t.Error("objects are to be read again for it")
	default:
	}
}
