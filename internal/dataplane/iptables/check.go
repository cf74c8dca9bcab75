// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lb"
	"github.com/lbproxy/lbproxy/internal/privilege"
)

// Level is how much a Finding matters.
type Level string

// The levels: as it should be; works with a limit; the dataplane cannot run.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is one thing that was looked at on this node.
type Finding struct {
	Name   string `json:"name"`
	Level  Level  `json:"level"`
	Detail string `json:"detail"`
}

// Check says whether the network namespace of the calling thread can have the dataplane,
// and with which limits. It leaves nothing changed: rules that it tries are in a chain
// that nothing leads to, for a moment, and so are sets.
func Check(opts Options) []Finding {
	opts = opts.orDefault()
	fs := []Finding{checkKernel(), checkRoot()}
	fs = append(fs, checkBackend(opts)...)
	works := false
	for _, f := range families {
		r, err := newRunner(f, opts.Backend, runnerOptions{})
		if err != nil {
			fs = append(fs, Finding{programName(f), Warn, err.Error()})
			continue
		}
		works = true
		fs = append(fs, Finding{programName(f), OK, fmt.Sprintf("%s %s (%s)", r.program, r.version, r.kind)})
		fs = append(fs, checkRules(r)...)
		fs = append(fs, checkSetRules(r))
	}
	if !works { // nothing was lost by one family: without both there is no dataplane
		for i := range fs {
			if strings.HasSuffix(fs[i].Name, "tables") {
				fs[i].Level = Fail
			}
		}
	}
	fs = append(fs, checkSets()...)
	fs = append(fs, checkForwarding()...)
	return fs
}

func checkKernel() Finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Finding{"kernel", Warn, err.Error()}
	}
	return Finding{"kernel", OK, "Linux " + unix.ByteSliceToString(u.Release[:])}
}

// privileges are the capabilities that the dataplane cannot do without: CAP_NET_RAW is for
// the legacy backend's sockets and for those that send from addresses of connections.
var privileges = []privilege.Capability{privilege.NetAdmin, privilege.NetRaw}

func requirePrivileges() error { return privilege.Require("the iptables dataplane", privileges...) }

func checkRoot() Finding {
	if os.Geteuid() != 0 {
		return Finding{"privileges", Fail, "not root: the findings below may be wrong"}
	}
	if err := requirePrivileges(); err != nil {
		return Finding{"privileges", Fail, err.Error()}
	}
	return Finding{"privileges", OK, "root, with " + privilege.Names(privileges)}
}

// checkBackend says which backend is used and why, and whether the other one or
// kube-proxy has rules as well.
func checkBackend(opts Options) []Finding {
	c, err := chooseBackend(opts.Backend)
	if err != nil {
		return []Finding{{"backend", Fail, err.Error()}}
	}
	fs := []Finding{{"backend", OK, c.backend + ": " + c.why}}
	other := nftBackend
	if c.backend == nftBackend {
		other = legacyBackend
	}
	if u := usedBackend(other); u.hint != "" || u.rules > 0 {
		detail := fmt.Sprintf("the %s backend has %d rules in table nat: packets pass both", other, u.rules)
		if u.hint != "" {
			detail = fmt.Sprintf("the %s backend has kubelet's chain %s: choose that one", other, u.hint)
		}
		fs = append(fs, Finding{"other backend", Warn, detail})
	}
	return append(fs, checkKubeProxy())
}

// checkKubeProxy looks for its rules in both backends.
func checkKubeProxy() Finding {
	var found []string
	for _, backend := range []string{nftBackend, legacyBackend} {
		for _, f := range families {
			p, err := findPrograms(f, backend)
			if err != nil || !haveTables(f, backend)(natTable) {
				continue
			}
			n := 0
			_ = saveLines(context.Background(), p.saveProgram, natTable, func(line string) { // an error is nothing seen
				name, rules, ok := parseSaved(line)
				if ok && rules == nil && (name == "KUBE-SERVICES" || strings.HasPrefix(name, "KUBE-SVC-")) {
					n++
				}
			})
			if n > 0 {
				found = append(found, fmt.Sprintf("%s (%s)", f, backend))
			}
		}
	}
	if len(found) > 0 {
		return Finding{"kube-proxy", Warn, "its chains are there: " + strings.Join(found, ", ") +
			"; lbproxy's come first, but only one of them should run (kube-proxy --cleanup)"}
	}
	return Finding{"kube-proxy", OK, "no chains of it"}
}

// tried is a rule that shows whether something is known.
type tried struct {
	name    string
	table   table
	rule    string
	missing Level
	means   string
}

