// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"maps"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/bench/internal/observe"
	"github.com/lbproxy/lbproxy/bench/internal/plot"
	"github.com/lbproxy/lbproxy/bench/internal/stats"
	"github.com/lbproxy/lbproxy/bench/result"
)

//go:embed page.html
var pageText string

//go:embed page.css
var pageStyle string

// page is what the template shows.
type page struct {
	Style       template.CSS
	Runs        []run
	Warnings    []string
	Goals       *table
	Losses      *table
	Even        *table
	Wins        *table
	Costs       *table
	Predictions *table
	Scenarios   []scenarioView
	Scales      []scaleView
	Rows        []rowsView
}

// run is one file: where its numbers come from.
type run struct {
	Data    string // the file's name
	Commit  string
	Command string
	Machine observe.Machine
	Knobs   [][2]string
}

type scenarioView struct {
	Name, Question, About, File, Order string
	Events                             []string
	Table                              *table
	Figures                            []figure
}

type scaleView struct {
	Figure figure
	Table  *table
}

type rowsView struct {
	Group string
	Table *table
}

// build makes everything that a page shows.
func build(names []string, files []*result.File) page {
	all := gather(files)
	p := page{Style: template.CSS(plot.Style + pageStyle), Warnings: warnings(files, all.scenes)}
	for i, f := range files {
		r := run{Data: names[i], Commit: short(f.Commit), Command: command(f), Machine: f.Machine}
		for _, k := range slices.Sorted(maps.Keys(f.Knobs)) {
			r.Knobs = append(r.Knobs, [2]string{k, f.Knobs[k]})
		}
		p.Runs = append(p.Runs, r)
	}
	sorted := allComparisons(all.scenes)
	p.Goals = goalTable(all)
	p.Losses = comparisonTable(sorted, func(c *Comparison) bool { return c.Versus != "direct" && c.Verdict() < 0 })
	p.Even = comparisonTable(sorted, func(c *Comparison) bool { return c.Versus != "direct" && c.Verdict() == 0 })
	p.Wins = comparisonTable(sorted, func(c *Comparison) bool { return c.Versus != "direct" && c.Verdict() > 0 })
	p.Costs = comparisonTable(sorted, func(c *Comparison) bool { return c.Versus == "direct" })
	p.Predictions = predictionTable(all.scenes)
	for _, sc := range all.scenes {
		v := scenarioView{Name: sc.Name, Question: sc.Question, About: sc.About, File: sc.File, Order: orderOf(sc.Scenario), Table: scenarioTable(sc, sc.measures), Figures: figuresOf(sc)}
		for _, e := range sc.Events {
			v.Events = append(v.Events, fmt.Sprintf("%s: %s", plot.Time(e.At), e.What))
		}
		p.Scenarios = append(p.Scenarios, v)
	}
	for _, s := range all.scales {
		p.Scales = append(p.Scales, scaleView{scaleFigure(s), scaleTable(s)})
	}
	for _, group := range rowGroups(all.rows) {
		p.Rows = append(p.Rows, rowsView{upper(group), rowsTable(all.rows, group)})
	}
	return p
}

// gathered is everything of several files.
type gathered struct {
	scenes []*scene
	scales []*result.Scale
	rows   []result.Row
}

// gather puts files together. Of scenarios and scales with the same name the last counts.
func gather(files []*result.File) *gathered {
	all := &gathered{}
	for _, f := range files {
		for i := range f.Scenarios {
			sc := newScene(&f.Scenarios[i])
			all.scenes = append(slices.DeleteFunc(all.scenes, func(o *scene) bool { return o.Name == sc.Name }), sc)
		}
		for i := range f.Scales {
			s := &f.Scales[i]
			all.scales = append(slices.DeleteFunc(all.scales, func(o *result.Scale) bool { return o.Name == s.Name }), s)
		}
		all.rows = append(all.rows, f.Rows...)
	}
	return all
}

func allComparisons(scenes []*scene) []Comparison {
	var out []Comparison
	for _, sc := range scenes {
		out = append(out, compare(sc)...)
	}
	sortComparisons(out)
	return out
}

// orderOf writes the order of the arms as letters.
func orderOf(sc *result.Scenario) string {
	var b strings.Builder
	for _, i := range sc.Order {
		b.WriteByte("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[i%26])
	}
	return b.String()
}

// short is enough of a commit to find it.
func short(commit string) string { return commit[:min(12, len(commit))] }

// command is what repeats a run. What go run built has no name that lasts.
func command(f *result.File) string {
	words := slices.Clone(f.Command)
	if len(words) > 0 && words[0] != "go" {
		words = append([]string{"go", "run", "./bench"}, words[1:]...)
	}
	return strings.Join(words, " ")
}

func rowGroups(rows []result.Row) []string {
	var out []string
	for _, r := range rows {
		if !slices.Contains(out, r.Group) {
			out = append(out, r.Group)
		}
	}
	return out
}

// interval writes how sure an estimate is.
func interval(e stats.Estimate, write func(float64) string) string {
	if e.N < stats.Enough {
		return fmt.Sprintf("%s to %s in all %d", write(e.Smallest), write(e.Largest), e.N)
	}
	return fmt.Sprintf("%s to %s", write(e.Low), write(e.High))
}

// html returns the page.
func html(names []string, files []*result.File) ([]byte, error) {
	t, err := template.New("page").Parse(pageText)
	if err != nil {
		return nil, fmt.Errorf("page: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, build(names, files)); err != nil {
		return nil, fmt.Errorf("page: %w", err)
	}
	return b.Bytes(), nil
}
