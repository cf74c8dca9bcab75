// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// kube-proxy's configuration file says what it is. Those of the same apiVersion and kind
// are read as they are, so that a node can keep its file.
// Source: Kubernetes 1.37 staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go.
const (
	kubeProxyGroup   = "kubeproxy.config.k8s.io/"
	kubeProxyVersion = kubeProxyGroup + "v1alpha1"
	kubeProxyKind    = "KubeProxyConfiguration"
)

// modeNFTables is a mode of kube-proxy that has fields of its own.
const modeNFTables = "nftables"

// kubeProxyFields leads from the fields of kube-proxy's file to flags. Some depend on
// others and are not here, see fromKubeProxy.
var kubeProxyFields = map[string]string{
	"clientConnection.kubeconfig":     "kubeconfig",
	"hostnameOverride":                "node-name",
	"healthzBindAddress":              "healthz-bind-address",
	"metricsBindAddress":              "metrics-bind-address",
	"bindAddressHardFail":             "bind-address-hard-fail",
	"enableProfiling":                 "profiling",
	"mode":                            "dataplane",
	"iptables.localhostNodePorts":     "iptables-localhost-nodeports",
	"detectLocalMode":                 "detect-local-mode",
	"clusterCIDR":                     "cluster-cidr",
	"nodePortAddresses":               "nodeport-addresses",
	"oomScoreAdj":                     "oom-score-adj",
	"conntrack.maxPerCore":            "conntrack-max-per-core",
	"conntrack.min":                   "conntrack-min",
	"conntrack.tcpEstablishedTimeout": "conntrack-tcp-timeout-established",
	"conntrack.tcpCloseWaitTimeout":   "conntrack-tcp-timeout-close-wait",
	"conntrack.tcpBeLiberal":          "conntrack-tcp-be-liberal",
	"conntrack.udpTimeout":            "conntrack-udp-timeout",
	"conntrack.udpStreamTimeout":      "conntrack-udp-timeout-stream",
	"logging.format":                  "log-format",

	"featureGates.AllowServiceExternalIPs": "allow-external-ips",
}

// kubeProxyIdle are fields that may say something, and nothing is lost with it.
var kubeProxyIdle = []string{
	"apiVersion", "kind", "configSyncPeriod", "portRange", "windowsRunAsService", "winkernel", "ipvs",
	"clientConnection", "detectLocal", "featureGates", "iptables.minSyncPeriod", "nftables.minSyncPeriod",
	"iptables", "nftables", "logging", "showHiddenMetricsForVersion",
}

// fromKubeProxy takes over kube-proxy's file. What it leaves at the zero value, kube-proxy
// has a default for; it is this package's, too. Fields without effect here are noted.
func (l *Loader) fromKubeProxy(fields map[string]any) []error {
	if v := fields["apiVersion"]; v != kubeProxyVersion {
		return []error{&Error{configFlag, l.path, fmt.Errorf("apiVersion %v: want %s", v, kubeProxyVersion)}}
	}
	given := map[string]any{}
	flatten("", fields, given)
	leads := maps.Clone(kubeProxyFields)
	mode := IPTables // whose fields kube-proxy reads
	if given["mode"] == modeNFTables {
		mode = modeNFTables
	}
	leads[mode+".masqueradeAll"] = "masquerade-all"
	leads[mode+".masqueradeBit"] = "iptables-masquerade-bit"
	leads[mode+".syncPeriod"] = "sync-period"
	switch given["detectLocalMode"] { // of another mode they are not read
	case "BridgeInterface":
		leads["detectLocal.bridgeInterface"] = "pod-bridge-interface"
	case "InterfaceNamePrefix":
		leads["detectLocal.interfaceNamePrefix"] = "pod-interface-name-prefix"
	}
	var cs []candidate
	var errs []error
	for _, field := range slices.Sorted(maps.Keys(given)) {
		flag, ok := leads[field]
		if !ok {
			l.noteIdle(field, given[field])
			continue
		}
		source := l.path + ": " + field
		text, err := scalar(given[field], l.flags.Lookup(flag).Value.Type())
		if err != nil {
			errs = append(errs, &Error{flag, source, err})
			continue
		}
		cs = append(cs, candidate{flag, source, text})
	}
	if verbose(given["logging.verbosity"]) {
		cs = append(cs, candidate{"log-level", l.path + ": logging.verbosity", "debug"})
	}
	return append(errs, l.take(append(cs, l.boundByFamily(given)...))...)
}

// boundByFamily returns the addresses of servers that follow from another one.
func (l *Loader) boundByFamily(given map[string]any) (cs []candidate) {
	text, _ := given["bindAddress"].(string)
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Is4() {
		return nil
	}
	for field, at := range map[string]string{"healthzBindAddress": "[::]:10256", "metricsBindAddress": "[::1]:10249"} {
		if given[field] == nil {
			cs = append(cs, candidate{kubeProxyFields[field], l.path + ": bindAddress", at})
		}
	}
	return cs
}

// verbose tells whether a verbosity of kube-proxy has messages for who looks for a fault.
func verbose(v any) bool {
	number, _ := v.(json.Number)
	n, err := number.Int64()
	return err == nil && n >= 4
}

// noteIdle notes a field that has no effect, unless it is known that nothing is lost.
func (l *Loader) noteIdle(field string, v any) {
	if field == "bindAddress" && (v == "0.0.0.0" || v == "::") {
		return
	}
	for _, idle := range kubeProxyIdle {
		if field == idle || strings.HasPrefix(field, idle+".") {
			return
		}
	}
	l.idle = append(l.idle, field)
}

// flatten writes the values of nested fields that are not zero into out, by their path.
// A time of 0 is zero, but for conntrack, of which it leaves something as it is.
func flatten(prefix string, fields, out map[string]any) {
	for name, v := range fields {
		switch v := v.(type) {
		case map[string]any:
			flatten(prefix+name+".", v, out)
		default:
			if !zero(v) && (v != "0s" || prefix == "conntrack.") {
				out[prefix+name] = v
			}
		}
	}
}

// zero tells whether v is what kube-proxy takes for not given. False and 0 are not: where
// they are not the default, they are meant.
func zero(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	}
	return false
}

// isKubeProxy tells whether a file is one of kube-proxy's.
func isKubeProxy(fields map[string]any) (bool, error) {
	kind, ok := fields["kind"]
	if !ok {
		return false, nil
	}
	if version, _ := fields["apiVersion"].(string); kind == kubeProxyKind && strings.HasPrefix(version, kubeProxyGroup) {
		return true, nil
	}
	return false, fmt.Errorf("is a %v: %w", kind, errKind)
}

var errKind = errors.New("want a flat list of fields such as nodeName: worker-1, or a " + kubeProxyKind + " of " + kubeProxyVersion)
