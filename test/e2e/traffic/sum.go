// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// event is something that happened to the cluster.
type event struct {
	at   time.Time
	text string
}

// sum writes a table of what the clients that wrote files saw, and each failure with the
// event before it. Failures are an error, unless they are from before the first event: what has
// just started is still getting its addresses.
func sum(out io.Writer, eventsFile string, files []string) error {
	events, err := readEvents(eventsFile)
	if err != nil {
		return err
	}
	var failures []line
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CLIENT\tTARGET\tEXCHANGES\tBROKEN\tOPENED\tFAILED\tLONGEST MS")
	for _, file := range files {
		last, failed, err := readLines(file)
		if err != nil {
			return err
		}
		if !last.Steady {
			return fmt.Errorf("%s: not every connection that should be held ever was", file)
		}
		if n := last.failures(); n > len(failed) {
			return fmt.Errorf("%s: %d failures were counted, and %d are written: lines are lost", file, n, len(failed))
		}
		failures = append(failures, failed...)
		for _, target := range slices.Sorted(maps.Keys(last.Counts)) {
			c := last.Counts[target]
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%.1f\n", last.Client, target, c.Exchanges, c.Broken, c.Opened, c.Failed, c.LongestMS)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	slices.SortFunc(failures, func(a, b line) int { return a.Time.Compare(b.Time) })
	bad := 0
	for _, f := range failures {
		when := "before the first event"
		if e, ok := latest(events, f.Time); ok {
			bad++
			when = fmt.Sprintf("%.1f s after: %s", f.Time.Sub(e.at).Seconds(), e.text)
		}
		fmt.Fprintf(out, "%s %s %s %s from %s: %s; %s\n", f.Time.Format("15:04:05.000"), f.Client, f.Target, f.Kind, f.Local, f.Error, when)
	}
	if bad > 0 {
		return fmt.Errorf("%d failures", bad)
	}
	return nil
}

// failures is how many a summary counted. More may be written: those after it.
func (l line) failures() int {
	n := 0
	for _, c := range l.Counts {
		n += c.Broken + c.Failed
	}
	return n
}

// readLines returns the last summary in file, and the failures.
func readLines(file string) (last line, failures []line, err error) {
	f, err := os.Open(file)
	if err != nil {
		return line{}, nil, err
	}
	defer func() { _ = f.Close() }()
	scanner := bufio.NewScanner(f)
	for scanner.Scan() {
		var l line
		if err := json.Unmarshal(scanner.Bytes(), &l); err != nil {
			return line{}, nil, fmt.Errorf("%s: %w", file, err)
		}
		if l.Counts != nil {
			last = l
		} else {
			failures = append(failures, l)
		}
	}
	return last, failures, scanner.Err()
}

func readEvents(file string) ([]event, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var events []event
	for text := range strings.Lines(string(data)) {
		stamp, text, _ := strings.Cut(strings.TrimSpace(text), " ")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		events = append(events, event{at, text})
	}
	return events, nil
}

// latest returns the last event that is not after t.
func latest(events []event, t time.Time) (event, bool) {
	for _, e := range slices.Backward(events) {
		if !e.at.After(t) {
			return e, true
		}
	}
	return event{}, false
}
