// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/migrate"
)

// migration is what `lbproxy migrate` is asked for.
type migration struct {
	check, rollback, dryRun, force, hold bool
	steps                                int           // at most; 0: all
	wait                                 time.Duration // for connections that need lbproxy; 0: until they have ended
	out                                  output
}

func (a *app) migrateVerb() *cobra.Command {
	var m migration
	cmd := a.verb(&cobra.Command{
		Use:   "migrate",
		Short: "Take this node over from kube-proxy, or give it back, without ending a connection",
		Long: `Take this node over from kube-proxy: see that the agent of lbproxy serves every
Service and that no kube-proxy runs, and remove kube-proxy's rules. Connections that
kube-proxy's rules translated go on; new ones are lbproxy's already.

With --check, only compare what kube-proxy's rules do with what lbproxy would do,
Service by Service. With --rollback, the other way: see that kube-proxy runs and has
rules for every Service, and that no agent of lbproxy runs, and make lbproxy go.

Each step can be repeated; what is interrupted goes on when it is run again. The exit
code is 1 if something is in the way, or differs so that connections would not be
served.`,
		Example: `  lbproxy migrate --check       # what would change
  lbproxy migrate --dry-run     # what would be removed
  lbproxy migrate               # take over
  lbproxy migrate --rollback    # give back`,
	}, nil, func(cmd *cobra.Command, cfg config.Config, _ *config.Loader) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		if m.check && m.rollback {
			return usageError{errors.New("--check and --rollback exclude each other")}
		}
		err := a.migrate(ctx, cfg, &m)
		if err == nil && m.hold {
			fmt.Fprintln(a.stdout, "done; waiting for SIGTERM")
			<-ctx.Done()
		}
		return err
	})
	fs := cmd.Flags()
	fs.BoolVar(&m.check, "check", false, "only compare")
	fs.BoolVar(&m.rollback, "rollback", false, "give the node back to kube-proxy")
	fs.BoolVar(&m.dryRun, "dry-run", false, "only tell what would be done")
	fs.BoolVar(&m.force, "force", false, "go on although something would not be served")
	fs.BoolVar(&m.hold, "hold", false, "when all is done, wait for SIGTERM: a DaemonSet would start a process that ends again")
	fs.IntVar(&m.steps, "steps", 0, "do so many steps at most; 0: all")
	fs.DurationVar(&m.wait, "wait", 0, "with --rollback, how long to wait for connections that only lbproxy can translate; 0: until they have ended")
	m.out.register(cmd)
	return cmd
}

func (a *app) migrate(ctx context.Context, cfg config.Config, m *migration) error {
	found, err := migrate.Look(ctx)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	switch {
	case m.check:
		return a.checkMigration(ctx, cfg, found, m)
	case m.rollback:
		return a.giveBack(ctx, cfg, found, m)
	}
	return a.takeOver(ctx, cfg, found, m)
}

// comparison is what --check prints.
type comparison struct {
	Mode        string               `json:"mode"` // kube-proxy's by its rules: iptables, nftables or nothing
	Processes   []int                `json:"processes,omitempty"`
	Frontends   int                  `json:"frontends"` // of kube-proxy and of lbproxy
	Differences []migrate.Difference `json:"differences"`
	Notes       []string             `json:"notes,omitempty"`
}

// failed counts what would not be served.
func (c *comparison) failed() (n int) {
	for _, d := range c.Differences {
		if d.Level == migrate.Fail {
			n++
		}
	}
	return n
}

func (c *comparison) table(w io.Writer) error {
	rows := make([][]string, 0, len(c.Differences))
	for _, d := range c.Differences {
		rows = append(rows, []string{d.Level, d.Service, d.Frontend, orDash(d.Caller), d.What, orDash(d.KubeProxy), orDash(d.Lbproxy)})
	}
	if len(rows) > 0 {
		if err := writeTable(w, []string{"LEVEL", "SERVICE", "FRONTEND", "CALLER", "WHAT", "KUBE-PROXY", "LBPROXY"}, rows); err != nil {
			return err
		}
	}
	for _, n := range c.Notes {
		fmt.Fprintln(w, "note:", n)
	}
	_, err := fmt.Fprintf(w, "kube-proxy (%s) and lbproxy: %d frontends, %d differences, %d of them would not be served\n",
		orDash(c.Mode), c.Frontends, len(c.Differences), c.failed())
	return err
}

// sides are what kube-proxy's rules do, and what lbproxy would.
type sides struct {
	rules    *migrate.Rules
	services []*dataplane.Service
	opts     migrate.Options
}

// bothSides reads them.
func (a *app) bothSides(ctx context.Context, cfg config.Config, found *migrate.Found) (s sides, err error) {
	if s.rules, err = found.Rules(ctx); err != nil {
		return s, fmt.Errorf("read kube-proxy's rules: %w", err)
	}
	want, err := desired(ctx, cfg)
	if err != nil {
		return s, err
	}
	s.services = want.services
	s.opts = migrate.Options{Local: cfg.LocalDetector(), Node: want.node, Sockets: a.wouldUseEBPF(cfg)}
	return s, nil
}

// compare compares what was found with what lbproxy would do.
func (a *app) compare(ctx context.Context, cfg config.Config, found *migrate.Found) (*comparison, error) {
	s, err := a.bothSides(ctx, cfg, found)
	if err != nil {
		return nil, err
	}
	c := &comparison{Mode: found.Mode(), Processes: found.Processes, Notes: found.Stays()}
	c.Differences, c.Frontends = migrate.Compare(s.rules, s.services, s.opts)
	if s.opts.Sockets && found.ForwardRefuses() {
		c.Notes = append(c.Notes, "table filter drops or rejects what no rule wants forwarded: lbproxy with eBPF writes no rules, so let connections to pods pass")
	}
	if found.Blind {
		c.Notes = append(c.Notes, errCannotTell.Error())
	}
	return c, nil
}

func (a *app) checkMigration(ctx context.Context, cfg config.Config, found *migrate.Found, m *migration) error {
	c, err := a.compare(ctx, cfg, found)
	if err != nil {
		return err
	}
	if c.Differences == nil {
		c.Differences = []migrate.Difference{} // a list, even an empty one
	}
	if err := m.out.print(a, c, c.table); err != nil {
		return err
	}
	switch {
	case !found.Serves():
		return errors.New("kube-proxy has no rules on this node")
	case c.failed() > 0:
		return fmt.Errorf("%d of %d frontends would not be served as with kube-proxy", c.failed(), c.Frontends)
	}
	return nil
}
