// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// nobody is a user who is not root.
const nobody = 65534

// What keeps lbproxy from starting is said in one line, and what an earlier agent
// left goes on serving.
func TestRefusalsLoseNothing(t *testing.T) {
	r := newRig(t)
	r.put("web.yaml", r.manifest("web", webVIP, "backend1", "backend2"))
	a := r.run()
	a.end(syscall.SIGKILL)
	tr := r.traffic(webVIP)
	plain := filepath.Join(r.lab.Dir(), "plain")
	if err := os.Mkdir(plain, 0o755); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(plain, "missing")
	file := filepath.Join(r.dir, "web.yaml")
	for _, tc := range []struct {
		name, flag string // on top of a run of eBPF that would work; a later flag wins
		code       int
		says       []string
	}{
		{"no cgroup v2 there", "--cgroup-root=" + plain, 1, []string{"cgroup root " + plain + " is not in a cgroup v2 mount"}},
		{"no such cgroup", "--cgroup-root=" + missing, 1, []string{"cgroup root " + missing, "no such file or directory"}},
		{"relative cgroup", "--cgroup-root=lbproxy", 2, []string{"cgroup-root (from --cgroup-root)", "absolute"}},
		{"no bpffs there", "--bpffs=" + plain, 1, []string{plain + " is not a bpffs", "mount -t bpf bpf " + plain}},
		{"no such bpffs", "--bpffs=" + missing, 1, []string{missing + " is not a bpffs", "no such file or directory"}},
		{"no such manifests", "--manifests=" + missing, 1, []string{"manifests: ", missing, "no such file or directory"}},
		{"manifests in a file", "--manifests=" + file, 1, []string{"manifests: ", file + " is not a directory"}},
		{"no such flag", "--cluster-cider=10.0.0.0/8", 2, []string{"unknown flag: --cluster-cider", "--help"}},
		{"no range", "--cluster-cidr=10.244.0.0", 2, []string{"cluster-cidr (from --cluster-cidr)", `"10.244.0.0"`, "want a range such as"}},
		{"too many bits", "--cluster-cidr=10.244.0.0/33", 2, []string{"cluster-cidr (from --cluster-cidr)", `"10.244.0.0/33"`, "want a range such as"}},
		{"no such algorithm", "--algorithm=fastest", 2, []string{"algorithm (from --algorithm)", "random, round-robin"}},
		{"no such dataplane", "--dataplane=dpdk", 2, []string{"dataplane (from --dataplane)", "auto, ebpf"}},
		{"a table too large", "--max-backends=99999999999", 2, []string{"max-backends (from --max-backends)", "want a number"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			res := r.lbproxy(r.runArgs("--dataplane=ebpf", tc.flag)...)
			res.want(t, tc.code, tc.says...)
			res.wantOneLine(t)
		})
	}
	tr.flows()
	tr.stop()
	r.run()
	r.serves(webVIP, "backend1", "backend2")
}

func TestWithoutRoot(t *testing.T) {
	r := newRig(t)
	r.put("web.yaml", r.manifest("web", webVIP, "backend1", "backend2"))
	a := r.run()
	tr := r.traffic(webVIP)
	for _, tc := range []struct {
		args    []string
		code    int
		says    string
		oneLine bool
	}{
		{r.runArgs("--dataplane=ebpf"), 1, "the eBPF dataplane needs root", true},
		{r.runArgs(), 1, "no dataplane works on this node: ebpf cannot run here: privileges: not root", true},
		{[]string{"cleanup"}, 1, "cleanup: root is needed", true},
		{[]string{"get", "services"}, 1, "needs root", true},
		{[]string{"explain", "--from=10.244.1.2", "--to=" + string(webVIP)}, 1, "needs root", true},
		{[]string{"check", "--manifests=" + r.dir}, 1, "not root", false},
		{[]string{"version"}, 0, "lbproxy", false},
	} {
		cmd := r.command(tc.args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		res := r.finish(cmd)
		res.want(t, tc.code, tc.says)
		if tc.oneLine {
			res.wantOneLine(t)
		}
		t.Logf("%s: %s", tc.args[0], res.stderr)
	}
	if !a.alive() {
		t.Error("lbproxy ended")
	}
	tr.flows()
	tr.stop()
}

// Lbproxy finds the cgroup v2 mount by itself; here there is none to be found.
func TestWithoutCgroup2(t *testing.T) {
	r := newRig(t)
	r.put("web.yaml", r.manifest("web", webVIP, "backend1", "backend2"))
	a := r.run()
	tr := r.traffic(webVIP)
	says := []string{"no cgroup v2 mount", "mount -t cgroup2", "--cgroup-root"}
	for _, args := range [][]string{r.runArgs("--dataplane=ebpf"), {"check", "--dataplane=ebpf", "--manifests=" + r.dir}} {
		res := r.finish(r.withoutCgroup2(args...))
		res.want(t, 1, says...)
		t.Logf("%s: %s", args[0], res.stderr)
	}
	r.finish(r.withoutCgroup2("check", "--manifests="+r.dir)).want(t, 0, "would use iptables", "no cgroup v2 mount")
	r.finish(r.withoutCgroup2("cleanup")).want(t, 1, "another lbproxy is running")
	r.lbproxy("get", "services").want(t, 0, "web")
	if !a.alive() {
		t.Error("lbproxy ended")
	}
	tr.flows()
	tr.stop()
}

// withoutCgroup2 is a command that sees no cgroup v2 mount and is told of none.
func (r *rig) withoutCgroup2(args ...string) *exec.Cmd {
	r.t.Helper()
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := r.lab.Host(lab.Node).Command(r.bounded(), self, append([]string{program}, args...)...)
	cmd.Dir = r.home
	for _, kv := range r.env() {
		if !strings.HasPrefix(kv, "LBPROXY_CGROUP_ROOT=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, envHide+"=cgroup2")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return cmd
}

func TestCheckSaysWhatIsInTheWay(t *testing.T) {
	r := newRig(t)
	res := r.lbproxy("check", "--manifests="+r.dir)
	res.want(t, 0, "LEVEL", "BTF", "bpf_set_retval", "tcx", "cgroup v2", "bpffs", "IPv4 forwarding")
	if strings.Contains(res.stdout, "FAIL") {
		t.Errorf("a fit node:\n%s", res.stdout)
	}
	plain := filepath.Join(r.lab.Dir(), "plain")
	if err := os.Mkdir(plain, 0o755); err != nil {
		t.Fatal(err)
	}
	r.lbproxy("check", "--manifests="+r.dir, "--bpffs="+plain).
		want(t, 0, "mount -t bpf bpf "+plain, "would use iptables: ebpf cannot run here: bpffs")
	r.lbproxy("check", "--dataplane=ebpf", "--manifests="+r.dir, "--bpffs="+plain).
		want(t, 1, "mount -t bpf bpf "+plain, "this node is not fit: 1 of ")
	r.lbproxy("check", "--dataplane=ebpf", "--manifests="+r.dir, "--cgroup-root="+plain).
		want(t, 1, plain, "this node is not fit: 1 of ")
	r.lbproxy("check", "--manifests="+plain+"/missing").want(t, 1, "no such file or directory", "this node is not fit: 1 of ")
	if _, err := os.Stat(r.pins()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("check left something at %s: %v", r.pins(), err)
	}
}
