// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/lbproxy/lbproxy/internal/config"
)

func (a *app) cleanupVerb() *cobra.Command {
	return a.verb(&cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that lbproxy has in this node's kernel",
		Long: `Remove everything that lbproxy has in this node's kernel, of either dataplane. It
asks nothing and prints what it removed. Services are not served afterwards, and
connections that were translated per packet by eBPF break. It refuses while an
agent runs.`,
		Example: `  lbproxy cleanup
  lbproxy cleanup --config /etc/lbproxy/config.yaml`,
	}, []string{"config", "bpffs", "cgroup-root", "state-dir"}, func(_ *cobra.Command, cfg config.Config, _ *config.Loader) error {
		return a.cleanup(cfg)
	})
}

// cleanup removes what there is of both dataplanes.
func (a *app) cleanup(cfg config.Config) error {
	nothing := true
	var errs []error
	for _, plane := range []access{a.kernel.iptables, a.kernel.ebpf} { // an agent of either one has the lock of the former
		removed, err := plane.cleanup(cfg)
		for _, what := range removed {
			fmt.Fprintln(a.stdout, "removed", what)
			nothing = false
		}
		if isRunning(err) {
			return fmt.Errorf("%w: stop it first", err)
		}
		if err != nil && (len(errs) == 0 || errs[0].Error() != err.Error()) { // both need root
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cleanup: %w", err)
	}
	if nothing {
		fmt.Fprintln(a.stdout, "nothing to remove")
	}
	return nil
}
