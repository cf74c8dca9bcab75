// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// guide runs the commands of docs/MIGRATION.md on a node: those of lbproxy as they are
// written, and for those of a cluster what they start or stop there.
type guide struct {
	*rig
	cluster *cluster
	config  string
	kube    *agent // kube-proxy
	agent   *agent // lbproxy: run, or migrate --rollback
}

// inPod begins a command that is run in the pod of a node, and configFile is there.
const (
	inPod      = "kubectl -n lbproxy exec POD -- lbproxy "
	configFile = "/etc/lbproxy/config.yaml"
)

// TestMigrationGuide runs docs/MIGRATION.md from its begin to its end, under load.
func TestMigrationGuide(t *testing.T) {
	t.Parallel()
	g := &guide{rig: newSwitchRig(t)}
	g.cluster = g.newCluster("nft")
	g.kube = g.cluster.kubeProxy("nftables")
	g.config = filepath.Join(g.lab.Dir(), "config.yaml")
	text := "clusterCIDR: [" + lab4and6 + "]\nmanifests: " + g.dir + "\nnodeName: node\ndataplane: ebpf\n"
	if err := os.WriteFile(g.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	l := g.startLoad()
	held := g.old("kube-proxy")
	ran := map[string]int{}
	for _, c := range commands(t, "docs/MIGRATION.md", "TestMigrationGuide") {
		t.Logf("%s: %s", c.where, c.text)
		if verb, ok := strings.CutPrefix(c.text, inPod); ok {
			g.verb(verb, ran)
		} else if !g.play(c.text) {
			t.Errorf("%s: nobody knows what %q does", c.where, c.text)
		}
		l.flows()
	}
	if ran["migrate"] != 4 {
		t.Errorf("lbproxy migrate was run %d times, want 4", ran["migrate"])
	}
	held.end()
	l.stop()
	g.nothingAtAll()
}

// lab4and6 are the addresses of pods.
const lab4and6 = `10.244.0.0/16, "fd00:10:244::/48"`

// verb runs lbproxy as in its pod.
func (g *guide) verb(text string, ran map[string]int) {
	g.t.Helper()
	args := strings.Fields(strings.ReplaceAll(text, configFile, g.config))
	ran[args[0]]++
	res := g.lbproxy(args...)
	want := map[string]string{"check": "would use ebpf", "get": "10.96.1.1"}[args[0]]
	if args[0] == "migrate" {
		want = []string{"0 of them would not be served", "would remove table kube-proxy", "removed table kube-proxy", "nothing of kube-proxy's is left"}[ran["migrate"]-1]
	}
	res.want(g.t, 0, want)
}

// play does to the node what a command does to a cluster. It returns false for one that
// it does not know.
func (g *guide) play(text string) bool {
	g.t.Helper()
	const patch = "kubectl -n kube-system patch daemonset kube-proxy "
	switch {
	case text == "kubectl create namespace lbproxy", strings.HasPrefix(text, "kubectl label namespace lbproxy "):
		return g.agent == nil // before there are pods; to a node it is nothing
	case strings.HasPrefix(text, "helm install lbproxy "):
		g.agent = g.startLbproxy("run", "--config="+g.config)
		g.agent.awaitLog("cannot bind")
		eventually(g.t, "lbproxy serves", func() bool { return strings.Contains(g.lbproxy("get", "services").stdout, "10.96.1.1") })
	case strings.HasPrefix(text, patch) && strings.Contains(text, `"wanted"`):
		g.kube.end(syscall.SIGTERM)
	case strings.HasPrefix(text, patch) && strings.Contains(text, `null`):
		g.kube = g.cluster.kubeProxy("nftables")
	case text == "kubectl -n lbproxy rollout status daemonset/lbproxy":
		g.agent.awaitReady()
	case text == "kubectl -n kube-system rollout status daemonset/kube-proxy":
		return g.kube.alive()
	case strings.HasPrefix(text, "kubectl -n lbproxy patch daemonset lbproxy "):
		_, list, _ := strings.Cut(text, `"args":["`)
		list, _, _ = strings.Cut(list, `"]`)
		g.agent.end(syscall.SIGTERM)
		g.agent = g.startLbproxy(strings.Split(strings.ReplaceAll(list, configFile, g.config), `","`)...)
	case text == "kubectl -n lbproxy logs POD":
		g.agent.awaitLog("done; waiting for SIGTERM")
		if g.agent.log.line("kube-proxy serves alone") == "" {
			g.t.Errorf("the log: %s", g.agent.log.String())
		}
	case text == "helm uninstall lbproxy --namespace lbproxy":
		if code := g.agent.end(syscall.SIGTERM); code != 0 {
			g.t.Errorf("migrate --rollback --hold: exit code %d", code)
		}
	default:
		return false
	}
	return true
}
