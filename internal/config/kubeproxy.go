// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
)

// kube-proxy's configuration file says what it is. Those of the same apiVersion and kind
// are read as they are, so that a node can keep its file.
const (
	kubeProxyGroup   = "kubeproxy.config.k8s.io/"
	kubeProxyVersion = kubeProxyGroup + "v1alpha1"
	kubeProxyKind    = "KubeProxyConfiguration"
)

// modeNFTables is a mode of kube-proxy that has fields of its own.
const modeNFTables = "nftables"

// verbose is the verbosity of kube-proxy from which on it tells what is for who looks for
// a fault.
const verbose = 4

// fromKubeProxy takes over kube-proxy's file. What it leaves at the zero value, kube-proxy
// has a default for; it is this package's, too. Fields that kube-proxy does not know are
// noted.
func (l *Loader) fromKubeProxy(fields map[string]any) []error {
	if v := fields[fieldVersion]; v != kubeProxyVersion {
		return []error{&Error{fieldVersion, l.path, wantVersion(v)}}
	}
	given := map[string]any{}
	flatten("", fields, given)
	var cs []candidate
	var errs []error
	for _, field := range slices.Sorted(maps.Keys(given)) {
		source := l.path + ": " + field
		flag, v := l.leadsTo(field, given)
		if flag == "" {
			continue
		}
		text, err := scalar(v, l.flags.Lookup(flag).Value.Type())
		if err != nil {
			errs = append(errs, &Error{flag, source, err})
			continue
		}
		cs = append(cs, candidate{flag, source, text})
	}
	if text, ok := given["bindAddress"].(string); ok && l.bindAddress.text == "" {
		l.bindAddress = candidate{source: l.path + ": bindAddress", text: text}
	}
	return append(errs, l.take(cs)...)
}

// leadsTo returns the flag that a field of kube-proxy's file leads to, and its value there;
// nothing if it has no effect.
func (l *Loader) leadsTo(field string, given map[string]any) (flag string, v any) {
	row := find(kubeProxyFields, field)
	if row == nil {
		l.idle = append(l.idle, field)
		return "", nil
	}
	v = given[field]
	mode := IPTables // whose fields kube-proxy reads
	if given["mode"] == modeNFTables {
		mode = modeNFTables
	}
	counts := true
	switch field {
	case "featureGates." + gateExternalIPs:
		return row.to, v
	case "logging.verbosity":
		counts, v = isVerbose(v), "debug"
	case "bindAddress":
		if v != "0.0.0.0" && v != "::" { // kube-proxy takes it for the node's address
			l.idle = append(l.idle, field)
		}
	case "detectLocal.bridgeInterface": // of another mode they are not read
		counts = given["detectLocalMode"] == "BridgeInterface"
	case "detectLocal.interfaceNamePrefix":
		counts = given["detectLocalMode"] == "InterfaceNamePrefix"
	case "iptables.masqueradeAll", "iptables.masqueradeBit", "iptables.syncPeriod":
		counts = mode == IPTables
	case "nftables.masqueradeAll", "nftables.masqueradeBit", "nftables.syncPeriod":
		counts = mode == modeNFTables
	default:
		counts = row.name == field
	}
	if !counts {
		return "", nil
	}
	return row.to, v
}

// bindByFamily makes the servers listen at the family of kube-proxy's bindAddress, where
// nobody says at which address.
func (l *Loader) bindByFamily() []error {
	addr, err := netip.ParseAddr(l.bindAddress.text)
	if err != nil || addr.Is4() {
		return nil
	}
	source := l.bindAddress.source
	return l.take([]candidate{{"healthz-bind-address", source, "[::]:10256"}, {"metrics-bind-address", source, "[::1]:10249"}})
}

// isVerbose tells whether a verbosity of kube-proxy is at least verbose.
func isVerbose(v any) bool {
	number, _ := v.(json.Number)
	n, err := number.Int64()
	return err == nil && n >= verbose
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
