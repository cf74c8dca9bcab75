// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/lb"
	"github.com/lbproxy/lbproxy/internal/server"
)

func (a *app) getHealth() *cobra.Command {
	g := &getter{}
	cmd := a.verb(&cobra.Command{
		Use:   "health",
		Short: "One line for each backend that the agent watches: what it thinks of it, and why",
		Long: `One line for each backend that the agent of this node watches: what it thinks of it,
and why. The agent is asked: it must run. A backend is watched when its Service asks for
probes, or when a connection to it has failed.`,
		Example: `  lbproxy get health
  lbproxy get health -n shop -o yaml`,
	}, getFlags, func(cmd *cobra.Command, cfg config.Config, _ *config.Loader) error {
		vs, err := a.ask(cmd.Context(), cfg.StateDir)
		if err != nil {
			return err
		}
		l, err := a.listHealth(vs, g.namespace)
		if err != nil {
			return err
		}
		return g.print(a, l)
	})
	g.register(cmd)
	return cmd
}

// listHealth shows what is thought of the backends of a namespace, or of all, sorted.
func (a *app) listHealth(vs []server.Verdict, namespace string) (list, error) {
	type row struct {
		lb.ServiceName
		server.Verdict
	}
	var rows []row
	for _, v := range vs {
		n, err := lb.ParseServiceName(v.Service)
		if err != nil {
			return list{}, err
		}
		if namespace == "" || n.Namespace == namespace {
			rows = append(rows, row{n, v})
		}
	}
	slices.SortFunc(rows, func(a, b row) int {
		return cmp.Or(a.Compare(b.ServiceName), compareAddresses(a.Backend, b.Backend))
	})
	l := list{
		what:   "backends that are watched",
		header: slices.Concat(nameHeader, []string{"BACKEND", "STATE", "PROBE", "SINCE", "REASON", "IGNORED"}),
	}
	items := []server.Verdict{}
	for _, r := range rows {
		items = append(items, r.Verdict)
		l.rows = append(l.rows, slices.Concat(nameCells(r.ServiceName),
			[]string{r.Backend, r.State, r.Probe, a.age(r.Since), orDash(oneCell(r.Reason)), orDash(oneCell(r.Ignored))}))
	}
	l.items = items
	return l, nil
}

// oneCell keeps text within its cell of a table.
func oneCell(text string) string { return strings.Join(strings.Fields(text), " ") }
