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
	descRules = describe(Metric{Name: "kubeproxy_sync_proxy_rules_iptables_total", Kind: Gauge, Only: onlyIPTables, Labels: []Label{labelIPFamily, labelTable},
		Help: "Rules in lbproxy's own chains."})
	descWritten = describe(Metric{Name: "kubeproxy_sync_proxy_rules_iptables_last", Kind: Gauge, Only: onlyIPTables, Labels: []Label{labelIPFamily, labelTable},
		Help: "Rules written by the last change."})
	descRestores = describe(Metric{Name: "kubeproxy_sync_proxy_rules_iptables_restore_failures_total", Kind: Counter, Only: onlyIPTables, Labels: []Label{labelIPFamily},
		Help: "Changes of rules that failed."})
	descEnded = describe(Metric{Name: "kubeproxy_conntrack_reconciler_deleted_entries_total", Kind: Counter, Only: onlyIPTables, Labels: []Label{labelIPFamily},
		Help: "Entries of connection tracking that were deleted because their endpoint or Service is gone."})
)

// rules sends what dataplanes with rules have counted.
func (o out) rules(rs []dataplane.RuleStats) {
	for _, r := range rs {
		for _, t := range r.Tables {
			o.number(&descRules, float64(t.Rules), r.Family.String(), t.Name)
			o.number(&descWritten, float64(t.Written), r.Family.String(), t.Name)
		}
		o.number(&descRestores, float64(r.Failures), r.Family.String())
		o.number(&descEnded, float64(r.Ended), r.Family.String())
	}
}
