// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// getFlags are the flags that every `get` has.
var getFlags = []string{"config", "bpffs", "state-dir"}

func (a *app) getVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get services|backends|connections|health|config",
		Short: "Show what is in this node's kernel, whether an agent runs or not, and what the agent thinks of backends and is configured to do",
		Example: `  lbproxy get services
  lbproxy get backends -n shop -o json
  lbproxy get connections --limit 0
  lbproxy get health`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("get what: want services, backends, connections, health or config")}
		},
	}
	cmd.AddCommand(a.getServices(), a.getBackends(), a.getConnections(), a.getHealth(), a.getConfig())
	return cmd
}

// getter is the part that they have in common.
type getter struct {
	namespace string
	out       output
}

func (g *getter) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&g.namespace, "namespace", "n", "", "only this namespace; default: all")
	g.out.register(cmd)
}

func (a *app) getter(cmd *cobra.Command, do func(context.Context, *getter, config.Config, view) error) *cobra.Command {
	g := &getter{}
	a.verb(cmd, getFlags, func(cmd *cobra.Command, cfg config.Config, _ *config.Loader) error {
		return a.withView(cfg, func(v view) error { return do(cmd.Context(), g, cfg, v) })
	})
	g.register(cmd)
	return cmd
}

// withView calls do with what is in the kernel.
func (a *app) withView(cfg config.Config, do func(view) error) error {
	v, err := a.openView(cfg)
	if err != nil {
		return err
	}
	return errors.Join(do(v), v.Close())
}

func (a *app) getServices() *cobra.Command {
	return a.getter(&cobra.Command{
		Use:     "services",
		Aliases: []string{"service", "svc"},
		Short:   "One line for each port of each Service and family",
		Example: `  lbproxy get services
  lbproxy get services -n kube-system -o yaml`,
	}, func(_ context.Context, g *getter, _ config.Config, v view) error {
		svcs, err := g.services(v)
		if err != nil {
			return err
		}
		return g.print(a, listServices(svcs))
	})
}

func (a *app) getBackends() *cobra.Command {
	g := &getter{}
	cmd := a.verb(&cobra.Command{
		Use:     "backends",
		Aliases: []string{"backend"},
		Short:   "One line for each backend of each Service port, with its counters and its health",
		Example: `  lbproxy get backends
  lbproxy get backends -n shop -o json`,
	}, getFlags, func(cmd *cobra.Command, cfg config.Config, _ *config.Loader) error {
		c, err := a.takeCensus(cmd.Context(), cfg, g.namespace, a.stderr)
		if err != nil {
			return err
		}
		return g.print(a, listBackends(c.services, c.known))
	})
	g.register(cmd)
	return cmd
}

func (a *app) getConnections() *cobra.Command {
	var limit uint32
	cmd := a.getter(&cobra.Command{
		Use:     "connections",
		Aliases: []string{"connection", "conns"},
		Short:   "Connections of the packet path: those that no socket of this node began",
		Example: `  lbproxy get connections -n shop
  lbproxy get connections --limit 0 -o json`,
	}, func(_ context.Context, g *getter, _ config.Config, v view) error {
		svcs, err := g.services(v)
		if err != nil {
			return err
		}
		conns, err := v.Connections(int(limit))
		if err != nil {
			return fmt.Errorf("connections: %w", err)
		}
		if limit > 0 && len(conns) >= int(limit) {
			fmt.Fprintf(a.stderr, "only %d connections were read: --limit 0 reads all\n", limit)
		}
		return g.print(a, listConnections(conns, svcs, g.namespace))
	})
	cmd.Flags().Uint32Var(&limit, "limit", 1000, "read at most this many; 0: all")
	return cmd
}

// named is a Service view and its name's parts.
type named struct {
	lb.ServiceName
	dataplane.ServiceView
}

// services returns the Services of the namespace that was asked for, sorted.
func (g *getter) services(v view) ([]named, error) {
	views, err := v.Services()
	if err != nil {
		return nil, fmt.Errorf("services: %w", err)
	}
	return selectServices(views, g.namespace)
}

// print writes one list.
func (g *getter) print(a *app, l list) error {
	if len(l.rows) == 0 && g.out == outputTable {
		fmt.Fprintf(a.stderr, "no %s\n", l.what)
		return nil
	}
	return g.out.print(a, l.items, l.table)
}
