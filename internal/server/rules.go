// SPDX-License-Identifier: Apache-2.0

package server

import "github.com/lbproxy/lbproxy/internal/dataplane"

// Metrics of rules, which only dataplanes with rules have. The first two are gauges, as
// kube-proxy has them, whatever the name of one.
//
// Not here: ..._partial_restore_failures_total (nothing is tried as a part first and then
// as a whole), how long cleaning connection tracking takes, and what kube-proxy counts
// by nfacct.
var (
	descRules    = kubeProxyDesc("sync_proxy_rules_iptables_total", "Rules in lbproxy's own chains.", labelNames("table")...)
	descWritten  = kubeProxyDesc("sync_proxy_rules_iptables_last", "Rules written by the last change.", labelNames("table")...)
	descRestores = kubeProxyDesc("sync_proxy_rules_iptables_restore_failures_total", "Changes of rules that failed.")
	descEnded    = kubeProxyDesc("conntrack_reconciler_deleted_entries_total",
		"Entries of connection tracking that were deleted because their endpoint or Service is gone.")
)

// rules sends what dataplanes with rules have counted.
func (o out) rules(rs []dataplane.RuleStats) {
	for _, r := range rs {
		for _, t := range r.Tables {
			o.gauge(descRules, float64(t.Rules), r.Family.String(), t.Name)
			o.gauge(descWritten, float64(t.Written), r.Family.String(), t.Name)
		}
		o.counter(descRestores, r.Failures, r.Family.String())
		o.counter(descEnded, r.Ended, r.Family.String())
	}
}
