// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"strconv"

	"github.com/lbproxy/lbproxy/internal/config"
)

// prepareNode does what kube-proxy does before it serves, whatever the dataplane: other
// users of connection tracking on this node, such as a CNI plugin that masquerades, count
// on the size of its table. What fails is logged: Services are served without it, too.
func (a *app) prepareNode(cfg config.Config, log *slog.Logger) {
	if set := a.kernel.setOOMScore; set != nil {
		switch err := set(cfg.OOMScoreAdj); {
		case errors.Is(err, fs.ErrPermission): // without CAP_SYS_RESOURCE, which nothing else needs
			log.Info("not permitted to set how readily the kernel ends the agent", "oom-score-adj", cfg.OOMScoreAdj)
		case err != nil:
			log.Warn("cannot set how readily the kernel ends the agent", "oom-score-adj", cfg.OOMScoreAdj, "error", err)
		}
	}
	if set := a.kernel.setConntrack; set != nil {
		set(cfg, log)
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

func setConntrack(cfg config.Config, log *slog.Logger) {
	iptablesOptions(cfg, log).Conntrack.Apply(log)
}
