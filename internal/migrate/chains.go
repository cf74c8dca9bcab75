// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/internal/dataplane/iptables"
)

// Chains of kube-proxy's own. KUBE-FIREWALL, KUBE-KUBELET-CANARY and KUBE-IPTABLES-HINT
// are the kubelet's, although kube-proxy puts a rule into the first one as well. Source:
// pkg/proxy/iptables/cleanup.go and pkg/proxy/ipvs of Kubernetes 1.37 and before.
var (
	ownChains = []string{
		"KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-MARK-DROP",
		"KUBE-FORWARD", "KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY",
		"KUBE-LOAD-BALANCER", "KUBE-NODE-PORT", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER",
	}
	ownPrefixes = []string{"KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-", "KUBE-XLB-"}
)

// The chains by which kube-proxy masquerades: the first one sets a mark that the second
// one looks for.
const (
	markChain        = "KUBE-MARK-MASQ"
	postroutingChain = "KUBE-POSTROUTING"
	forwardChain     = "KUBE-FORWARD"
)

// manyChains is for how many chains it pays to make iptables-nft-restore list the table
// first: it (1.8.9) looks for each one in a sorted list otherwise.
const manyChains = 500

func isOwn(chain string) bool {
	return slices.Contains(ownChains, chain) ||
		slices.ContainsFunc(ownPrefixes, func(p string) bool { return strings.HasPrefix(chain, p) })
}

// removal is what has to be done to a table.
type removal struct {
	saved  iptables.Saved
	jumps  []string          // rules of built-in chains that lead to kube-proxy's, as -D takes them
	chains []string          // that nobody needs then
	kept   map[string]string // chains of kube-proxy's that stay, and why
}

// savedRule reads a line that is a rule.
func savedRule(line string) (chain, rule, target string, ok bool) {
	rest, ok := strings.CutPrefix(line, "-A ")
	if !ok {
		return "", "", "", false
	}
	chain, rule, _ = strings.Cut(rest, " ")
	words := strings.Fields(rule)
	for i := range words[:max(0, len(words)-1)] {
		if words[i] == "-j" || words[i] == "-g" {
			target = words[i+1]
		}
	}
	return chain, rule, target, true
}

// builtins returns the built-in chains of a table and their policies.
func builtins(lines []string) map[string]string {
	policies := map[string]string{}
	for _, line := range lines {
		if rest, ok := strings.CutPrefix(line, ":"); ok {
			name, rest, _ := strings.Cut(rest, " ")
			if policy, _, _ := strings.Cut(rest, " "); policy != "-" {
				policies[name] = policy
			}
		}
	}
	return policies
}

// plan finds what is kube-proxy's in a table. What rules of others lead to stays, with all
// that it leads to. Where FORWARD drops, the chain of what is forwarded stays as well: old
// connections, and the backends' answers to new ones, may pass by nothing else.
func plan(saved iptables.Saved) removal {
	r := removal{saved: saved, kept: map[string]string{}}
	policies := builtins(saved.Lines)
	targets := map[string][]string{} // of kube-proxy's chains
	var keep func(chain, why string)
	keep = func(chain, why string) {
		if !isOwn(chain) || r.kept[chain] != "" {
			return
		}
		r.kept[chain] = why
		for _, next := range targets[chain] {
			keep(next, why)
		}
	}
	for _, line := range saved.Lines {
		if chain, _, target, ok := savedRule(line); ok && isOwn(chain) {
			targets[chain] = append(targets[chain], target)
		}
	}
	for _, line := range saved.Lines {
		chain, _, target, ok := savedRule(line)
		if !ok || !isOwn(target) || isOwn(chain) || policies[chain] != "" {
			continue
		}
		keep(target, "chain "+chain+" uses it")
		if target == markChain {
			keep(postroutingChain, "chain "+chain+" uses "+markChain)
		}
	}
	if policies["FORWARD"] == "DROP" && saved.Table == "filter" {
		keep(forwardChain, "FORWARD drops what no rule accepts")
	}
	for _, line := range saved.Lines {
		if rest, ok := strings.CutPrefix(line, ":"); ok {
			if name, _, _ := strings.Cut(rest, " "); isOwn(name) && r.kept[name] == "" {
				r.chains = append(r.chains, name)
			}
		} else if chain, rule, target, ok := savedRule(line); ok && policies[chain] != "" && isOwn(target) && r.kept[target] == "" {
			r.jumps = append(r.jumps, chain+" "+rule)
		}
	}
	return r
}

// cut is the input of iptables-restore that removes the jumps.
func (r removal) cut() string {
	var b strings.Builder
	b.WriteString("*" + r.saved.Table + "\n")
	for _, jump := range r.jumps {
		b.WriteString("-D " + jump + "\n")
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// clear is the input of iptables-restore that removes the chains: to declare one empties
// it, so that none refers to another when they go.
func (r removal) clear() string {
	var b strings.Builder
	b.WriteString("*" + r.saved.Table + "\n")
	if r.saved.Backend == "nft" && len(r.chains) >= manyChains {
		b.WriteString("-S\n")
	}
	for _, name := range r.chains {
		b.WriteString(":" + name + " - [0:0]\n")
	}
	for _, name := range r.chains {
		b.WriteString("-X " + name + "\n")
	}
	b.WriteString("COMMIT\n")
	return b.String()
}
