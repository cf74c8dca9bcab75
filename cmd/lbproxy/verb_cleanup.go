// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane/ebpf"
)

func (a *app) cleanupVerb() *cobra.Command {
	return a.verb(&cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that lbproxy has in this node's kernel",
		Long: `Remove everything that lbproxy has in this node's kernel. It asks nothing and
prints what it removed. Services are not served afterwards and connections that
were translated per packet break. It refuses while an agent runs.`,
	}, []string{"config", "bpffs", "cgroup-root"}, func(_ *cobra.Command, cfg config.Config, _ *config.Loader) error {
		removed, err := a.kernel.cleanup(cfg)
		for _, what := range removed {
			fmt.Fprintln(a.stdout, "removed", what)
		}
		switch {
		case errors.Is(err, ebpf.ErrRunning):
			return fmt.Errorf("%w: stop it first", err)
		case err != nil:
			return fmt.Errorf("cleanup: %w", err)
		case len(removed) == 0:
			fmt.Fprintln(a.stdout, "nothing to remove")
		}
		return nil
	})
}
