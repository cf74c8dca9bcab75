// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// kubeModes are the ways in which kube-proxy runs, and the backend of iptables then.
var kubeModes = []struct{ mode, backend, dataplane string }{
	{"iptables", "nft", "ebpf"},
	{"nftables", "nft", "ebpf"},
	{"iptables", "legacy", "iptables"},
}

// kubelets are chains of the kubelet's, which stay.
const kubelets = `*mangle
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-IPTABLES-HINT - [0:0]
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
COMMIT
`

// TestMigrate: from a real kube-proxy to lbproxy and back, no connection breaks, new ones
// are always served, and nothing of the other one is left.
func TestMigrate(t *testing.T) {
	for _, m := range kubeModes {
		if m.mode == "nftables" && scale == 1 {
			continue // TestMigrationGuide does that
		}
		t.Run(m.mode+" of "+m.backend+" to "+m.dataplane, func(t *testing.T) {
			t.Parallel()
			testMigrate(t, m.mode, m.backend, "--dataplane="+m.dataplane, "--iptables-backend="+m.backend)
		})
	}
}

func testMigrate(t *testing.T, mode, backend string, flags ...string) {
	r := newSwitchRig(t)
	c := r.newCluster(backend)
	r.restore(backend, kubelets)
	k := c.kubeProxy(mode)
	l := r.startLoad()
	first := r.old("kube-proxy")
	args := func(more ...string) []string {
		return slices.Concat([]string{"migrate"}, r.runArgs(flags...)[1:], more)
	}
	verb := func(more ...string) result {
		t.Helper()
		return r.lbproxy(args(more...)...)
	}

	t.Log("compare")
	verb("--check").want(t, 0, "("+mode+")", "0 of them would not be served")
	verb().want(t, 1, "kube-proxy runs on this node", "kubectl -n kube-system patch daemonset kube-proxy")
	verb("--dry-run").want(t, 0, "would remove", "would refuse now")

	t.Log("both run; then kube-proxy ends")
	settings := r.sysctls()
	if slices.Contains(flags, "--dataplane=iptables") {
		r.setLocalnet("0") // so that lbproxy sets it again, and would reset it
	}
	a := r.start(flags...)
	a.awaitLog("cannot bind")
	l.flows()
	k.end(syscall.SIGTERM)
	a.awaitReady()
	l.flows()

	t.Log("take over, step by step, each of which is killed once")
	r.killed(args("--steps=1")...)
	for res := verb("--steps=1"); !strings.Contains(res.stdout, "nothing of kube-proxy's is left"); res = verb("--steps=1") {
		if res.want(t, 0); t.Failed() {
			t.FailNow()
		}
		l.flows()
	}
	r.noKubeProxy()
	verb("--check").want(t, 1, "kube-proxy has no rules on this node")
	l.flows()
	second := r.old("lbproxy")

	t.Log("and back")
	verb("--rollback").want(t, 1, "no kube-proxy runs")
	k = c.kubeProxy(mode)
	eventually(t, "kube-proxy has rules", func() bool { return verb("--rollback", "--dry-run").code == 0 && len(r.ofKubeProxy()) > 0 })
	eventually(t, "lbproxy is in the way", func() bool {
		return strings.Contains(verb("--rollback").stderr, "another lbproxy is running")
	})
	a.end(syscall.SIGTERM)
	l.flows()
	r.killed(args("--rollback")...)
	l.flows()
	back := r.startLbproxy(args("--rollback")...)
	l.flows()
	second.end()
	l.flows()
	t.Cleanup(func() {
		if back.alive() { // what does it wait for?
			t.Log(r.lbproxy("get", "connections").stdout)
		}
	})
	if scale == 1 && slices.Contains(flags, "--dataplane=ebpf") { // TestMigrationGuide waits until the last connection is forgotten
		back.awaitLog("eBPF translates the packets of old connections until they have ended")
		if code := back.end(syscall.SIGTERM); code != 1 {
			t.Errorf("migrate --rollback, ended before the last connection has: exit code %d", code)
		}
		back.awaitLog("connections are still translated by eBPF", "Run the same again")
		r.lbproxy("cleanup").want(t, 0, "removed")
	} else {
		eventually(t, "kube-proxy serves alone", func() bool { return !back.alive() })
		if code := back.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("migrate --rollback: exit code %d: %s", code, back.log.String())
		}
	}
	l.flows()
	first.end()
	l.stop()
	r.nothingAtAll()
	if !k.alive() {
		t.Error("kube-proxy has ended")
	}
	if now, want := r.sysctls()[localnet], settings[localnet]; now != want {
		t.Errorf("%s is %q under a kube-proxy, want %q", localnet, now, want)
	}
}

