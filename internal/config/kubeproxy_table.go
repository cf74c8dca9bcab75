// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"strings"
)

// kubeProxyRelease is the release of kube-proxy whose fields and flags are listed here.
const kubeProxyRelease = "v1.37.2"

// theirs is a field of kube-proxy's file, or a flag of its command line.
type theirs struct {
	name string // a field's path, a flag without its dashes
	to   string // the flag here that takes its value over; empty: none
	why  string // what becomes of it, if its value is not simply taken over
}

// Why fields and flags of kube-proxy have no effect.
const (
	whyChanges = "a change is applied at once, and a burst of them together"
	whyIPVS    = "there are no rules of IPVS"
	whyClient  = "the agent watches, in protobuf, and posts Events: no rate holds it up"
	whyWindows = "of Windows"
	whyLog     = "the log goes to stderr, unbuffered, and has one level"
	whyHidden  = "no metric is hidden"
	whyResync  = "what a watch says is not fetched again; audit-period compares the kernel"
	whyGates   = "AllowServiceExternalIPs is allow-external-ips; others do not matter here, and are not looked at"
	whyBind    = "an IPv6 address makes the servers listen there by default; nothing else"
	whyVerbose = "from 4 on, log-level debug"
	whyMode    = "of the mode that is given; iptables' if it is not nftables"
	whyOlder   = "of an earlier kube-proxy"
	whyDetect  = "with that detectLocalMode"
)

// kubeProxyFields are the fields of kube-proxy's file.
// Source: Kubernetes 1.37 staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go.
var kubeProxyFields = []theirs{
	{name: "apiVersion", why: kubeProxyVersion},
	{name: "kind", why: kubeProxyKind},
	{name: "featureGates", to: "allow-external-ips", why: whyGates},
	{name: "clientConnection.kubeconfig", to: "kubeconfig"},
	{name: "clientConnection.acceptContentTypes", why: whyClient},
	{name: "clientConnection.contentType", why: whyClient},
	{name: "clientConnection.qps", why: whyClient},
	{name: "clientConnection.burst", why: whyClient},
	{name: "logging.format", to: "log-format"},
	{name: "logging.flushFrequency", why: whyLog},
	{name: "logging.verbosity", to: "log-level", why: whyVerbose},
	{name: "logging.vmodule", why: whyLog},
	{name: "logging.options", why: whyLog},
	{name: "hostnameOverride", to: "node-name"},
	{name: "bindAddress", why: whyBind},
	{name: "healthzBindAddress", to: "healthz-bind-address"},
	{name: "metricsBindAddress", to: "metrics-bind-address"},
	{name: "bindAddressHardFail", to: "bind-address-hard-fail"},
	{name: "enableProfiling", to: "profiling"},
	{name: "showHiddenMetricsForVersion", why: whyHidden},
	{name: "mode", to: "dataplane", why: "nftables and ipvs are auto, with a warning; kernelspace is refused"},
	{name: "iptables.masqueradeBit", to: "iptables-masquerade-bit", why: whyMode},
	{name: "iptables.masqueradeAll", to: "masquerade-all", why: whyMode},
	{name: "iptables.localhostNodePorts", to: "iptables-localhost-nodeports"},
	{name: "iptables.syncPeriod", to: "sync-period", why: whyMode},
	{name: "iptables.minSyncPeriod", why: whyChanges},
	{name: "ipvs", why: whyIPVS},
	{name: "nftables.masqueradeBit", to: "iptables-masquerade-bit", why: whyMode},
	{name: "nftables.masqueradeAll", to: "masquerade-all", why: whyMode},
	{name: "nftables.syncPeriod", to: "sync-period", why: whyMode},
	{name: "nftables.minSyncPeriod", why: whyChanges},
	{name: "winkernel", why: whyWindows},
	{name: "detectLocalMode", to: "detect-local-mode"},
	{name: "detectLocal.bridgeInterface", to: "pod-bridge-interface", why: whyDetect},
	{name: "detectLocal.interfaceNamePrefix", to: "pod-interface-name-prefix", why: whyDetect},
	{name: "clusterCIDR", to: "cluster-cidr"},
	{name: "nodePortAddresses", to: "nodeport-addresses"},
	{name: "oomScoreAdj", to: "oom-score-adj"},
	{name: "conntrack.maxPerCore", to: "conntrack-max-per-core"},
	{name: "conntrack.min", to: "conntrack-min"},
	{name: "conntrack.tcpEstablishedTimeout", to: "conntrack-tcp-timeout-established"},
	{name: "conntrack.tcpCloseWaitTimeout", to: "conntrack-tcp-timeout-close-wait"},
	{name: "conntrack.tcpBeLiberal", to: "conntrack-tcp-be-liberal"},
	{name: "conntrack.udpTimeout", to: "conntrack-udp-timeout"},
	{name: "conntrack.udpStreamTimeout", to: "conntrack-udp-timeout-stream"},
	{name: "configSyncPeriod", why: whyResync},
	{name: "portRange", why: "kube-proxy does not read it either"},
	{name: "windowsRunAsService", why: whyWindows},
}

// find returns the row of a field, or of what it is a part of; nil: kube-proxy does not
// know it.
func find(rows []theirs, name string) *theirs {
	for i := range rows {
		if rows[i].name == name || strings.HasPrefix(name, rows[i].name+".") {
			return &rows[i]
		}
	}
	return nil
}

// MarkdownOfKubeProxyFields returns the table of kube-proxy's fields for the documentation.
func MarkdownOfKubeProxyFields() string {
	return markdownOf("field of kube-proxy "+kubeProxyRelease, "", kubeProxyFields)
}

// MarkdownOfKubeProxyFlags returns the table of kube-proxy's flags.
func MarkdownOfKubeProxyFlags() string {
	rows := make([]theirs, len(kubeProxyFlags))
	for i, f := range kubeProxyFlags {
		rows[i] = f.theirs
	}
	return markdownOf("flag of kube-proxy "+kubeProxyRelease, "--", rows)
}

func markdownOf(title, dashes string, rows []theirs) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s | here | |\n|---|---|---|\n", title)
	for _, row := range rows {
		to := "no effect"
		switch {
		case row.to != "":
			to = code("--" + row.to)
		case strings.HasPrefix(row.why, refusal):
			to = "refused"
		case row.name == "apiVersion" || row.name == "kind":
			to = "required"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", code(dashes+row.name), to, strings.TrimPrefix(row.why, refusal))
	}
	return b.String()
}
