// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"

	"github.com/lbproxy/lbproxy/bench/internal/sim"
)

// writeTable prints the results of one case.
func writeTable(out io.Writer, results []*sim.Result) {
	fmt.Fprintf(out, "\nload %g, nodes %d, %d requests\n", results[0].Load, results[0].Nodes, results[0].Requests)
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "\tmean ms\tp50\tp99\tp99.9\tlost\tmax share\tcv\tjain\tuse\tmax use\therd\tmoved\texcess\tns/req\t\n")
	for _, r := range results {
		lost := r.Failed + r.TimedOut + r.Unfinished
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%d\t%.3f\t%.3f\t%.3f\t%.2f\t%.2f\t%.2f\t%s\t%s\t%.0f\t\n",
			r.Algorithm, millis(r.Mean), millis(r.P50), millis(r.P99), millis(r.P999), lost,
			r.MaxShare, r.CV, r.Jain, r.Utilisation, r.MaxUtilisation, r.Herd,
			percent(r.Moved), percent(r.Excess), 1e9*r.WallSeconds/float64(max(1, r.Requests)))
	}
	_ = tw.Flush() // a terminal that is gone
}

func writeVerdicts(out io.Writer, vs []sim.Verdict) {
	if len(vs) > 0 {
		fmt.Fprintln(out)
	}
	for _, v := range vs {
		word := "ok  "
		if !v.OK {
			word = "FAIL"
		}
		fmt.Fprintf(out, "%s  %s: %.3g\n", word, v.Text, v.Got)
	}
}

// millis prints seconds as milliseconds with four digits.
func millis(seconds float64) string {
	return strconv.FormatFloat(seconds*1000, 'g', 4, 64)
}

func percent(part float64) string {
	if part == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f%%", 100*part)
}
