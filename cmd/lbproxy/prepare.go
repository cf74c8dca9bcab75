// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"strconv"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane/iptables"
)

// prepareNode does what kube-proxy does before it serves, whatever the dataplane: other
// users of connection tracking on this node, such as a CNI plugin that masquerades, count
// on the size of its table. What fails is logged: Services are served without it, too.
func (a *app) prepareNode(cfg config.Config, log *slog.Logger) {
	a.setOOMScore(cfg, log)
	if set := a.kernel.setConntrack; set != nil {
		set(cfg, log)
	}
}

// setOOMScore sets how readily the kernel ends the agent.
func (a *app) setOOMScore(cfg config.Config, log *slog.Logger) {
	set := a.kernel.setOOMScore
	if set == nil {
		return
	}
	switch err := set(cfg.OOMScoreAdj); {
	case errors.Is(err, fs.ErrPermission): // without CAP_SYS_RESOURCE, which nothing else needs
		log.Info("not permitted to set how readily the kernel ends the agent", "oom-score-adj", cfg.OOMScoreAdj)
	case err != nil:
		log.Warn("cannot set how readily the kernel ends the agent", "oom-score-adj", cfg.OOMScoreAdj, "error", err)
	}
}

// initNode prepares the node for an agent that comes after this process and may neither
// mount nor write sysctls.
func (a *app) initNode(cfg config.Config, log *slog.Logger) {
	a.prepareNode(cfg, log)
	a.mountBPFFS(cfg, log)
	open := a.kernel.openLocalnet
	if open == nil || cfg.Dataplane == config.EBPF {
		return
	}
	// Not where eBPF will serve: nothing there would keep others away from 127.0.0.0/8.
	if cfg.Dataplane == config.IPTables || failures(a.kernel.ebpf.check(cfg)) != "" {
		open(cfg, log)
	}
}

// mountBPFFS mounts the bpffs where the node has not, for an agent that comes after this
// process and must not mount. Without it the iptables dataplane still can serve.
func (a *app) mountBPFFS(cfg config.Config, log *slog.Logger) {
	mount := a.kernel.mountBPFFS
	if mount == nil || cfg.Dataplane == config.IPTables {
		return
	}
	switch mounted, err := mount(cfg.BPFFS); {
	case err != nil:
		log.Warn("there is no bpffs, and the eBPF dataplane needs one", "error", err)
	case mounted:
		log.Info("mounted a bpffs", "at", cfg.BPFFS)
	}
}

// oomScoreFile belongs to the calling process.
const oomScoreFile = "/proc/self/oom_score_adj"

func setOOMScore(n int) error { return os.WriteFile(oomScoreFile, []byte(strconv.Itoa(n)), 0) }

func openLocalnet(cfg config.Config, log *slog.Logger) {
	if err := os.MkdirAll(cfg.StateDir, 0o755); err != nil { // for the mark that lbproxy has set it
		log.Warn("cannot note what is set", "error", err)
	}
	iptables.OpenLocalnet(iptablesOptions(cfg, log))
}

func setConntrack(cfg config.Config, log *slog.Logger) {
	iptablesOptions(cfg, log).Conntrack.Apply(log)
}
