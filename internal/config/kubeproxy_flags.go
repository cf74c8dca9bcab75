// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// refusal begins the reason of a flag that is refused.
const refusal = "refused: "

// theirFlag is a flag of kube-proxy's command line.
type theirFlag struct {
	theirs
	isBool bool
	// take turns the flag's text into values of flags here; nil: the text is the value of
	// the flag that to names, or has no effect.
	take func(text string) ([]candidate, error)
}

// kubeProxyFlags are the flags of kube-proxy. Those whose name is that of a flag here, or
// of an alias, are that flag.
// Source: Kubernetes 1.37 cmd/kube-proxy/app/options.go, component-base/logs/api/v1.
var kubeProxyFlags = []theirFlag{
	same("bind-address-hard-fail"), same("cluster-cidr"), same("config"),
	same("conntrack-max-per-core"), same("conntrack-min"), same("conntrack-tcp-be-liberal"),
	same("conntrack-tcp-timeout-close-wait"), same("conntrack-tcp-timeout-established"),
	same("conntrack-udp-timeout"), same("conntrack-udp-timeout-stream"),
	same("detect-local-mode"), same("healthz-bind-address"), same("hostname-override"), same("init-only"),
	same("iptables-localhost-nodeports"), same("iptables-masquerade-bit"),
	same("kubeconfig"), same("masquerade-all"), same("master"), same("metrics-bind-address"),
	same("nodeport-addresses"), same("oom-score-adj"), same("pod-bridge-interface"),
	same("pod-interface-name-prefix"), same("profiling"), same("proxy-mode"), same("write-config-to"),

	{theirs: theirs{"bind-address", "", whyBind}},
	{theirs: theirs{"feature-gates", "allow-external-ips", whyGates}, take: gates},
	{theirs: theirs{"healthz-port", "healthz-bind-address", "with that port; 0: nowhere"}, take: portOf("healthz-bind-address", "0.0.0.0")},
	{theirs: theirs{"metrics-port", "metrics-bind-address", "with that port; 0: nowhere"}, take: portOf("metrics-bind-address", "127.0.0.1")},
	{theirs: theirs{"iptables-sync-period", "sync-period", ""}},
	{theirs: theirs{"logging-format", "log-format", ""}},
	{theirs: theirs{"v", "log-level", whyVerbose}, take: verbosityOf},

	{theirs: theirs{"cleanup", "", refusal + "lbproxy cleanup removes what is lbproxy's; kube-proxy --cleanup what is kube-proxy's"}, isBool: true, take: refused("lbproxy cleanup")},
	{theirs: theirs{"version", "", refusal + "it is lbproxy version"}, isBool: true, take: refused("lbproxy version")},

	idleFlag("config-sync-period", whyResync), idleFlag("iptables-min-sync-period", whyChanges),
	idleFlag("ipvs-exclude-cidrs", whyIPVS), idleFlag("ipvs-min-sync-period", whyIPVS), idleFlag("ipvs-scheduler", whyIPVS),
	idleSwitch("ipvs-strict-arp", whyIPVS), idleFlag("ipvs-sync-period", whyIPVS), idleFlag("ipvs-tcp-timeout", whyIPVS),
	idleFlag("ipvs-tcpfin-timeout", whyIPVS), idleFlag("ipvs-udp-timeout", whyIPVS),
	idleFlag("kube-api-burst", whyClient), idleFlag("kube-api-content-type", whyClient), idleFlag("kube-api-qps", whyClient),
	idleFlag("log-flush-frequency", whyLog), idleFlag("log-json-info-buffer-size", whyLog), idleSwitch("log-json-split-stream", whyLog),
	idleFlag("log-text-info-buffer-size", whyLog), idleSwitch("log-text-split-stream", whyLog), idleFlag("vmodule", whyLog),
	idleFlag("show-hidden-metrics-for-version", whyHidden),

	idleSwitch("add-dir-header", whyOlder), idleSwitch("alsologtostderr", whyOlder), idleFlag("boot-id-file", whyOlder),
	idleSwitch("cleanup-ipvs", whyOlder), idleFlag("log-backtrace-at", whyOlder), idleFlag("log-dir", whyOlder),
	idleFlag("log-file", whyOlder), idleFlag("log-file-max-size", whyOlder), idleSwitch("logtostderr", whyOlder),
	idleFlag("machine-id-file", whyOlder), idleSwitch("one-output", whyOlder), idleFlag("proxy-port-range", whyOlder),
	idleSwitch("skip-headers", whyOlder), idleSwitch("skip-log-headers", whyOlder), idleFlag("stderrthreshold", whyOlder),
	idleFlag("udp-timeout", whyOlder),
}

