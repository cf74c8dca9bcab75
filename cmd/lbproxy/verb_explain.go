// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
	"github.com/lbproxy/lbproxy/internal/server"
)

// client is the value of --from.
type client struct{ netip.Addr }

// String returns the address, or nothing before one is set.
func (c *client) String() string {
	if !c.IsValid() {
		return ""
	}
	return c.Addr.String()
}

// Type returns what the help text calls the value.
func (c *client) Type() string { return "ip" }

// Set reads an address.
func (c *client) Set(s string) error {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return fmt.Errorf("%q: want an IP address", s)
	}
	c.Addr = addr.Unmap()
	return nil
}

// target is the value of --to.
type target struct{ lb.FrontendKey }

// String returns the target, or nothing before one is set.
func (t *target) String() string {
	if !t.Addr.IsValid() {
		return ""
	}
	return t.FrontendKey.String()
}

// Type returns what the help text calls the value.
func (t *target) Type() string { return "ip:port[/proto]" }

// Set reads an address, a port and a protocol.
func (t *target) Set(s string) error {
	addr, proto, _ := strings.Cut(s, "/")
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return fmt.Errorf("%q: want ip:port or ip:port/proto, such as 10.96.0.10:53/udp", s)
	}
	p, err := lb.ParseProto(proto)
	if err != nil {
		return fmt.Errorf("%q: %w", s, err)
	}
	t.FrontendKey = lb.FrontendKey{Addr: netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), Proto: p}
	return nil
}

func (a *app) explainVerb() *cobra.Command {
	var from client
	var to target
	var out output
	cmd := a.verb(&cobra.Command{
		Use:   "explain --from IP --to IP:PORT[/PROTO]",
		Short: "Tell what happens to a new connection on this node, and why",
		Example: `  lbproxy explain --from 10.244.1.5 --to 10.96.0.10:53/udp
  lbproxy explain --from 192.0.2.7 --to 192.0.2.200:30080 -o json`,
	}, getFlags, func(cmd *cobra.Command, cfg config.Config, _ *config.Loader) error {
		if from.Is4() != to.Addr.Addr().Is4() {
			return usageError{fmt.Errorf("from %s to %s: want addresses of one family", from.Addr, to.Addr)}
		}
		return a.withView(cfg, func(v view) error {
			e, err := v.Explain(from.Addr, to.FrontendKey)
			if err != nil {
				return fmt.Errorf("explain %s: %w", to.FrontendKey, err)
			}
			x := explained{Explanation: e}
			if e.Service != "" {
				x.known = a.askHealth(cmd.Context(), cfg)
				x.Health = x.known.all(e.Service)
			}
			return out.print(a, x, func(w io.Writer) error { return a.explanation(w, from, to, x) })
		})
	})
	cmd.Flags().Var(&from, "from", "the client's address")
	cmd.Flags().Var(&to, "to", "where it connects to; PROTO is tcp (the default), udp or sctp")
	for _, name := range []string{"from", "to"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // there is no such flag
		}
	}
	out.register(cmd)
	return cmd
}

// explained is an Explanation and what the agent thinks of the Service's backends.
type explained struct {
	dataplane.Explanation
	Health []server.Verdict `json:"health,omitempty"` // of those that are watched
	known  opinions
}

// explanation writes e for people.
func (a *app) explanation(w io.Writer, from client, to target, e explained) error {
	masquerade := "no"
	if e.Masquerade {
		masquerade = "yes, on the packet path"
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, line := range [][2]string{
		{"From", from.String()}, {"To", to.String()}, {"Service", orDash(e.Service)},
		{"Decision", e.Decision}, {"Reason", e.Reason}, {"Masquerade", masquerade},
	} {
		fmt.Fprintf(tw, "%s:\t%s\n", line[0], line[1])
	}
	if e.Approximation != "" {
		fmt.Fprintf(tw, "Approximated:\t%s\n", e.Approximation)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	var candidates, out [][]string
	for _, b := range e.Candidates {
		health := oneCell(opinion(e.known.of(e.Service, b.Address)))
		candidates = append(candidates, slices.Concat([]string{"  " + b.Address}, counters(b), []string{health}))
	}
	if err := section(w, "Candidates", slices.Concat([]string{"  BACKEND"}, counterHeader, []string{"HEALTH"}), candidates); err != nil {
		return err
	}
	for _, v := range e.Health {
		if v.State == stateOut && v.Ignored == "" {
			out = append(out, []string{"  " + v.Backend, a.age(v.Since), v.Probe, orDash(oneCell(v.Reason))})
		}
	}
	if err := section(w, "Out for their health", []string{"  BACKEND", "SINCE", "PROBE", "REASON"}, out); err != nil {
		return err
	}
	if len(e.Steps) > 0 {
		fmt.Fprintln(w, "\nSteps:")
	}
	for i, step := range e.Steps {
		fmt.Fprintf(w, "%3d. %s\n", i+1, step)
	}
	return nil
}

// section writes a table below its title, unless it is empty.
func section(w io.Writer, title string, header []string, rows [][]string) error {
	if len(rows) == 0 {
		return nil
	}
	fmt.Fprintf(w, "\n%s:\n", title)
	return writeTable(w, header, rows)
}
