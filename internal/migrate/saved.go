// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/lbproxy/lbproxy/internal/dataplane/iptables"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// words splits a rule as iptables-save prints it: a comment is one word.
func words(rule string) (ws []string) {
	for rule = strings.TrimLeft(rule, " "); rule != ""; rule = strings.TrimLeft(rule, " ") {
		if rule[0] != '"' {
			w, rest, _ := strings.Cut(rule, " ")
			ws, rule = append(ws, w), rest
			continue
		}
		var w strings.Builder
		i := 1
		for ; i < len(rule) && rule[i] != '"'; i++ {
			if rule[i] == '\\' && i+1 < len(rule) {
				i++
			}
			w.WriteByte(rule[i])
		}
		ws, rule = append(ws, w.String()), rule[min(i+1, len(rule)):]
	}
	return ws
}

// matched is a rule with what it says of the destination.
type matched struct {
	rule
	dst     netip.Prefix
	proto   lb.Proto
	port    uint16
	comment string
	target  string
}

// parseRule reads a rule of iptables.
func parseRule(text string) (m matched) {
	not := false
	ws := words(text)
	for i := 0; i < len(ws); i++ {
		arg := ""
		if i+1 < len(ws) {
			arg = ws[i+1]
		}
		switch ws[i] {
		case "!":
			not = true
			continue
		case "-s":
			if p, ok := parsePrefix(arg); ok {
				m.src, m.not = []netip.Prefix{p}, not
			}
		case "-d":
			if p, ok := parsePrefix(arg); ok && !not {
				m.dst = p
			}
		case "-p":
			m.proto, _ = lb.ParseProto(arg) // else it is none of a Service's
		case "--dport":
			n, _ := strconv.ParseUint(arg, 10, 16)
			m.port = uint16(n)
		case "--comment":
			m.comment = arg
		case "--src-type":
			m.local = arg == "LOCAL"
		case "-i":
			m.device = !not
		case "--probability":
			m.chance, _ = strconv.ParseFloat(arg, 64)
		case "--rcheck":
			m.remembered = true
			not = false
			continue
		case "--seconds":
			m.affinity, _ = strconv.Atoi(arg)
		case "--to-destination":
			if ap, err := netip.ParseAddrPort(arg); err == nil {
				m.backends = []netip.AddrPort{ap}
			}
		case "-j", "-g":
			m.target = arg
		default:
			not = false
			continue
		}
		not = false
		i++
	}
	m.do = actionOf(m.target, len(m.backends) > 0)
	return m
}

func actionOf(target string, sends bool) action {
	switch target {
	case "", "MARK", "ACCEPT", "MASQUERADE":
		return actNothing
	case markChain:
		return actMark
	case "DNAT":
		if sends {
			return actSend
		}
		return actNothing
	case "RETURN":
		return actReturn
	case "DROP":
		return actDrop
	case "REJECT":
		return actReject
	}
	return actChain
}

func parsePrefix(s string) (netip.Prefix, bool) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p, true
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, a.BitLen()), true
}

// savedKey makes chains of both families and backends differ.
func savedKey(s iptables.Saved, name string) string { return chainKey(s.Family, s.Backend+" "+name) }

// chainKey makes chains of both families differ.
func chainKey(f lb.Family, name string) string { return f.String() + " " + name }

// addSaved adds what a table of iptables says, if it is reached.
func (r *Rules) addSaved(s iptables.Saved) {
	if s.Table == "nat" && !reached(s) {
		return
	}
	for _, line := range s.Lines {
		chain, text, _, ok := savedRule(line)
		if !ok || !isOwn(chain) {
			continue
		}
		m := parseRule(text)
		switch {
		case s.Table == "nat" && (chain == "KUBE-SERVICES" || chain == "KUBE-NODEPORTS"):
			if key, ok := m.key(s.Family, chain == "KUBE-NODEPORTS"); ok && isOwn(m.target) {
				fe := r.at(key)
				r.lead(key, fe, savedKey(s, m.target))
				fe.service = serviceOf(m.comment)
			}
		case s.Table == "nat":
			m.chains = []string{savedKey(s, m.target)}
			r.chains[savedKey(s, chain)] = append(r.chains[savedKey(s, chain)], m.rule)
		case s.Table == "filter" && (chain == "KUBE-SERVICES" || chain == "KUBE-EXTERNAL-SERVICES" || chain == "KUBE-PROXY-FIREWALL"):
			if key, ok := m.key(s.Family, !m.dst.IsValid()); ok && (m.do == actDrop || m.do == actReject) {
				fe := r.at(key)
				fe.refusal = refusalOf(m.do)
				if fe.service == "" {
					fe.service = serviceOf(m.comment)
				}
			}
		}
	}
	if s.Table == "nat" {
		r.findRanges(savedKey(s, "KUBE-FW-"))
	}
}

// lead makes chain answer at a frontend. Where both backends of iptables answer, which one
// comes first depends on which was loaded first: either is taken to get its half, so that
// it shows if they do not do the same.
func (r *Rules) lead(key lb.FrontendKey, fe *frontend, chain string) {
	if fe.chain == "" || fe.chain == chain {
		fe.chain = chain
		return
	}
	either := "either of " + key.String()
	if fe.chain != either {
		r.chains[either] = []rule{{do: actChain, chains: []string{fe.chain}}}
		fe.chain = either
	}
	if first := &r.chains[either][0]; !slices.Contains(first.chains, chain) {
		first.chains = append(first.chains, chain)
	}
}

// key is the frontend that a rule is about.
func (m *matched) key(f lb.Family, nodePort bool) (key lb.FrontendKey, ok bool) {
	if m.port == 0 || m.proto == 0 {
		return key, false
	}
	if nodePort {
		return lb.FrontendKey{Addr: netip.AddrPortFrom(f.Unspecified(), m.port), Proto: m.proto}, true
	}
	return lb.FrontendKey{Addr: netip.AddrPortFrom(m.dst.Addr(), m.port), Proto: m.proto}, m.dst.IsValid() && m.dst.IsSingleIP()
}

// serviceOf is the name with which kube-proxy's comments begin.
func serviceOf(comment string) string {
	name, _, _ := strings.Cut(comment, " ")
	return name
}

// findRanges notes the source ranges of load balancers, which are rules of chains of
// their own, with keys of that prefix.
func (r *Rules) findRanges(prefix string) {
	for _, fe := range r.frontends {
		if !strings.HasPrefix(fe.chain, prefix) || fe.ranges != nil {
			continue
		}
		for _, u := range r.chains[fe.chain] {
			if u.do == actChain && !u.not {
				fe.ranges = append(fe.ranges, u.src...)
			}
		}
	}
}
