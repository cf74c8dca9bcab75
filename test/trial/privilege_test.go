// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/lab"
)

// envConfine lists the numbers of the capabilities that are left when the rest of the
// command line is executed, by a process that can get no others.
const envConfine = "TRIAL_CONFINE"

// confine gives up all capabilities but those listed, for this process and what it
// executes, and becomes the given command.
func confine(list string, command []string) error {
	runtime.LockOSThread() // capabilities are a thread's
	var keep [2]uint32
	for n := range strings.SplitSeq(list, ",") {
		c, err := strconv.Atoi(n)
		if err != nil {
			return err
		}
		keep[c/32] |= 1 << (c % 32)
	}
	for c := range 64 {
		if keep[c/32]&(1<<(c%32)) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: the kernel has fewer
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for i, bits := range keep {
		data[i] = unix.CapUserData{Effective: bits, Permitted: bits}
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	return unix.Exec(command[0], command, os.Environ())
}

// capabilities are the numbers of those that a container may be given here.
var capabilities = map[string]int{
	"BPF": unix.CAP_BPF, "NET_ADMIN": unix.CAP_NET_ADMIN, "NET_RAW": unix.CAP_NET_RAW,
	"PERFMON": unix.CAP_PERFMON, "SYS_ADMIN": unix.CAP_SYS_ADMIN, "SYS_PTRACE": unix.CAP_SYS_PTRACE,
}

// deployed returns the capabilities that deploy/daemonset.yaml gives lbproxy.
func deployed(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository(), "deploy", "daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var ds appsv1.DaemonSet
		if !strings.Contains(doc, "kind: DaemonSet") {
			continue
		}
		if err := yaml.UnmarshalStrict([]byte(doc), &ds); err != nil {
			t.Fatal(err)
		}
		sec := ds.Spec.Template.Spec.Containers[0].SecurityContext
		if len(sec.Capabilities.Drop) != 1 || sec.Capabilities.Drop[0] != "ALL" {
			t.Fatalf("deploy/daemonset.yaml drops %v, want ALL", sec.Capabilities.Drop)
		}
		var names []string
		for _, c := range sec.Capabilities.Add {
			names = append(names, string(c))
		}
		return names
	}
	t.Fatal("deploy/daemonset.yaml has no DaemonSet")
	return nil
}

// confined is lbproxy with these capabilities and no way to get more.
func (r *rig) confined(caps []string, args ...string) *exec.Cmd {
	r.t.Helper()
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	numbers := make([]string, len(caps))
	for i, name := range caps {
		n, known := capabilities[name]
		if !known {
			r.t.Fatalf("capability %s: unknown to this test", name)
		}
		numbers[i] = strconv.Itoa(n)
	}
	cmd := r.lab.Host(lab.Node).Command(r.t.Context(), self, append([]string{program}, args...)...)
	cmd.Dir, cmd.Env = r.home, append(r.env(), envConfine+"="+strings.Join(numbers, ","))
	return cmd
}

// datagrams is a Service on UDP.
func (r *rig) datagrams(name string, at vip, pod string) string {
	udp := strings.NewReplacer("{name: http, port", "{name: http, protocol: UDP, port")
	return udp.Replace(r.manifest(name, at, pod))
}

// TestLeastCapabilities: with the capabilities of the deployment and nothing else lbproxy
// does everything that it has to, on either dataplane.
func TestLeastCapabilities(t *testing.T) {
	caps := deployed(t)
	for _, dataplane := range []string{config.EBPF, config.IPTables} {
		t.Run(dataplane, func(t *testing.T) {
			r := newRig(t)
			r.put("web.yaml", r.manifest("web", webVIP, "backend1", "backend2"))
			r.put("next.yaml", r.datagrams("next", nextVIP, "backend1"))
			start := func() *agent {
				a := r.launch(r.confined(caps, r.runArgs("--dataplane="+dataplane)...))
				a.awaitReady()
				return a
			}
			a := start()
			checkConfined(t, a, caps)
			r.serves(webVIP, "backend1", "backend2")
			checkSocketDies(t, r, dataplane)
			if code := a.end(syscall.SIGTERM); code != 0 {
				t.Errorf("exit code %d after SIGTERM", code)
			}
			r.put("web.yaml", r.manifest("web", webVIP, "backend3"))
			a = start() // on what is there
			r.follows(webVIP, "backend3")
			r.finish(r.confined(caps, "check", "--dataplane="+dataplane, "--manifests="+r.dir)).want(t, 0, "privileges")
			r.finish(r.confined(caps, "get", "services")).want(t, 0, "web")
			r.finish(r.confined(caps, "explain", "--from=10.244.1.2", "--to="+string(webVIP))).want(t, 0, r.lab.Host("backend3").Addr4.String())
			a.end(syscall.SIGTERM)
			r.finish(r.confined(caps, "cleanup")).want(t, 0, "removed")
			r.gone(webVIP)
			for _, level := range []string{"level=ERROR", "level=WARN"} {
				if line := a.log.line(level); line != "" {
					t.Errorf("the log has %s", line)
				}
			}
		})
	}
}

// checkConfined checks that the kernel sees a with exactly caps.
func checkConfined(t *testing.T, a *agent, caps []string) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	want := uint64(0)
	for _, name := range caps {
		want |= 1 << capabilities[name]
	}
	for _, line := range []string{fmt.Sprintf("CapEff:\t%016x\n", want), fmt.Sprintf("CapBnd:\t%016x\n", want), "NoNewPrivs:\t1\n"} {
		if !strings.Contains(string(status), line) {
			t.Errorf("the agent's status has not %q:\n%s", line, status)
		}
	}
}

