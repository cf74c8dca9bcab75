// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// rules returns the rules and ipsets of the node that are lbproxy's.
func (r *rig) rules() (ours []string) {
	r.t.Helper()
	for _, command := range [][]string{
		{"iptables-nft-save"}, {"ip6tables-nft-save"}, {"iptables-legacy-save"}, {"ip6tables-legacy-save"}, {"ipset", "save"},
	} {
		if _, err := exec.LookPath(command[0]); err != nil {
			continue
		}
		res := r.finish(r.lab.Host(lab.Node).Command(r.bounded(), command[0], command[1:]...))
		for line := range strings.Lines(res.stdout) {
			if strings.Contains(line, "LBP-") {
				ours = append(ours, strings.TrimSpace(line))
			}
		}
	}
	return ours
}

// onlyKept checks that no rule is left but those that wait for old connections.
func (r *rig) onlyKept() {
	r.t.Helper()
	for _, line := range r.rules() {
		if !strings.Contains(line+" ", " LBP-KEEP ") && !strings.HasPrefix(line, ":LBP-KEEP") {
			r.t.Errorf("a rule is left: %s", line)
		}
	}
}

// nothingAtAll checks that there is neither rule nor ipset, pin nor program.
func (r *rig) nothingAtAll() {
	r.t.Helper()
	r.nothingLeft()
	if left := r.rules(); len(left) > 0 {
		r.t.Errorf("%d lines of rules are left, such as %s", len(left), left[0])
	}
}

// sysctls returns the settings of the node's network.
func (r *rig) sysctls() map[string]string {
	r.t.Helper()
	all := map[string]string{}
	err := r.lab.Host(lab.Node).Do(func() error {
		for _, dir := range []string{"ipv4", "ipv6", "netfilter", "core"} {
			root := filepath.Join("/proc/sys/net", dir)
			err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
				if err != nil || e.IsDir() {
					return nil // a module that goes
				}
				if text, err := os.ReadFile(path); err == nil { // others cannot be read
					all[strings.TrimPrefix(path, "/proc/sys/")] = string(text)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}

// documented are the settings that the iptables dataplane sets, as kube-proxy does, and
// that stay; and what is no setting.
var documented = []string{
	"net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_buckets", "net/netfilter/nf_conntrack_count",
	"net/netfilter/nf_conntrack_tcp_timeout_established", "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
	"net/netfilter/nf_conntrack_udp_timeout", "net/netfilter/nf_conntrack_udp_timeout_stream",
}

// sameSettings checks that nothing but what is documented is not as before.
func (r *rig) sameSettings(before map[string]string) {
	r.t.Helper()
	after := r.sysctls()
	for name, old := range before {
		known := false
		for _, d := range documented {
			known = known || name == d
		}
		if now := after[name]; now != old && !known {
			r.t.Errorf("sysctl %s is %q, was %q", name, now, old)
		}
	}
}

// heldPorts opens a connection from one port of each client to one Service, which says
// nothing, so that only who was told knows it.
func (r *rig) heldPorts() map[string]*lab.Conn {
	r.t.Helper()
	conns := map[string]*lab.Conn{}
	for _, from := range clients {
		conns[from] = r.hold(from, lab.Request{Proto: lab.Quiet, To: vip(oneService).addr(), From: r.heldPort(from)})
	}
	return conns
}

func (r *rig) heldPort(from string) netip.AddrPort {
	return netip.AddrPortFrom(r.lab.Host(from).Addr4, held)
}

// collide connects from the same ports to another Service of the same backend: to whom
// the two connections must differ.
func (r *rig) collide(conns map[string]*lab.Conn) {
	r.t.Helper()
	for from, c := range conns {
		res := r.lab.Host(from).Dial(r.t.Context(), lab.Request{
			Proto: lab.Quiet, To: vip(twoService).addr(), From: r.heldPort(from), Timeout: soon, Payload: []byte("hello"),
		})
		if res.Kind != lab.OK {
			r.t.Errorf("%s connects from the port of an old connection: %s %s", from, res.Kind, res.Err)
		}
		if err := c.Bulk(r.bounded(), heldBytes); err != nil {
			r.t.Errorf("%s: the old connection: %v", from, err)
		}
		if err := c.Close(r.bounded(), "fin"); err != nil {
			r.t.Error(err)
		}
	}
}

// newSwitchRig is a rig with the Services of these tests.
func newSwitchRig(t *testing.T) *rig {
	r := newRig(t)
	for _, name := range []string{"backend1", "backend2", "remote1"} {
		if err := r.lab.Host(name).Serve(t.Context(), lab.Quiet, lab.AnyAddr(quietPort)); err != nil {
			t.Fatal(err)
		}
	}
	r.put("web.yaml", r.switchedManifest())
	return r
}

// backends are those of the programs.
var backends = []string{"nft", "legacy"}

func usingIPTables(backend string) []string {
	return []string{"--dataplane=iptables", "--iptables-backend=" + backend}
}

// TestSwitchDataplanes: restarts with the other dataplane, there and back, twice, break no
// connection; new ones are always served; and nothing stays behind.
func TestSwitchDataplanes(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			testSwitch(t, usingIPTables(backend))
		})
	}
}

func testSwitch(t *testing.T, iptables []string) {
	r := newSwitchRig(t)
	settings := r.sysctls()
	a := r.run("--dataplane=ebpf")
	l := r.startLoad()
	of, silent := r.old("eBPF"), r.heldPorts()

	t.Log("from eBPF to iptables")
	a.end(syscall.SIGTERM)
	a = r.run(iptables...)
	a.awaitLog("eBPF translates the packets of old connections until they have ended")
	r.reserved()
	l.flows()
	r.collide(silent)
	then := r.old("iptables")
	l.flows()
	of.end()

	t.Log("from iptables to eBPF, which is not gone yet")
	a.end(syscall.SIGKILL)
	r.lbproxy("get", "services").want(t, 0, "web", "10.96.1.1")
	a = r.run("--dataplane=ebpf")
	a.awaitLog("what the iptables dataplane left is removed")
	r.onlyKept()
	r.nothingReserved()
	l.flows()
	last, endMasked := r.old("eBPF again"), r.masked()
	l.flows()
	then.end()

	t.Log("and back: killed in the middle, which the next start goes on with")
	a.end(syscall.SIGTERM)
	a = r.run(iptables...)
	a.awaitLog("eBPF translates the packets")
	a.end(syscall.SIGKILL)
	r.reserved()
	l.flows()
	endMasked() // nobody drains: what is reserved for these is of no connection any more
	a = r.run(iptables...)
	l.flows()
	last.end()
	l.stop()
	within(t, patience, "eBPF is gone", func() bool { return a.log.line("what the eBPF dataplane left is removed") != "" })
	r.nothingLeft()
	r.nothingReserved()
	r.serves(webVIP, "backend1", "backend2", "remote1")
	eventually(t, "nothing is kept for the switch", func() bool { return !strings.Contains(fmt.Sprint(r.rules()), "LBP-KEEP") })
	a.end(syscall.SIGTERM)
	r.lbproxy("cleanup").want(t, 0, "removed")
	r.nothingAtAll()
	r.sameSettings(settings)
	r.gone(webVIP)
}

// TestKilledSwitching: an agent that is killed at some point of a switch is followed by one
// of either dataplane. Then the node is served by one alone, and there is nothing else.
func TestKilledSwitching(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			testKilled(t, usingIPTables(backend))
		})
	}
}

