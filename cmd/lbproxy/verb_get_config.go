// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/server"
)

func (a *app) getConfig() *cobra.Command {
	var out output
	var given bool
	cmd := a.verb(&cobra.Command{
		Use:   "config",
		Short: "The configuration that the agent runs with, where it is from, and what waits for a restart",
		Long: `The configuration that the agent of this node runs with, and where each value is
from. The agent is asked: it must run. Lines on stderr name what its file says and only
a restart applies, and why the file is not applied, if it is not.`,
		Example: `  lbproxy get config
  lbproxy get config --given
  lbproxy get config -o json`,
	}, getFlags, func(cmd *cobra.Command, cfg config.Config, _ *config.Loader) error {
		c, err := a.askConfig(cmd.Context(), cfg.StateDir)
		if err != nil {
			return err
		}
		if given {
			maps.DeleteFunc(c.Fields, func(name string, _ any) bool { return c.Sources[name] == "" })
		}
		a.tellWaiting(c)
		return out.print(a, c, func(w io.Writer) error { return configTable(w, c) })
	})
	cmd.Flags().BoolVar(&given, "given", false, "only what is given by the file, the environment or a flag")
	out.register(cmd)
	return cmd
}

// tellWaiting tells on stderr what of the file is not in force.
func (a *app) tellWaiting(c server.Config) {
	if c.Rejected != "" {
		fmt.Fprintf(a.stderr, "the file is rejected, what was read before is in force: %s\n", c.Rejected)
	}
	if len(c.Waiting) > 0 {
		fmt.Fprintf(a.stderr, "a restart would apply %s\n", words(c.Waiting))
	}
}

func configTable(w io.Writer, c server.Config) error {
	var rows [][]string
	for _, name := range slices.Sorted(maps.Keys(c.Fields)) {
		rows = append(rows, []string{name, orDash(oneCell(valueText(c.Fields[name]))), cmp.Or(c.Sources[name], "default")})
	}
	return writeTable(w, []string{"FIELD", "VALUE", "FROM"}, rows)
}

// valueText writes a value as JSON has it in a word.
func valueText(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []any:
		items := make([]string, len(v))
		for i := range v {
			items[i] = valueText(v[i])
		}
		return strings.Join(items, ",")
	}
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(text)
}
