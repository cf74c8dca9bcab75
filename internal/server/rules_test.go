// SPDX-License-Identifier: Apache-2.0

package server

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestRuleMetrics: under kube-proxy's names, with its labels and types.
func TestRuleMetrics(t *testing.T) {
	src := Sources{Stats: func() (dataplane.Stats, error) {
		return dataplane.Stats{Rules: []dataplane.RuleStats{
			{Family: lb.IPv4, Failures: 2, Ended: 7, Tables: []dataplane.TableStats{{Name: "filter", Rules: 20}, {Name: "nat", Rules: 4000, Written: 13}}},
			{Family: lb.IPv6, Tables: []dataplane.TableStats{{Name: "filter", Rules: 19, Written: 19}}},
		}}, nil
	}}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(newCollector(src))
	const prefix = "kubeproxy_sync_proxy_rules_iptables_"
	err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP kubeproxy_conntrack_reconciler_deleted_entries_total Entries of connection tracking that were deleted because their endpoint or Service is gone.
# TYPE kubeproxy_conntrack_reconciler_deleted_entries_total counter
kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"} 7
kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv6"} 0
# HELP kubeproxy_sync_proxy_rules_iptables_last Rules written by the last change.
# TYPE kubeproxy_sync_proxy_rules_iptables_last gauge
kubeproxy_sync_proxy_rules_iptables_last{ip_family="IPv4",table="filter"} 0
kubeproxy_sync_proxy_rules_iptables_last{ip_family="IPv4",table="nat"} 13
kubeproxy_sync_proxy_rules_iptables_last{ip_family="IPv6",table="filter"} 19
# HELP kubeproxy_sync_proxy_rules_iptables_restore_failures_total Changes of rules that failed.
# TYPE kubeproxy_sync_proxy_rules_iptables_restore_failures_total counter
kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family="IPv4"} 2
kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family="IPv6"} 0
# HELP kubeproxy_sync_proxy_rules_iptables_total Rules in lbproxy's own chains.
# TYPE kubeproxy_sync_proxy_rules_iptables_total gauge
kubeproxy_sync_proxy_rules_iptables_total{ip_family="IPv4",table="filter"} 20
kubeproxy_sync_proxy_rules_iptables_total{ip_family="IPv4",table="nat"} 4000
kubeproxy_sync_proxy_rules_iptables_total{ip_family="IPv6",table="filter"} 19
`), prefix+"total", prefix+"last", prefix+"restore_failures_total", "kubeproxy_conntrack_reconciler_deleted_entries_total")
	if err != nil {
		t.Error(err)
	}
}