func testKilled(t *testing.T, iptables []string) {
	r := newSwitchRig(t)
	ebpf := []string{"--dataplane=ebpf"}
	a := r.run(iptables...)
	r.forgetSoon()
	l := r.startLoad()
	kept := r.old("iptables")
	a.end(syscall.SIGKILL)
	for _, k := range []struct {
		flags []string
		when  string
		now   func(a *agent) bool
	}{
		{ebpf, "its pins are there", func(*agent) bool { _, err := os.Stat(r.pins()); return err == nil }},
		{iptables, "it has started", func(a *agent) bool { return a.log.line("starting") != "" }},
		{ebpf, "it has started", func(a *agent) bool { return a.log.line("starting") != "" }},
		{iptables, "it has rules", func(*agent) bool { return strings.Contains(fmt.Sprint(r.rules()), "-j LBP-SERVICES") }},
		{ebpf, "it is ready", (*agent).ready},
		{iptables, "it is ready", (*agent).ready},
		{ebpf, "the other one's rules go", func(*agent) bool { return !strings.Contains(fmt.Sprint(r.rules()), "-j LBP-SERVICES") }},
	} {
		a = r.start(k.flags...)
		eventually(t, fmt.Sprintf("%v: %s", k.flags, k.when), func() bool { return k.now(a) })
		a.end(syscall.SIGKILL)
		t.Logf("%v was killed when %s", k.flags, k.when)
		l.flows()
	}
	a = r.run(ebpf...)
	l.flows()
	kept.end()
	l.stop()
	eventually(t, "nothing of iptables is left", func() bool { return len(r.rules()) == 0 })
	r.nothingReserved()
	r.serves(webVIP, "backend1", "backend2", "remote1")
	a.end(syscall.SIGTERM)
	r.lbproxy("cleanup").want(t, 0, "removed")
	r.nothingAtAll()
	r.gone(webVIP)
}

// ready tells whether the agent says that it is.
func (a *agent) ready() bool {
	code, _, err := a.r.get(healthAddr, "/readyz")
	return err == nil && code == 200
}

// forgetSoon makes conntrack forget connections as soon as they have ended.
func (r *rig) forgetSoon() {
	r.t.Helper()
	err := r.lab.Host(lab.Node).Do(func() error {
		return os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait", []byte("1"), 0)
	})
	if err != nil {
		r.t.Fatal(err)
	}
}
