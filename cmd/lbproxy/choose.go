// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/lbproxy/lbproxy/internal/config"
)

// choice is the dataplane that a node gets, and why.
type choice struct {
	dataplane string // config.EBPF or config.IPTables; empty: neither works
	reason    string
	fallback  bool // another one would have been better
}

// failures returns what fails of findings, in words; nothing if nothing does.
func failures(fs []finding) string {
	var failed []string
	for _, f := range fs {
		if f.Level == levelFail {
			failed = append(failed, f.Name+": "+f.Detail)
		}
	}
	return strings.Join(failed, "; ")
}

// choose returns the dataplane for a configuration that wants one, or the one that the
// findings about both allow.
func choose(want string, ebpf, iptables []finding) choice {
	if want != config.Auto {
		return choice{dataplane: want, reason: "the configuration says so"}
	}
	noEBPF, noIPTables := failures(ebpf), failures(iptables)
	switch {
	case noEBPF == "":
		return choice{dataplane: config.EBPF, reason: "it is the better one, and nothing is in its way"}
	case noIPTables == "":
		return choice{dataplane: config.IPTables, reason: "ebpf cannot run here: " + noEBPF, fallback: true}
	}
	return choice{reason: fmt.Sprintf("ebpf cannot run here: %s; and iptables cannot: %s", noEBPF, noIPTables)}
}

// errNoDataplane says that no dataplane can run on this node.
var errNoDataplane = errors.New("no dataplane works on this node")

// open opens the dataplane that cfg names. With config.Auto that is eBPF if it can run,
// else iptables; what nobody foresaw until eBPF was opened counts, too.
func (a *app) open(cfg config.Config, announce announcer, log *slog.Logger) (plane, choice, error) {
	var aboutEBPF, aboutIPTables []finding
	if cfg.Dataplane == config.Auto {
		aboutEBPF = a.kernel.ebpf.check(cfg)
		if failures(aboutEBPF) != "" {
			aboutIPTables = a.kernel.iptables.check(cfg)
		}
	}
	c := choose(cfg.Dataplane, aboutEBPF, aboutIPTables)
	if c.dataplane == "" {
		return nil, c, fmt.Errorf("%w: %s", errNoDataplane, c.reason)
	}
	access, _ := a.kernel.access(c.dataplane)
	dp, err := access.open(cfg, announce, log)
	if err == nil || cfg.Dataplane != config.Auto || c.dataplane != config.EBPF || isRunning(err) {
		return dp, c, err
	}
	return a.openInstead(cfg, announce, log, err)
}

// openInstead opens the iptables dataplane because eBPF failed.
func (a *app) openInstead(cfg config.Config, announce announcer, log *slog.Logger, failed error) (plane, choice, error) {
	c := choose(config.Auto, []finding{{Name: "start", Level: levelFail, Detail: oneLine(failed)}}, a.kernel.iptables.check(cfg))
	if c.dataplane == "" {
		return nil, c, fmt.Errorf("%w: %s", errNoDataplane, c.reason)
	}
	dp, err := a.kernel.iptables.open(cfg, announce, log)
	return dp, c, err
}

// checkDataplane looks at both dataplanes, and tells which one a run would use.
func (a *app) checkDataplane(cfg config.Config, foreignMode string) (findings []finding, c choice) {
	ebpf, iptables := a.kernel.ebpf.check(cfg), a.kernel.iptables.check(cfg)
	c = choose(cfg.Dataplane, ebpf, iptables)
	verdict := finding{Name: "dataplane", Level: levelOK, Detail: fmt.Sprintf("would use %s: %s", c.dataplane, c.reason)}
	switch {
	case c.dataplane == "":
		verdict.Level, verdict.Detail = levelFail, "would not run: "+c.reason
	case c.fallback:
		verdict.Level = levelWarn
	case foreignMode != "":
		verdict.Level, verdict.Detail = levelWarn, foreignModeText(foreignMode)+"; "+verdict.Detail
	}
	return append(append(ebpf, iptables...), verdict), c
}

// foreignModeText explains what becomes of a mode of kube-proxy that lbproxy has not.
func foreignModeText(mode string) string {
	return fmt.Sprintf("%s is a mode of kube-proxy that lbproxy has not; auto is used", mode)
}

// wouldUseEBPF tells whether a run would use eBPF.
func (a *app) wouldUseEBPF(cfg config.Config) bool {
	if cfg.Dataplane != config.Auto {
		return cfg.Dataplane == config.EBPF
	}
	return failures(a.kernel.ebpf.check(cfg)) == ""
}