func same(name string) theirFlag { return theirFlag{theirs: theirs{name, name, ""}} }

func idleFlag(name, why string) theirFlag { return theirFlag{theirs: theirs{name, "", why}} }

func idleSwitch(name, why string) theirFlag {
	return theirFlag{theirs: theirs{name, "", why}, isBool: true}
}

// foreign is the value of a flag of kube-proxy that is no flag here.
type foreign struct {
	flag *theirFlag
	text string
}

// String returns what was given.
func (f *foreign) String() string { return f.text }

// Set takes anything: what is wrong with it is said when it is used.
func (f *foreign) Set(s string) error {
	f.text = s
	return nil
}

// Type returns what the help text would call the value.
func (f *foreign) Type() string {
	if f.flag != nil && f.flag.isBool {
		return "bool"
	}
	return "text"
}

// KubeProxyFlags adds the flags of kube-proxy to fs that have no namesake here. They are
// hidden: who has a command line of kube-proxy's can keep it.
func (l *Loader) KubeProxyFlags(fs *pflag.FlagSet) {
	for i := range kubeProxyFlags {
		f := &kubeProxyFlags[i]
		if f.name == f.to {
			continue
		}
		shorthand := ""
		if len(f.name) == 1 {
			shorthand = f.name
		}
		flag := fs.VarPF(&foreign{flag: f}, f.name, shorthand, f.why)
		flag.Hidden = true
		if f.isBool {
			flag.NoOptDefVal = "true"
		}
		l.foreign = append(l.foreign, flag)
	}
}

// fromKubeProxyFlags takes over what flags of kube-proxy say. The flags here have
// precedence over them.
func (l *Loader) fromKubeProxyFlags() (errs []error) {
	for _, flag := range l.foreign {
		f, _ := flag.Value.(*foreign)
		switch {
		case !flag.Changed:
		case f.flag.name == "bind-address":
			l.bindAddress = candidate{source: "--" + flag.Name, text: f.text}
			fallthrough
		case f.flag.take == nil && f.flag.to == "":
			l.idleFlags = append(l.idleFlags, f.flag.theirs)
		default:
			errs = append(errs, l.translate(f)...)
		}
	}
	return errs
}

// translate takes over one flag that has a meaning.
func (l *Loader) translate(f *foreign) []error {
	source := "--" + f.flag.name
	cs := []candidate{{flag: f.flag.to, text: f.text}}
	if f.flag.take != nil {
		var err error
		if cs, err = f.flag.take(f.text); err != nil {
			return []error{&Error{f.flag.name, source, err}}
		}
	}
	for i := range cs {
		cs[i].source = source
	}
	return l.take(cs)
}

// refused refuses a switch that is on, and says what to do instead.
func refused(instead string) func(string) ([]candidate, error) {
	return func(text string) ([]candidate, error) {
		if on, err := boolean(text); err != nil || !on {
			return nil, err
		}
		return nil, errors.New("is a command of its own: " + instead)
	}
}

// gates reads feature gates. Those that are not known are not looked at.
func gates(text string) (cs []candidate, err error) {
	for _, item := range list(text) {
		name, value, _ := strings.Cut(item, "=")
		if _, err := boolean(value); err != nil {
			return nil, fmt.Errorf("%q: want NAME=true or NAME=false", item)
		}
		if strings.TrimSpace(name) == gateExternalIPs {
			cs = append(cs, candidate{flag: "allow-external-ips", text: value})
		}
	}
	return cs, nil
}

// gateExternalIPs is the feature gate that is a field here.
const gateExternalIPs = "AllowServiceExternalIPs"

// verbosityOf reads a verbosity.
func verbosityOf(text string) ([]candidate, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%q: want a number from 0", text)
	case n >= verbose:
		return []candidate{{flag: "log-level", text: "debug"}}, nil
	}
	return nil, nil
}

// portOf reads the port of a server whose address has a flag of its own.
func portOf(flag, addr string) func(string) ([]candidate, error) {
	return func(text string) ([]candidate, error) {
		port, err := strconv.ParseUint(text, 10, 16)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%q: want a port, or 0 for none", text)
		case port == 0:
			return []candidate{{flag: flag}}, nil
		}
		at := netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port))
		return []candidate{{flag: flag, text: at.String()}}, nil
	}
}
