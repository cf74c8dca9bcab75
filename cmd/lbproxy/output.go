// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// output is how a verb prints; it is the value of --output.
type output string

// The outputs.
const (
	outputTable output = "table"
	outputJSON  output = "json"
	outputYAML  output = "yaml"
)

// outputs are all of them.
var outputs = []string{string(outputTable), string(outputJSON), string(outputYAML)}

// register adds --output to a command.
func (o *output) register(cmd *cobra.Command) {
	*o = outputTable
	cmd.Flags().VarP(o, "output", "o", "table, json or yaml")
	complete(cmd, "output", outputs)
}

// complete makes shells offer values for a flag.
func complete(cmd *cobra.Command, flag string, values []string) {
	offer := cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
	if err := cmd.RegisterFlagCompletionFunc(flag, offer); err != nil {
		panic(err) // there is no such flag
	}
}

// String returns the name.
func (o *output) String() string { return string(*o) }

// Type returns what the help text calls the value.
func (o *output) Type() string { return "format" }

// Set takes a name.
func (o *output) Set(s string) error {
	if !slices.Contains(outputs, s) {
		return fmt.Errorf("%q: want table, json or yaml", s)
	}
	*o = output(s)
	return nil
}

// print writes v, or the table that table makes of it.
func (o output) print(a *app, v any, table func(io.Writer) error) error {
	var text []byte
	var err error
	switch o {
	case outputTable:
		var whole bytes.Buffer
		if err := table(&whole); err != nil {
			return err
		}
		_, err := a.coloured().Write(whole.Bytes())
		return err
	case outputYAML:
		text, err = yaml.Marshal(v)
	default:
		text, err = json.MarshalIndent(v, "", "  ")
		text = append(text, '\n')
	}
	if err != nil {
		return fmt.Errorf("output: %w", err)
	}
	_, err = a.stdout.Write(text)
	return err
}

// writeTable aligns rows below a header, as kubectl does.
func writeTable(w io.Writer, header []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	return tw.Flush()
}

// orDash returns s, or what stands for nothing in a table.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
