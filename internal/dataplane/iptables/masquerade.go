// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"os"
)

// portSpan is the first and the last of some ports; zero: any.
type portSpan struct{ first, last uint16 }

// localPorts returns the ports that sockets of the node get by themselves, in the network
// namespace of the calling thread. Masqueraded connections get the same: the eBPF
// dataplane uses those outside, and its connections live on while dataplanes are
// switched. Conntrack, which sees the sockets' connections too, keeps them apart.
func localPorts() (s portSpan) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range") // of both families
	if err != nil {
		return portSpan{}
	}
	if _, err := fmt.Sscan(string(text), &s.first, &s.last); err != nil || s.last < s.first {
		return portSpan{}
	}
	return s
}

// masquerade returns the rules that replace the source.
func (r *roots) masquerade() (rules []string) {
	const target = "-j MASQUERADE"
	options := ""
	if r.randomFully {
		options = " --random-fully"
	}
	if r.sourcePorts != (portSpan{}) {
		for _, proto := range []string{"tcp", "udp", "sctp"} {
			rules = append(rules, fmt.Sprintf("-p %s %s --to-ports %d-%d%s", proto, target, r.sourcePorts.first, r.sourcePorts.last, options))
		}
	}
	return append(rules, target+options)
}