// trials are the matches and targets that the dataplane uses.
var trials = []tried{
	{"conntrack match", filterTable, "-m conntrack --ctstate NEW -j RETURN", Fail, "xt_conntrack is needed"},
	{"statistic match", natTable, "-m statistic --mode random --probability 0.5 -j RETURN", Fail, "xt_statistic is needed"},
	{"addrtype match", natTable, "-m addrtype --dst-type LOCAL -j RETURN", Fail, "xt_addrtype is needed"},
	{"mark match and target", natTable, "-m mark --mark 0x4000/0x4000 -j MARK --set-xmark 0x4000/0x4000", Fail, "xt_mark is needed"},
	{"comment match", natTable, "-m comment --comment lbproxy -j RETURN", Fail, "xt_comment is needed"},
	{"masquerading", natTable, "-j MASQUERADE", Fail, "xt_MASQUERADE and nf_nat are needed"},
	{"masquerading with random ports", natTable, "-j MASQUERADE --random-fully", Warn, "source ports are picked in order: masqueraded connections that begin at once may collide"},
	{"reject target", filterTable, "-j REJECT", Fail, "ipt_REJECT and ip6t_REJECT are needed"},
	{"BPF match", natTable, anyBPF + " -j RETURN", Warn, "xt_bpf is needed by hash algorithms; without it they pick by weight alone"},
}

// checkRules tries rules of a family.
func checkRules(r *runner) []Finding {
	var fs []Finding
	for _, t := range trials {
		name := fmt.Sprintf("%s (%s)", t.name, r.family)
		fs = append(fs, tryRule(r, t, name))
	}
	return fs
}

func tryRule(r *runner, t tried, name string) Finding {
	err := r.supports(context.Background(), t.table, t.rule)
	switch {
	case err == nil:
		return Finding{name, OK, "available"}
	case errors.Is(err, errLocked):
		return Finding{name, Warn, "cannot be probed: " + err.Error()}
	}
	return Finding{name, t.missing, t.means + ": " + err.Error()}
}

// checkSets makes an ipset of every type.
func checkSets() []Finding {
	k, err := openIPSets()
	if err != nil {
		return []Finding{{"ipsets", Fail, err.Error()}}
	}
	defer k.close()
	if err := k.available(); err != nil {
		return []Finding{{"ipsets", Fail, err.Error()}}
	}
	var fs []Finding
	for _, typ := range []setType{hashIP, hashIPPort, hashNetPort, hashIPPortNet} {
		fs = append(fs, checkSet(k, typ))
	}
	return fs
}

const probeSet = "LBP-PROBE"

// checkSetRules lets a rule look into an ipset and add to it.
func checkSetRules(r *runner) Finding {
	name := fmt.Sprintf("set match and target (%s)", r.family)
	k, err := openIPSets()
	if err != nil {
		return Finding{name, Fail, err.Error()}
	}
	defer k.close()
	_ = k.destroy(probeSet) // one that was left
	if err := k.create(setSpec{probeSet, hashIP, r.family, 60}, constantSize); err != nil {
		return Finding{name, Fail, err.Error()}
	}
	rule := "-m set ! --match-set " + probeSet + " src -j SET --add-set " + probeSet + " src --exist --timeout 60"
	f := tryRule(r, tried{"", natTable, rule, Fail, "xt_set is needed"}, name)
	if err := k.destroy(probeSet); err != nil && f.Level == OK {
		return Finding{name, Warn, "ipset " + probeSet + " stays: " + err.Error()}
	}
	return f
}

func checkSet(k *ipsets, typ setType) Finding {
	f := Finding{"ipset " + string(typ), OK, "available"}
	for _, family := range families {
		s := setSpec{name: probeSet, typ: typ, family: family}
		if typ == hashIP {
			s.timeout = 1
		}
		if err := k.create(s, constantSize); err != nil {
			return Finding{f.Name, Fail, fmt.Sprintf("%s: %v", family, err)}
		}
		if err := k.destroy(probeSet); err != nil {
			return Finding{f.Name, Warn, fmt.Sprintf("%s: it stays: %v", family, err)}
		}
	}
	return f
}

// checkForwarding looks at what packets need of the node's routing.
func checkForwarding() []Finding {
	var fs []Finding
	for _, c := range []struct {
		family lb.Family
		file   string
	}{
		{lb.IPv4, "/proc/sys/net/ipv4/ip_forward"},
		{lb.IPv6, "/proc/sys/net/ipv6/conf/all/forwarding"},
	} {
		name := c.family.String() + " forwarding"
		n, err := readSetting(c.file)
		switch {
		case err != nil:
			fs = append(fs, Finding{name, Warn, err.Error()})
		case n == 0:
			fs = append(fs, Finding{name, Warn,
				"off: traffic from outside reaches only backends of this node's own network; set " + c.file})
		default:
			fs = append(fs, Finding{name, OK, "on"})
		}
	}
	return fs
}
