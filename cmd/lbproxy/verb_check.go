// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lbproxy/lbproxy/internal/config"
)

func (a *app) checkVerb() *cobra.Command {
	var out output
	cmd := a.verb(&cobra.Command{
		Use:   "check",
		Short: "Tell whether this node is fit for lbproxy with this configuration",
		Long: `Tell whether this node is fit for lbproxy with this configuration, and what is in
the way. It changes nothing. The exit code is 1 if something fails.`,
	}, nil, func(cmd *cobra.Command, cfg config.Config, _ *config.Loader) error {
		findings := append(a.kernel.check(cfg), a.checkAgent(cmd.Context(), cfg)...)
		if err := out.print(a.stdout, findings, func(w io.Writer) error { return findingsTable(w, findings) }); err != nil {
			return err
		}
		failed := 0
		for _, f := range findings {
			if f.Level == levelFail {
				failed++
			}
		}
		if failed > 0 {
			return fmt.Errorf("this node is not fit: %d of %d checks failed", failed, len(findings))
		}
		return nil
	})
	out.register(cmd.Flags())
	return cmd
}

func findingsTable(w io.Writer, findings []finding) error {
	var rows [][]string
	for _, f := range findings {
		rows = append(rows, []string{strings.ToUpper(f.Level), f.Name, f.Detail})
	}
	return writeTable(w, []string{"LEVEL", "CHECK", "DETAIL"}, rows)
}

// checkAgent looks at what the agent needs besides the kernel.
func (a *app) checkAgent(ctx context.Context, cfg config.Config) []finding {
	src := finding{"services", levelOK, sourceName(cfg)}
	switch err := checkSource(cfg); {
	case errors.Is(err, errNoSource): // whoever looks at a node before anything is installed
		src.Level, src.Detail = levelWarn, err.Error()
	case err != nil:
		src.Level, src.Detail = levelFail, err.Error()
	}
	return []finding{
		src,
		checkBind(ctx, "healthz-bind-address", cfg.HealthzBindAddress),
		checkBind(ctx, "metrics-bind-address", cfg.MetricsBindAddress),
	}
}

// checkBind tells whether a server could have addr. It is a warning if not: an
// agent that runs has it, and one that starts tries again.
func checkBind(ctx context.Context, name string, addr netip.AddrPort) finding {
	if !addr.IsValid() {
		return finding{name, levelOK, "no server"}
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", addr.String())
	if err != nil {
		return finding{name, levelWarn, fmt.Sprintf("%v: lbproxy or kube-proxy may be running", err)}
	}
	ln.Close()
	return finding{name, levelOK, addr.String() + " is free"}
}
