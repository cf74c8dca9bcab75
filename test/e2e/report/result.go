// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// outcome is what became of a test.
type outcome string

const (
	pass outcome = "PASS"
	fail outcome = "FAIL"
	skip outcome = "SKIP" // by the test itself, which says why
)

// result is a line of a list: outcome, seconds, name, and why it is not a pass.
type result struct {
	name    string
	outcome outcome
	seconds float64
	why     string
}

const whyLimit = 200 // bytes of a message that a line has

func (r result) String() string {
	line := fmt.Sprintf("%s %6.1fs %s", r.outcome, r.seconds, r.name)
	if r.why != "" {
		line += "  # " + r.why
	}
	return line
}

// parse reads a list as list writes it. Lines that begin with # are comments.
func parse(in io.Reader) ([]result, error) {
	var results []result
	scanner := bufio.NewScanner(in)
	for scanner.Scan() {
		line := scanner.Text()
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		var r result
		if _, err := fmt.Sscanf(line, "%s %fs", &r.outcome, &r.seconds); err != nil {
			return nil, fmt.Errorf("line %q: %w", line, err)
		}
		if !slices.Contains([]outcome{pass, fail, skip}, r.outcome) {
			return nil, fmt.Errorf("line %q: no outcome", line)
		}
		_, rest, _ := strings.Cut(line, "s ")
		r.name, r.why, _ = strings.Cut(rest, "  # ")
		results = append(results, r)
	}
	return results, scanner.Err()
}

// junit is what is read of a report of ginkgo.
type junit struct {
	Suites []struct {
		Cases []testCase `xml:"testcase"`
	} `xml:"testsuite"`
}

type testCase struct {
	Name    string   `xml:"name,attr"`
	Seconds float64  `xml:"time,attr"`
	Failure *message `xml:"failure"`
	Error   *message `xml:"error"`
	Skipped *message `xml:"skipped"`
}

type message struct {
	Text string `xml:"message,attr"`
}

// list writes a line for each test of the reports at paths, and for each step around them
// that failed, in alphabetical order, and how many there are of each outcome.
func list(out io.Writer, paths []string) error {
	var results []result
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var report junit
		if err := xml.Unmarshal(data, &report); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, suite := range report.Suites {
			for _, c := range suite.Cases {
				if r, ok := c.result(); ok {
					results = append(results, r)
				}
			}
		}
	}
	if len(results) == 0 {
		return fmt.Errorf("no test ran")
	}
	slices.SortFunc(results, func(a, b result) int { return strings.Compare(a.name, b.name) })
	counts := map[outcome]int{}
	for _, r := range results {
		counts[r.outcome]++
		fmt.Fprintln(out, r)
	}
	fmt.Fprintf(out, "# %d passed, %d failed, %d skipped\n", counts[pass], counts[fail], counts[skip])
	return nil
}

// result is false for a test that was not chosen, and for a step around the tests that
// did what it should.
func (c testCase) result() (result, bool) {
	name, isTest := strings.CutPrefix(c.Name, "[It] ")
	r := result{name: name, outcome: pass, seconds: c.Seconds}
	problem := c.Failure
	if problem == nil {
		problem = c.Error
	}
	switch {
	case problem != nil:
		r.outcome, r.why = fail, problem.Text
	case c.Skipped != nil:
		// ginkgo says "skipped" alone of a test that --focus or --skip left out.
		reason, ok := strings.CutPrefix(c.Skipped.Text, "skipped - ")
		if !ok {
			return result{}, false
		}
		r.outcome, r.why = skip, reason
	}
	r.why = strings.Join(strings.Fields(r.why), " ")
	if len(r.why) > whyLimit {
		r.why = strings.ToValidUTF8(r.why[:whyLimit], "") + "..."
	}
	return r, isTest || r.outcome == fail
}
