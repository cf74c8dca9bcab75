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
		servicesEntry, "KUBE-EXTERNAL-SERVICES", nodePortsChain, postroutingChain, markChain, "KUBE-MARK-DROP",
		forwardChain, "KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY",
		"KUBE-LOAD-BALANCER", "KUBE-NODE-PORT", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER",
	}
	// entryChains are those that kube-proxy's jumps from built-in chains lead to: iptablesJumpChains
	// there. Whoever jumps to another one is somebody else.
	entryChains = []string{
		servicesEntry, "KUBE-EXTERNAL-SERVICES", nodePortsChain, postroutingChain, forwardChain, "KUBE-PROXY-FIREWALL",
		"KUBE-NODE-PORT", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER",
	}
	ownPrefixes = []string{"KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-", "KUBE-XLB-"}
)

// The chains by which kube-proxy masquerades: the first one sets a mark that the second
// one looks for. Then those by which it finds Services, and in table filter lets packets
// pass.
const (
	markChain        = "KUBE-MARK-MASQ"
	postroutingChain = "KUBE-POSTROUTING"
	servicesEntry    = "KUBE-SERVICES"
	forwardChain     = "KUBE-FORWARD"
	nodePortsChain   = "KUBE-NODEPORTS" // in table filter, health check node ports
)

// notOfTheNode are chains whose refusals say nothing about what the node lets pass: the
// kubelet's and lbproxy's own.
var notOfTheNode = []string{"KUBE-FIREWALL", "LBP-"}

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
	jumps  []string          // rules of built-in chains that lead to entryChains, as -D takes them
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

// targetsOf returns where the rules of each chain that there is lead: to chains and to the
// kernel's own targets.
func targetsOf(lines []string) map[string][]string {
	targets := map[string][]string{}
	for _, line := range lines {
		if chain, _, target, ok := savedRule(line); ok {
			targets[chain] = append(targets[chain], target)
		} else if rest, ok := strings.CutPrefix(line, ":"); ok {
			name, _, _ := strings.Cut(rest, " ")
			targets[name] = nil // all chains come before all rules
		}
	}
	return targets
}

// refuses tells whether a built-in chain of table filter may drop or reject, by its policy,
// or by a rule of its own or of a chain that it leads to. Many set no policy, and reject by
// their last rule.
func refuses(lines []string, builtin string) bool {
	if builtins(lines)[builtin] == "DROP" {
		return true
	}
	targets, seen := targetsOf(lines), map[string]bool{}
	var at func(chain string) bool
	at = func(chain string) bool {
		if seen[chain] || isOwn(chain) || slices.ContainsFunc(notOfTheNode, func(p string) bool { return strings.HasPrefix(chain, p) }) {
			return false
		}
		seen[chain] = true
		return chain == "DROP" || chain == "REJECT" || slices.ContainsFunc(targets[chain], at)
	}
	return at(builtin)
}

// reached tells whether what connects comes to kube-proxy's chains of a table nat. They
// are also there when kube-proxy was removed halfway.
func reached(saved iptables.Saved) bool {
	targets := targetsOf(saved.Lines)
	return saved.Table == "nat" && slices.Contains(targets["PREROUTING"], servicesEntry) && slices.Contains(targets["OUTPUT"], servicesEntry)
}

// keep makes a chain stay, with all that it leads to, and masquerading if it marks.
func (r *removal) keep(targets map[string][]string, chain, why string) {
	if _, is := targets[chain]; !is || !isOwn(chain) || r.kept[chain] != "" {
		return
	}
	r.kept[chain] = why
	for _, next := range targets[chain] {
		r.keep(targets, next, why)
	}
	if chain == markChain {
		r.keep(targets, postroutingChain, why+", by "+markChain)
	}
}

// plan finds what is kube-proxy's in a table. What rules of others lead to stays. Where the
// node refuses packets, chains of table filter that let them pass stay as well: old
// connections, and the backends' answers to new ones, may pass by nothing else.
func plan(saved iptables.Saved) removal {
	r := removal{saved: saved, kept: map[string]string{}}
	policies, targets := builtins(saved.Lines), targetsOf(saved.Lines)
	for _, line := range saved.Lines {
		chain, rule, target, ok := savedRule(line)
		switch {
		case !ok || !isOwn(target) || isOwn(chain) || policies[chain] != "" && slices.Contains(entryChains, target):
		case policies[chain] != "":
			r.keep(targets, target, "somebody else's rule uses it: -A "+chain+" "+rule)
		default:
			r.keep(targets, target, "chain "+chain+" uses it")
		}
	}
	if saved.Table == "filter" {
		if refuses(saved.Lines, "FORWARD") {
			r.keep(targets, forwardChain, "FORWARD drops or rejects what no rule accepts")
		}
		if len(targets[nodePortsChain]) > 0 && refuses(saved.Lines, "INPUT") {
			r.keep(targets, nodePortsChain, "INPUT drops or rejects what no rule accepts, and this accepts health check node ports of now; accept later ones yourself")
		}
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
