// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// proxies are the columns; each has a directory of lists.
var proxies = []string{"kube-proxy-iptables", "kube-proxy-nftables", "lbproxy-ebpf", "lbproxy-iptables"}

// record is all that is known of one test.
type record struct {
	name    string
	results map[string][]result // by proxy, the latest last
}

// reason says of some tests why they cannot run in this cluster, whatever the proxy.
type reason struct {
	tests *regexp.Regexp
	text  string
}

// table writes the document from the lists in dir: PROXY/NAME.txt, of which a later name
// counts as later, tests.txt with the names of all tests, reasons.txt and intro.md.
func table(out io.Writer, dir fs.FS) error {
	records, err := read(dir)
	if err != nil {
		return err
	}
	reasons, err := readReasons(dir)
	if err != nil {
		return err
	}
	intro, err := fs.ReadFile(dir, "intro.md")
	if err != nil {
		return err
	}
	t := page{reasons: reasons}
	var rows strings.Builder
	area := ""
	for _, r := range records {
		a, test := split(r.name)
		if a != area {
			area = a
			fmt.Fprintf(&rows, "\n## %s\n| test | kube-proxy iptables | kube-proxy nftables | lbproxy eBPF | lbproxy iptables |\n|---|---|---|---|---|\n", area)
		}
		fmt.Fprintf(&rows, "| %s |", strings.ReplaceAll(test, "|", `\|`))
		for _, proxy := range proxies {
			fmt.Fprintf(&rows, " %s |", t.cell(r, proxy))
		}
		fmt.Fprintln(&rows)
	}
	fmt.Fprintf(out, "%s\n", intro)
	t.summary(out, len(records))
	fmt.Fprint(out, rows.String())
	t.notes(out)
	return nil
}

// read returns the records of all tests, in the order of tests.txt.
func read(dir fs.FS) ([]record, error) {
	names, err := lines(dir, "tests.txt")
	if err != nil {
		return nil, err
	}
	index := map[string]int{}
	var records []record
	for _, name := range names {
		index[name] = len(records)
		records = append(records, record{name: name, results: map[string][]result{}})
	}
	for _, proxy := range proxies {
		paths, err := fs.Glob(dir, proxy+"/*.txt") // sorted
		if err != nil {
			return nil, err
		}
		for _, p := range paths {
			f, err := dir.Open(p)
			if err != nil {
				return nil, err
			}
			results, err := parse(f)
			if err := errors.Join(err, f.Close()); err != nil {
				return nil, fmt.Errorf("%s: %w", p, err)
			}
			for _, r := range results {
				i, ok := index[r.name]
				if !ok {
					return nil, fmt.Errorf("%s: no such test: %s", path.Base(p), r.name)
				}
				records[i].results[proxy] = append(records[i].results[proxy], r)
			}
		}
	}
	return records, nil
}

// readReasons reads lines of a regular expression, a tab, and a reason.
func readReasons(dir fs.FS) ([]reason, error) {
	all, err := lines(dir, "reasons.txt")
	if err != nil {
		return nil, err
	}
	var reasons []reason
	for _, line := range all {
		expr, text, ok := strings.Cut(line, "\t")
		if !ok {
			return nil, fmt.Errorf("reasons.txt: %q has no tab", line)
		}
		tests, err := regexp.Compile(expr)
		if err != nil {
			return nil, fmt.Errorf("reasons.txt: %w", err)
		}
		reasons = append(reasons, reason{tests, text})
	}
	return reasons, nil
}

// lines returns those that are neither empty nor comments.
func lines(dir fs.FS, name string) ([]string, error) {
	f, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var all []string
	scanner := bufio.NewScanner(f)
	for scanner.Scan() {
		if line := scanner.Text(); line != "" && !strings.HasPrefix(line, "#") {
			all = append(all, line)
		}
	}
	return all, scanner.Err()
}

// split parts a name like "[sig-network] Services should ..." into area and test.
func split(name string) (area, test string) {
	name = strings.TrimPrefix(name, "[sig-network] ")
	for _, area := range []string{"Networking Granular Checks: Pods", "Networking Granular Checks: Services"} {
		if rest, ok := strings.CutPrefix(name, area+" "); ok {
			return area, rest
		}
	}
	if area, test, ok := strings.Cut(name, " should "); ok {
		return area, "should " + test
	}
	return "Other", name
}

// page gathers what the rows need below and above them.
type page struct {
	reasons []reason
	texts   []string                  // of footnotes, the first is number 1
	counts  map[string]map[string]int // by proxy and kind of cell
}

// cell is what the table has of a test with a proxy.
func (t *page) cell(r record, proxy string) string {
	kind, why := t.judge(r, proxy)
	if t.counts == nil {
		t.counts = map[string]map[string]int{}
	}
	if t.counts[proxy] == nil {
		t.counts[proxy] = map[string]int{}
	}
	t.counts[proxy][kind]++
	text := map[string]string{passed: "pass", failed: "**fail**", cannot: "cannot run", notRun: "not run"}[kind]
	if why == "" {
		return text
	}
	i := slices.Index(t.texts, why)
	if i < 0 {
		i = len(t.texts)
		t.texts = append(t.texts, why)
	}
	return fmt.Sprintf("%s [%d](#notes)", text, i+1)
}

// Kinds of cells.
const (
	passed = "passed"
	failed = "failed"
	cannot = "cannot run here"
	notRun = "not run"
)

// judge says what became of a test, and why. What passes with one proxy can run here, so
// that no reason excuses a failure of another.
func (t *page) judge(r record, proxy string) (kind, why string) {
	results := r.results[proxy]
	excuse := t.excuse(r)
	if len(results) == 0 {
		if excuse != "" {
			return cannot, excuse
		}
		return notRun, ""
	}
	last := results[len(results)-1]
	if ran := slices.DeleteFunc(slices.Clone(results), func(x result) bool { return x.outcome == skip }); len(ran) > 0 {
		last = ran[len(ran)-1] // that it skips itself later takes nothing back
	}
	switch {
	case last.outcome == skip:
		return cannot, cmp.Or(excuse, "the test says: "+last.why)
	case last.outcome == pass && slices.ContainsFunc(results, func(x result) bool { return x.outcome == fail }):
		return passed, "failed in an earlier run, see the lists"
	case last.outcome == pass:
		return passed, ""
	case excuse != "":
		return cannot, excuse
	}
	return failed, last.why
}

// excuse is the reason why r cannot run here, or empty.
func (t *page) excuse(r record) string {
	for results := range maps.Values(r.results) {
		if slices.ContainsFunc(results, func(x result) bool { return x.outcome == pass }) {
			return ""
		}
	}
	if i := slices.IndexFunc(t.reasons, func(x reason) bool { return x.tests.MatchString(r.name) }); i >= 0 {
		return t.reasons[i].text
	}
	return ""
}

func (t *page) summary(out io.Writer, tests int) {
	fmt.Fprintf(out, "| of %d tests | kube-proxy iptables | kube-proxy nftables | lbproxy eBPF | lbproxy iptables |\n|---|---|---|---|---|\n", tests)
	for _, kind := range []string{passed, failed, cannot, notRun} {
		fmt.Fprintf(out, "| %s |", kind)
		for _, proxy := range proxies {
			fmt.Fprintf(out, " %d |", t.counts[proxy][kind])
		}
		fmt.Fprintln(out)
	}
}

func (t *page) notes(out io.Writer) {
	fmt.Fprint(out, "\n## Notes\n")
	for i, text := range t.texts {
		fmt.Fprintf(out, "%d. %s\n", i+1, text)
	}
}
