// SPDX-License-Identifier: Apache-2.0

package report

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/bench/result"
)

// marked is what a Markdown file lets the tool write: everything between the markers, by
// the name of the section. No name is the summary.
var marked = regexp.MustCompile(`(?s)(<!-- bench:begin ?([a-z-]*) -->\n).*?(<!-- bench:end -->)`)

// updateMarkdown writes the sections that a file has markers for, or all of them if there
// is no file.
func updateMarkdown(name string, files []*result.File) error {
	old, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		old = []byte(emptyMarkdown())
	} else if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	text, err := fill(string(old), files)
	if err != nil {
		return fmt.Errorf("report: %s: %w", name, err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// section is a piece of Markdown that is made of results.
type section struct {
	name, title string
	write       func(*gathered, []*result.File) string
}

var sections = []section{
	{"", "In short", func(all *gathered, _ []*result.File) string { return summaryTable(all).markdown() }},
	{"warnings", "Before you read", func(all *gathered, files []*result.File) string { return list(warnings(files, all.scenes)) }},
	{"goals", "Goals", func(all *gathered, _ []*result.File) string { return goalTable(all).markdown() }},
	{"losses", "lbproxy loses", comparisons(func(c *Comparison) bool { return c.Versus != "direct" && c.Verdict() < 0 })},
	{"even", "The blocks do not tell", comparisons(func(c *Comparison) bool { return c.Versus != "direct" && c.Verdict() == 0 })},
	{"wins", "lbproxy wins", comparisons(func(c *Comparison) bool { return c.Versus != "direct" && c.Verdict() > 0 })},
	{"costs", "Beside no proxy", comparisons(func(c *Comparison) bool { return c.Versus == "direct" })},
	{"scenarios", "Scenarios", func(all *gathered, _ []*result.File) string { return scenariosMarkdown(all) }},
	{"scales", "Scale", func(all *gathered, _ []*result.File) string { return scalesMarkdown(all) }},
	{"simulated", "Live and simulated", func(all *gathered, _ []*result.File) string { return predictionTable(all.scenes).markdown() }},
	{"rows", "Paths and programs", func(all *gathered, _ []*result.File) string { return rowsMarkdown(all) }},
	{"environment", "Environment", func(_ *gathered, files []*result.File) string { return environment(files) }},
}

func emptyMarkdown() string {
	var b strings.Builder
	for _, s := range sections {
		fmt.Fprintf(&b, "## %s\n\n<!-- bench:begin%s -->\n<!-- bench:end -->\n\n", s.title, strings.TrimRight(" "+s.name, " "))
	}
	return b.String()
}

// fill replaces what is between the markers.
func fill(text string, files []*result.File) (string, error) {
	all, found := gather(files), false
	var err error
	text = marked.ReplaceAllStringFunc(text, func(old string) string {
		m := marked.FindStringSubmatch(old)
		for _, s := range sections {
			if s.name == m[2] {
				found = true
				return m[1] + "\n" + strings.TrimSpace(s.write(all, files)) + "\n\n" + m[3]
			}
		}
		err = fmt.Errorf("no section %q", m[2])
		return old
	})
	if err == nil && !found {
		err = errors.New("no markers, such as <!-- bench:begin --> and <!-- bench:end -->")
	}
	return text, err
}

func comparisons(want func(*Comparison) bool) func(*gathered, []*result.File) string {
	return func(all *gathered, _ []*result.File) string {
		return comparisonTable(allComparisons(all.scenes), want).markdown()
	}
}

// summaryTable has one row for each scenario: by what it is about, lbproxy with eBPF and
// the best of the other proxies.
func summaryTable(all *gathered) *table {
	var rows []Comparison
	for _, sc := range all.scenes {
		m := mainMeasure(sc)
		var hardest *Comparison
		cs := compare(sc)
		for k := range cs {
			c := &cs[k]
			if c.best && c.Measure == m && strings.HasPrefix(c.Arm, "lbproxy-ebpf") && c.Versus != "direct" && (hardest == nil || c.order() < hardest.order()) {
				hardest = c
			}
		}
		if hardest != nil {
			rows = append(rows, *hardest)
		}
	}
	sortComparisons(rows)
	return comparisonTable(rows, func(*Comparison) bool { return true })
}

func list(lines []string) string {
	if len(lines) == 0 {
		return "Nothing.\n"
	}
	return "* " + strings.Join(lines, "\n* ") + "\n"
}

func scenariosMarkdown(all *gathered) string {
	var b strings.Builder
	for _, sc := range all.scenes {
		general := slices.DeleteFunc(slices.Clone(sc.measures), func(m *measure) bool { return !slices.Contains(allMeasures, m) })
		fmt.Fprintf(&b, "### %s\n\n%s %s.\n\n%s\n", sc.Name, sc.Question, strings.TrimSuffix(upper(sc.About), "."), scenarioTable(sc, general).markdown())
	}
	return b.String()
}

func scalesMarkdown(all *gathered) string {
	var b strings.Builder
	for _, s := range all.scales {
		fmt.Fprintf(&b, "### %s, %s\n\n%s\n", upper(s.Name), s.Unit, scaleTable(s).markdown())
	}
	return b.String()
}

func rowsMarkdown(all *gathered) string {
	var b strings.Builder
	for _, group := range rowGroups(all.rows) {
		fmt.Fprintf(&b, "### %s\n\n%s\n", upper(group), rowsTable(all.rows, group).markdown())
	}
	return b.String()
}

func environment(files []*result.File) string {
	var lines []string
	for _, f := range files {
		m := f.Machine
		line := fmt.Sprintf("%s, Linux %s, %d x %s, %s, load average %s before and %s after", m.Time.Format("2 January 2006, 15:04 UTC"), m.Kernel, m.CPUs, m.CPU, m.Go, m.LoadBefore, m.LoadAfter)
		if f.Commit != "" {
			line += ", commit " + short(f.Commit)
		}
		lines = append(lines, line+": `"+command(f)+"`")
	}
	return list(lines)
}