// localnet lets node ports be served at 127.0.0.1.
const localnet = "net/ipv4/conf/all/route_localnet"

// setLocalnet sets it on the node.
func (r *rig) setLocalnet(value string) {
	r.t.Helper()
	err := r.lab.Host(lab.Node).Do(func() error { return os.WriteFile("/proc/sys/"+localnet, []byte(value), 0) })
	if err != nil {
		r.t.Fatal(err)
	}
}

// restore feeds rules to the node.
func (r *rig) restore(backend, text string) {
	r.t.Helper()
	for _, program := range []string{"iptables-", "ip6tables-"} {
		cmd := r.lab.Host(lab.Node).Command(r.bounded(), program+backend+"-restore", "--noflush")
		cmd.Stdin = strings.NewReader(text)
		if res := r.finish(cmd); res.code != 0 {
			r.t.Fatalf("%s: %s", program, res.stderr)
		}
	}
}

// ofKubeProxy returns the rules of kube-proxy's, not the kubelet's.
func (r *rig) ofKubeProxy() (lines []string) {
	r.t.Helper()
	for _, command := range [][]string{
		{"iptables-nft-save"}, {"ip6tables-nft-save"}, {"iptables-legacy-save"}, {"ip6tables-legacy-save"}, {"nft", "list", "tables"},
	} {
		res := r.finish(r.lab.Host(lab.Node).Command(r.bounded(), command[0], command[1:]...))
		for line := range strings.Lines(res.stdout) {
			kubelets := strings.Contains(line, "KUBE-KUBELET-CANARY") || strings.Contains(line, "KUBE-IPTABLES-HINT") || strings.Contains(line, "KUBE-FIREWALL")
			if strings.Contains(line, "KUBE-") && !kubelets || strings.Contains(line, "kube-proxy") {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
	}
	return lines
}

// noKubeProxy checks that kube-proxy's rules are gone, and the kubelet's are not.
func (r *rig) noKubeProxy() {
	r.t.Helper()
	if left := r.ofKubeProxy(); len(left) > 0 {
		r.t.Errorf("%d lines of kube-proxy's are left, such as %s", len(left), left[0])
	}
	var all string
	for _, command := range []string{"iptables-nft-save", "iptables-legacy-save"} {
		all += r.finish(r.lab.Host(lab.Node).Command(r.bounded(), command)).stdout
	}
	for _, line := range []string{":KUBE-KUBELET-CANARY", ":KUBE-IPTABLES-HINT", ":KUBE-FIREWALL", "-A INPUT -j KUBE-FIREWALL"} {
		if !strings.Contains(all, line) {
			r.t.Errorf("of the kubelet's, %q is gone", line)
		}
	}
}

// startLbproxy starts a verb.
func (r *rig) startLbproxy(args ...string) *agent {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), program, args...)
	cmd.Dir, cmd.Env = r.home, r.env()
	return r.launch(cmd)
}

// killed runs a verb some times, each of which is killed a little later.
func (r *rig) killed(args ...string) {
	r.t.Helper()
	for after := 20 * time.Millisecond; after < time.Second; after *= 2 {
		a := r.startLbproxy(args...)
		select {
		case <-a.ended:
		case <-time.After(after):
			_ = a.cmd.Process.Kill() // an error says that it has just ended
			<-a.ended
		}
	}
}

// cluster is an API server with the rig's objects, for kube-proxy.
type cluster struct {
	r          *rig
	kubeconfig string
	path       string // of the program
	env        []string
}

// kubeProxy starts it, and waits until it serves.
func (c *cluster) kubeProxy(mode string) *agent {
	r := c.r
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), c.path, "--kubeconfig="+c.kubeconfig, "--hostname-override="+lab.Node, "--proxy-mode="+mode,
		"--cluster-cidr="+lab.ClusterPods4.String()+","+lab.ClusterPods6.String(),
		"--healthz-bind-address="+healthAddr, "--metrics-bind-address="+metricsAddr, "--oom-score-adj=0", "--iptables-min-sync-period=0s",
		"--conntrack-max-per-core=0", "--conntrack-min=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s")
	cmd.Env = append(slices.Clone(os.Environ()), c.env...)
	k := r.launch(cmd)
	within(r.t, patience, "kube-proxy has rules for every target", func() bool {
		lines := fmt.Sprint(r.ofKubeProxy())
		if mode == "nftables" {
			for _, family := range []string{"ip", "ip6"} {
				res := r.finish(r.lab.Host(lab.Node).Command(r.bounded(), "nft", "list", "table", family, "kube-proxy"))
				lines += res.stdout
			}
		}
		return strings.Contains(lines, "10.96.1.1") && strings.Contains(lines, "fd00:10:96::11") && strings.Contains(lines, "30080")
	})
	return k
}
