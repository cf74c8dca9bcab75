// SPDX-License-Identifier: Apache-2.0

package server

import (
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
)

// foreign tells whether a metric is one of client_golang's own.
func foreign(name string) bool {
	return strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_")
}

// TestCatalogueIsWhatIsServed: every metric that can be scraped is in the catalogue, as it
// is, and the other way round.
func TestCatalogueIsWhatIsServed(t *testing.T) {
	known := map[string]Metric{}
	for _, m := range Catalogue() {
		if _, twice := known[m.Name]; twice {
			t.Errorf("%s is described twice", m.Name)
		}
		known[m.Name] = m
	}
	families, err := measured(t).Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	served := map[string]bool{}
	for _, f := range families {
		m, ok := known[f.GetName()]
		if foreign(f.GetName()) {
			continue
		}
		if !ok {
			t.Errorf("%s is served, and not in the catalogue", f.GetName())
			continue
		}
		served[m.Name] = true
		if got := Kind(strings.ToLower(f.GetType().String())); got != m.Kind || f.GetHelp() != m.Help {
			t.Errorf("%s is a %s, %q; described as a %s, %q", m.Name, got, f.GetHelp(), m.Kind, m.Help)
		}
		if got, want := labelsOf(f), names(m.Labels); !slices.Equal(got, want) {
			t.Errorf("%s has the labels %q, described are %q", m.Name, got, want)
		}
	}
	for name, m := range known {
		if m.Page == "" && !served[name] {
			t.Errorf("%s is in the catalogue, and not served", name)
		}
	}
}

// TestCatalogueOfSLIs does the same for the page of SLIs.
func TestCatalogueOfSLIs(t *testing.T) {
	s := newSLIs(time.Unix(1, 0))
	get(t, s.ping(text("ok")), "/healthz")
	_, body := get(t, s, pageSLIs)
	for _, m := range Catalogue() {
		if served := strings.Contains(body, "# TYPE "+m.Name+" "+string(m.Kind)+"\n"); served != (m.Page == pageSLIs) {
			t.Errorf("%s: served at %s: %v, its page is %q", m.Name, pageSLIs, served, m.Page)
		}
	}
}

// TestCatalogueFollowsConventions: what GatherAndLint does not look at. kube-proxy's names
// are not ours to choose.
func TestCatalogueFollowsConventions(t *testing.T) {
	for _, m := range Catalogue() {
		for _, l := range m.Labels {
			if l.Values == "" {
				t.Errorf("%s: nothing is said of the label %s", m.Name, l.Name)
			}
		}
		if m.KubeProxy() || foreign(m.Name) {
			continue
		}
		if !strings.HasPrefix(m.Name, "lbproxy_") || (m.Kind == Counter) != strings.HasSuffix(m.Name, "_total") {
			t.Errorf("%s: a %s of that name", m.Name, m.Kind)
		}
		if ls := names(m.Labels); !slices.IsSorted(ls) {
			t.Errorf("%s: the labels %q are not sorted", m.Name, ls)
		}
		if bound := !slices.ContainsFunc(m.Labels, func(l Label) bool { return l == labelBackend || l == labelService }); bound != (m.Detail == "" || len(m.Labels) == 0) {
			t.Errorf("%s: tells Services or backends apart: %v; its detail is %q", m.Name, !bound, m.Detail)
		}
	}
}

func labelsOf(f *dto.MetricFamily) []string {
	set := map[string]bool{}
	for _, m := range f.Metric {
		for _, l := range m.Label {
			set[l.GetName()] = true
		}
	}
	var ls []string
	for l := range set {
		ls = append(ls, l)
	}
	slices.Sort(ls)
	return ls
}

func names(ls []Label) []string {
	var ns []string
	for _, l := range ls {
		ns = append(ns, l.Name)
	}
	slices.Sort(ns)
	return ns
}
