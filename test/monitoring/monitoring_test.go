// SPDX-License-Identifier: Apache-2.0

// Package monitoring holds deploy/monitoring to Prometheus' own parser and engine, to the
// metrics that there are, and to the runbook.
package monitoring

import (
	"bytes"
	"encoding/json"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"

	"github.com/lbproxy/lbproxy/internal/server"
)

var update = flag.Bool("update", false, "write prometheusrule.yaml")

var promParser = parser.NewParser(parser.Options{})

// file returns what is in a file of the repository.
func file(t *testing.T, path ...string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(append([]string{"..", ".."}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// alerts returns the rules, as Prometheus reads them.
func alerts(t *testing.T) []rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.Parse(file(t, "deploy", "monitoring", "alerts.yaml"), false, model.LegacyValidation, promParser, slog.New(slog.DiscardHandler))
	for _, err := range errs {
		t.Error(err)
	}
	if groups == nil || len(groups.Groups) != 1 || len(groups.Groups[0].Rules) == 0 {
		t.Fatal("want one group of rules")
	}
	return groups.Groups[0].Rules
}

// names checks an expression's metrics and labels.
func names(t *testing.T, where, expr string) {
	t.Helper()
	tree, err := promParser.ParseExpr(expr)
	if err != nil {
		t.Errorf("%s: %v in %s", where, err, expr)
		return
	}
	labels := map[string]bool{"instance": true, "job": true}
	parser.Inspect(tree, func(node parser.Node, _ []parser.Node) error {
		if s, ok := node.(*parser.VectorSelector); ok {
			known := labelsOf(t, where, s.Name)
			for _, m := range s.LabelMatchers {
				if m.Name != "__name__" && !known[m.Name] {
					t.Errorf("%s: %s has no label %s", where, s.Name, m.Name)
				}
			}
			for l := range known {
				labels[l] = true
			}
		}
		return nil
	})
	parser.Inspect(tree, func(node parser.Node, _ []parser.Node) error {
		var used []string
		switch n := node.(type) {
		case *parser.AggregateExpr:
			used = n.Grouping
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				used = slices.Concat(n.VectorMatching.MatchingLabels, n.VectorMatching.Include)
			}
		}
		for _, l := range used {
			if !labels[l] {
				t.Errorf("%s: no metric of it has a label %s", where, l)
			}
		}
		return nil
	})
}

// labelsOf returns the labels that a metric has, with those that Prometheus adds.
func labelsOf(t *testing.T, where, name string) map[string]bool {
	t.Helper()
	known := map[string]bool{"instance": true, "job": true}
	if name == "up" || strings.HasPrefix(name, "process_") || strings.HasPrefix(name, "go_") {
		return known
	}
	for _, m := range server.Catalogue() {
		base, isHistogram := name, m.Kind == server.Histogram
		if isHistogram {
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				base = strings.TrimSuffix(base, suffix)
			}
		}
		if m.Name != base || isHistogram == (base == name) {
			continue
		}
		if strings.HasSuffix(name, "_bucket") && isHistogram {
			known["le"] = true
		}
		for _, l := range m.Labels {
			known[l.Name] = true
		}
		return known
	}
	t.Errorf("%s: there is no metric %s", where, name)
	return known
}

func TestMetricsAreDocumented(t *testing.T) {
	if !bytes.Equal(file(t, "docs", "METRICS.md"), server.Markdown()) {
		t.Error("docs/METRICS.md is not what `make generate` writes")
	}
}

func TestAlerts(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range alerts(t) {
		if !strings.HasPrefix(r.Alert, "Lbproxy") || seen[r.Alert] {
			t.Errorf("%q: want names that begin with Lbproxy, each once", r.Alert)
		}
		seen[r.Alert] = true
		names(t, r.Alert, r.Expr)
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s lacks a severity, a summary or a description", r.Alert)
		}
	}
}

// TestRunbook: each alert has its section, and leads there; no section is of an alert that is no more.
func TestRunbook(t *testing.T) {
	sections := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^## (Lbproxy\w+)$`).FindAllSubmatch(file(t, "docs", "RUNBOOK.md"), -1) {
		sections[string(m[1])] = true
	}
	for _, r := range alerts(t) {
		if !sections[r.Alert] {
			t.Errorf("docs/RUNBOOK.md has no section %s", r.Alert)
		}
		delete(sections, r.Alert)
		if want := "docs/RUNBOOK.md#" + strings.ToLower(r.Alert); !strings.HasSuffix(r.Annotations["runbook_url"], want) {
			t.Errorf("%s: runbook_url %q, want one that ends with %s", r.Alert, r.Annotations["runbook_url"], want)
		}
	}
	for s := range sections {
		t.Errorf("docs/RUNBOOK.md has a section %s, and there is no such alert", s)
	}
}

// TestPrometheusRule: the object for the operator has the same groups.
func TestPrometheusRule(t *testing.T) {
	const head = "# SPDX-License-Identifier: Apache-2.0\n# Made of alerts.yaml, see there.\n"
	var spec any
	if err := yaml.Unmarshal(file(t, "deploy", "monitoring", "alerts.yaml"), &spec); err != nil {
		t.Fatal(err)
	}
	body, err := yaml.Marshal(map[string]any{
		"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule",
		"metadata": map[string]any{"name": "lbproxy", "namespace": "lbproxy"}, "spec": spec,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := append([]byte(head), body...)
	path := filepath.Join("..", "..", "deploy", "monitoring", "prometheusrule.yaml")
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(file(t, "deploy", "monitoring", "prometheusrule.yaml"), want) {
		t.Error("prometheusrule.yaml differs from alerts.yaml: go test -update")
	}
}

// TestDashboard: every panel's expression is one, and asks for what there is.
func TestDashboard(t *testing.T) {
	type panel struct {
		ID      int
		Type    string
		Title   string
		GridPos struct{ X, Y, W, H int }
		Targets []struct{ Expr string }
	}
	var board struct {
		UID        string
		Panels     []panel
		Templating struct {
			List []struct {
				Name, Type, Definition string
			}
		}
	}
	d := json.NewDecoder(bytes.NewReader(file(t, "deploy", "monitoring", "dashboard.json")))
	if err := d.Decode(&board); err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*", "$namespace", ".*", "$service", ".*")
	ids := map[int]bool{}
	for i, p := range board.Panels {
		if ids[p.ID] || p.Title == "" || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %q: id %d twice, no title, or too wide", p.Title, p.ID)
		}
		ids[p.ID] = true
		for _, q := range board.Panels[:i] {
			a, b := p.GridPos, q.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("panels %q and %q lie over each other", q.Title, p.Title)
			}
		}
		if (p.Type == "row") != (len(p.Targets) == 0) {
			t.Errorf("panel %q: a %s with %d expressions", p.Title, p.Type, len(p.Targets))
		}
		for _, q := range p.Targets {
			expr := variables.Replace(q.Expr)
			if strings.Contains(expr, "$") {
				t.Errorf("panel %q: a variable that there is not in %s", p.Title, q.Expr)
			}
			names(t, "panel "+p.Title, expr)
		}
	}
	values := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`)
	for _, v := range board.Templating.List {
		if v.Type != "query" {
			continue
		}
		m := values.FindStringSubmatch(v.Definition)
		if m == nil {
			t.Errorf("variable %s: %q", v.Name, v.Definition)
			continue
		}
		names(t, "variable "+v.Name, "sum by ("+m[2]+") ("+variables.Replace(m[1])+")")
	}
}