// checkSocketDies: a UDP socket in a pod that is connected to an endpoint that is gone
// ends with the eBPF dataplane; with iptables its next datagram goes elsewhere.
func checkSocketDies(t *testing.T, r *rig, dataplane string) {
	t.Helper()
	client := r.lab.Host("client1")
	conn, res := client.Open(t.Context(), lab.Request{Proto: lab.UDP, To: nextVIP.addr(), Connected: true})
	if res.Kind != lab.OK {
		t.Fatalf("UDP at %s: %s %s", nextVIP, res.Kind, res.Err)
	}
	r.put("next.yaml", r.datagrams("next", nextVIP, "backend2"))
	eventually(t, "the socket leaves the endpoint that is gone", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		got := conn.Exchange(ctx, []byte("again"), time.Second)
		if dataplane == config.EBPF {
			return got.Kind != lab.OK
		}
		return got.Backend == "backend2"
	})
	_ = conn.Close(t.Context(), "") // it may be dead
}

// TestMissingCapability: without one of them lbproxy says its name, and does not start
// or says what it cannot do.
func TestMissingCapability(t *testing.T) {
	r := newRig(t)
	r.put("web.yaml", r.manifest("web", webVIP, "backend1"))
	least := []string{"BPF", "NET_ADMIN", "NET_RAW", "PERFMON"} // without closing sockets in pods
	for _, tc := range []struct{ dataplane, without string }{
		{config.EBPF, "BPF"}, {config.EBPF, "NET_ADMIN"}, {config.EBPF, "PERFMON"},
		{config.IPTables, "NET_ADMIN"}, {config.IPTables, "NET_RAW"},
	} {
		caps := slices.DeleteFunc(slices.Clone(least), func(c string) bool { return c == tc.without })
		res := r.finish(r.confined(caps, r.runArgs("--dataplane="+tc.dataplane)...))
		res.want(t, 1, "the "+map[string]string{config.EBPF: "eBPF", config.IPTables: "iptables"}[tc.dataplane]+" dataplane needs CAP_"+tc.without)
		res.wantOneLine(t)
		t.Logf("without %s: %s", tc.without, res.stderr)
		r.finish(r.confined(caps, "check", "--dataplane="+tc.dataplane, "--manifests="+r.dir)).want(t, 1, "CAP_"+tc.without, "FAIL")
	}
	const lacks = "needs CAP_SYS_ADMIN, CAP_SYS_PTRACE, which it lacks"
	r.finish(r.confined(least, "check", "--dataplane=ebpf", "--manifests="+r.dir)).want(t, 0, lacks)
	a := r.launch(r.confined(least, r.runArgs("--dataplane=ebpf")...))
	a.awaitReady()
	a.awaitLog("level=WARN", lacks)
	r.serves(webVIP, "backend1")
}

// TestListens: what listens in the agent's network namespace is what docs/SECURITY.md
// says, and nothing answers at other addresses.
func TestListens(t *testing.T) {
	r := newRig(t)
	r.put("web.yaml", r.manifest("web", webVIP, "backend1"))
	const checkPort = 32100
	local := strings.Replace(r.manifest("local", nextVIP, "backend1"), "spec:\n",
		fmt.Sprintf("spec:\n  type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: %d\n", checkPort), 1)
	r.put("local.yaml", local)
	before := listeners(t, r)
	r.run()
	want := []string{"tcp *:10256", "tcp 127.0.0.1:10249", fmt.Sprintf("tcp *:%d", checkPort)}
	slices.Sort(want)
	eventually(t, "the health check port listens", func() bool { return slices.Contains(listeners(t, r), want[len(want)-1]) })
	var got []string
	for _, l := range listeners(t, r) {
		if !slices.Contains(before, l) {
			got = append(got, l)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("listens at %v, want %v", got, want)
	}
	doc, err := os.ReadFile(filepath.Join(repository(), "docs", "SECURITY.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range []string{"`0.0.0.0:10256`", "`127.0.0.1:10249`", "`healthCheckNodePort`"} {
		if !strings.Contains(string(doc), "| "+port) {
			t.Errorf("docs/SECURITY.md has no row for %s", port)
		}
	}
}

// listeners returns where the node's namespace has sockets for TCP that listen and
// sockets for UDP that are bound, sorted.
func listeners(t *testing.T, r *rig) []string {
	t.Helper()
	var found []string
	for _, table := range []struct{ file, proto, state string }{
		{"tcp", "tcp", "0A"}, {"tcp6", "tcp", "0A"}, {"udp", "udp", "07"}, {"udp6", "udp", "07"},
	} {
		var text []byte
		err := r.lab.Host(lab.Node).Do(func() (err error) {
			text, err = os.ReadFile("/proc/thread-self/net/" + table.file)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) < 4 || f[3] != table.state {
				continue
			}
			found = append(found, table.proto+" "+socketAddress(t, f[1]))
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// socketAddress turns 0100007F:2809 into 127.0.0.1:10249; any address is *.
func socketAddress(t *testing.T, hex string) string {
	t.Helper()
	addr, port, _ := strings.Cut(hex, ":")
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		t.Fatal(err)
	}
	host := "*"
	if strings.Trim(addr, "0") != "" {
		word, err := strconv.ParseUint(addr, 16, 32)
		if err != nil {
			return addr + ":" + port // IPv6: no row has one
		}
		host = net.IPv4(byte(word), byte(word>>8), byte(word>>16), byte(word>>24)).String()
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10))
}
