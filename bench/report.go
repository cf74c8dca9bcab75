// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"text/tabwriter"

	"github.com/lbproxy/lbproxy/bench/internal/stats"
	results "github.com/lbproxy/lbproxy/bench/result"
)

// row is one line of the table.
type row = results.Row

// The ways to compare.
const (
	asValue      = results.AsValue
	asDifference = results.AsDifference
	asRatio      = results.AsRatio
	asInverse    = results.AsInverse
)

// limit is a target for a row's result.
type limit struct {
	atMost bool
	of     float64
	text   string
}

func atMost(x float64, text string) *limit  { return &limit{true, x, text} }
func atLeast(x float64, text string) *limit { return &limit{false, x, text} }

// newRow evaluates a series. base may be nil for asValue, and lim if there is no
// target.
func newRow(group, name, unit, how string, values, base []float64, lim *limit) row {
	r := row{Group: group, Name: name, Unit: unit, How: how, Values: values, Base: base}
	switch how {
	case asDifference:
		r.Result = stats.EstimateOf(stats.Pairs(values, base, stats.Difference))
	case asRatio:
		r.Result = stats.EstimateOf(stats.Pairs(values, base, stats.Ratio))
	case asInverse:
		r.Result = stats.EstimateOf(stats.Pairs(base, values, stats.Ratio))
	default:
		r.Result = stats.EstimateOf(values)
	}
	if lim != nil {
		r.Target, r.Met = lim.text, lim.judge(r.Result)
	}
	return r
}

func (l *limit) judge(e stats.Estimate) string {
	best, worst := e.Low, e.High
	if !l.atMost {
		best, worst = e.High, e.Low
	}
	within := func(x float64) bool { return l.atMost && x <= l.of || !l.atMost && x >= l.of }
	switch {
	case within(worst):
		return "yes"
	case within(best):
		return "open"
	}
	return "no"
}

// number prints four significant digits, more before the point if there are more.
func number(x float64) string {
	switch a := math.Abs(x); {
	case math.IsNaN(x):
		return "-"
	case a >= 1000 || a == 0:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case a >= 100:
		return strconv.FormatFloat(x, 'f', 1, 64)
	case a >= 10:
		return strconv.FormatFloat(x, 'f', 2, 64)
	}
	return strconv.FormatFloat(x, 'f', 3, 64)
}

// printRows writes the table of a run's rows.
func printRows(w io.Writer, r *results.File) error {
	m := r.Machine
	fmt.Fprintf(w, "\n%s\nLinux %s, %d x %s, %s, TCP %s, BPF JIT %s (hardening %s)\nload average before: %s, after: %s\n",
		m.Time.Format("2006-01-02 15:04 UTC"), m.Kernel, m.CPUs, m.CPU, m.Go, m.Congestion, m.Jit, m.Harden,
		m.LoadBefore, m.LoadAfter)
	fmt.Fprint(w, "Medians over blocks; result is the median of what each block gives against the\n"+
		"baseline measured in the same block, with a 95 % bootstrap interval and all blocks' range.\n\n")
	if r.Quick {
		fmt.Fprint(w, "A quick run: this only shows that everything runs; the numbers say nothing.\n\n")
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "what\tmedian\tbaseline\tunit\ttimes\t\tresult\t95 % interval\trange\tn\ttarget\tmet\t")
	group := ""
	for _, row := range r.Rows {
		if row.Group != group {
			group = row.Group
			fmt.Fprintf(tw, "-- %s\t\t\t\t\t\t\t\t\t\t\t\t\n", group)
		}
		e := row.Result
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s .. %s\t%s .. %s\t%d\t%s\t%s\t\n",
			row.Name, number(stats.Median(row.Values)), number(stats.Median(row.Base)), row.Unit,
			number(stats.Median(stats.Pairs(row.Values, row.Base, stats.Ratio))), sign(row.How), number(e.Median),
			number(e.Low), number(e.High), number(e.Smallest), number(e.Largest), e.N, row.Target, row.Met)
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	fmt.Fprintln(w, "\n- value minus baseline; / value by baseline; \\ baseline by value, for times")
	return nil
}

func sign(how string) string {
	return map[string]string{asDifference: "-", asRatio: "/", asInverse: `\`}[how]
}
