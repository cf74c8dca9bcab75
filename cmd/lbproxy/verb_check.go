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
	"github.com/lbproxy/lbproxy/internal/health"
	"github.com/lbproxy/lbproxy/internal/lb"
)

func (a *app) checkVerb() *cobra.Command {
	var out output
	cmd := a.verb(&cobra.Command{
		Use:   "check",
		Short: "Tell whether this node is fit for lbproxy with this configuration",
		Long: `Tell whether this node is fit for lbproxy with this configuration, what is in the
way, and which dataplane would be used. It changes nothing. The exit code is 1 if
something fails that is needed.`,
		Example: `  lbproxy check
  lbproxy check --config /etc/lbproxy/config.yaml -o json
  lbproxy check --manifests demo/manifests --dataplane iptables`,
	}, nil, func(cmd *cobra.Command, cfg config.Config, loader *config.Loader) error {
		findings, chosen := a.checkDataplane(cfg, loader.ForeignMode())
		findings = append(findings, a.checkAgent(cmd.Context(), cfg)...)
		if err := out.print(a, findings, func(w io.Writer) error { return findingsTable(w, findings) }); err != nil {
			return err
		}
		failed := 0
		for _, f := range findings {
			if f.Level == levelFail && (f.Dataplane == "" || f.Dataplane == chosen.dataplane) {
				failed++
			}
		}
		if failed > 0 {
			return fmt.Errorf("this node is not fit: %d of %d checks failed", failed, len(findings))
		}
		return nil
	})
	out.register(cmd)
	return cmd
}

func findingsTable(w io.Writer, findings []finding) error {
	var rows [][]string
	for _, f := range findings {
		rows = append(rows, []string{strings.ToUpper(f.Level), orDash(f.Dataplane), f.Name, f.Detail})
	}
	return writeTable(w, []string{"LEVEL", "DATAPLANE", "CHECK", "DETAIL"}, rows)
}

// checkAgent looks at what the agent needs besides the kernel.
func (a *app) checkAgent(ctx context.Context, cfg config.Config) []finding {
	src := finding{Name: "services", Level: levelOK, Detail: sourceName(cfg)}
	switch err := checkSource(cfg); {
	case errors.Is(err, errNoSource): // whoever looks at a node before anything is installed
		src.Level, src.Detail = levelWarn, err.Error()
	case err != nil:
		src.Level, src.Detail = levelFail, err.Error()
	}
	findings := []finding{
		src,
		checkPods(cfg.LocalDetector()),
		checkNodePorts(cfg),
		checkBind(ctx, "healthz-bind-address", cfg.HealthzBindAddress),
		checkBind(ctx, "metrics-bind-address", cfg.MetricsBindAddress),
	}
	if cfg.Scripts.Dir != "" {
		findings = append(findings, checkScripts(cfg.Scripts.Dir))
	}
	return findings
}

// checkBind tells whether a server could have addr. It is a warning if not: an
// agent that runs has it, and one that starts tries again.
func checkBind(ctx context.Context, name string, addr netip.AddrPort) finding {
	if !addr.IsValid() {
		return finding{Name: name, Level: levelOK, Detail: "no server"}
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", addr.String())
	if err != nil {
		return finding{Name: name, Level: levelWarn, Detail: fmt.Sprintf("%v: lbproxy or kube-proxy may be running", err)}
	}
	ln.Close()
	return finding{Name: name, Level: levelOK, Detail: addr.String() + " is free"}
}

// checkScripts tells whether exec probes can use the directory of scripts. They are refused
// otherwise, and everything else is served.
func checkScripts(dir string) finding {
	f := finding{Name: "health-script-dir", Level: levelOK}
	fit, unfit, err := health.CheckScripts(dir)
	switch {
	case err != nil:
		f.Level, f.Detail = levelWarn, fmt.Sprintf("probes of kind exec are refused: %s", oneLine(err))
	case len(unfit) > 0:
		f.Level, f.Detail = levelWarn, fmt.Sprintf("%s: %d of %d files are no scripts for probes: %s", dir, len(unfit), len(unfit)+len(fit), oneLine(unfit[0]))
	default:
		f.Detail = fmt.Sprintf("%s: scripts for probes: %d", dir, len(fit))
	}
	return f
}

// checkPods tells how callers that are pods are told from others.
func checkPods(d lb.LocalDetector) finding {
	f := finding{Name: "detect-local-mode", Level: levelOK}
	switch d.Mode {
	case lb.LocalClusterCIDR:
		f.Detail = fmt.Sprintf("%s: addresses in %s are pods", d.Mode, rangeList(d.Ranges))
	case lb.LocalNodeCIDR:
		f.Detail = fmt.Sprintf("%s: addresses in the podCIDRs of this Node are pods; nobody before they are known", d.Mode)
	case lb.LocalBridgeInterface:
		f.Detail = fmt.Sprintf("%s: what comes from bridge %s is from pods", d.Mode, d.Interface)
		if _, err := net.InterfaceByName(d.Interface); err != nil {
			f.Level, f.Detail = levelWarn, fmt.Sprintf("%s, which is not there yet", f.Detail)
		}
	case lb.LocalInterfaceNamePrefix:
		f.Detail = fmt.Sprintf("%s: what comes from devices named %s... is from pods", d.Mode, d.Interface)
	case lb.LocalNone:
	}
	if !d.Detects() {
		f.Level, f.Detail = levelWarn, fmt.Sprintf("%s without cluster-cidr: nobody is known as a pod, and pods count as callers from outside", d.Mode)
	}
	return f
}

// checkNodePorts tells where NodePorts are served.
func checkNodePorts(cfg config.Config) finding {
	f := finding{Name: "nodeport-addresses", Level: levelOK, Detail: "NodePorts are served at every address of this node"}
	var at []string
	if cfg.NodePortAddresses.Primary {
		at = append(at, "the addresses of the Node object")
	}
	if len(cfg.NodePortAddresses.Ranges) > 0 {
		at = append(at, "addresses in "+rangeList(cfg.NodePortAddresses.Ranges))
	}
	if len(at) > 0 {
		f.Detail = "NodePorts are served at " + strings.Join(at, " and ") + "; of a family that is not named, at all"
	}
	return f
}

func rangeList(ps []netip.Prefix) string {
	items := make([]string, len(ps))
	for i, p := range ps {
		items[i] = p.String()
	}
	return strings.Join(items, ", ")
}
