// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"testing"

	"github.com/lbproxy/lbproxy/internal/lb"
)

func TestTalliesCountEventsAsKubeProxyDoes(t *testing.T) {
	s := New(testOptions(), discard(), nil)
	want := func(what string, services, slices Tally) {
		t.Helper()
		if got := s.Tallies(); got != (Tallies{services, slices}) {
			t.Errorf("%s: got %+v, want %+v", what, got, Tallies{services, slices})
		}
	}
	want("nothing came", Tally{}, Tally{})
	s.UpsertService(testService("web"))
	s.UpsertSlice(testSlice("web", "web-1", "10.0.0.1"))
	s.Take()
	want("not everything is listed", Tally{1, 1}, Tally{1, 1})
	for _, src := range KubernetesSources {
		s.MarkSynced(src)
	}
	s.Take()
	want("taken up", Tally{1, 0}, Tally{1, 0})
	s.UpsertService(testService("web"))
	s.UpsertSlice(testSlice("web", "web-1", "10.0.0.1"))
	want("the same again", Tally{2, 0}, Tally{2, 0})
	s.UpsertSlice(testSlice("web", "web-1", "10.0.0.2"))
	s.UpsertSlice(testSlice("web", "web-2", "10.0.0.3"))
	s.DeleteService(lb.Object{Namespace: "default", Name: "other"})
	s.DeleteSlice(lb.Object{Namespace: "default", Name: "other"})
	want("slices changed", Tally{2, 0}, Tally{4, 2})
	s.DeleteSlice(lb.Object{Namespace: "default", Name: "web-1"})
	s.DeleteService(lb.Object{Namespace: "default", Name: "web"})
	want("deleted", Tally{3, 1}, Tally{5, 3})
	s.Take()
	want("taken up at last", Tally{3, 0}, Tally{5, 0})
}
