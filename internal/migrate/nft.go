// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// object is what nft prints in JSON: every part is an object with one field, or a value.
type object = map[string]any

// addNFT adds what a table of nftables says.
func (r *Rules) addNFT(f lb.Family, text []byte) error {
	var all struct {
		Nftables []object `json:"nftables"`
	}
	if err := json.Unmarshal(text, &all); err != nil {
		return fmt.Errorf("output of nft: %w", err)
	}
	timeouts := map[string]int{} // of sets
	for _, o := range all.Nftables {
		if set := field(o, "set"); set != nil {
			timeouts["@"+str(set["name"])] = int(num(set["timeout"]))
		}
	}
	for _, o := range all.Nftables {
		if m := field(o, "map"); m != nil {
			r.addMap(f, str(m["name"]), list(m["elem"]))
		}
		if u := field(o, "rule"); u != nil {
			r.addNFTRule(f, str(u["chain"]), list(u["expr"]), timeouts)
		}
	}
	r.finishNFT(f)
	return nil
}

// servicesChain is the chain of nftables whose rules concern all Services: what it masks
// is masked at cluster IPs.
const servicesChain = "services"

// addMap adds a map: its elements lead from an address, or a port of the node, to a chain.
func (r *Rules) addMap(f lb.Family, name string, elems []any) {
	for _, e := range elems {
		pair := list(e)
		if len(pair) != 2 {
			continue
		}
		key, ok := nftKey(f, pair[0])
		if !ok {
			continue
		}
		verdict, _ := pair[1].(object)
		target := str(field(verdict, "goto")["target"])
		switch name {
		case "service-ips", "service-nodeports":
			fe := r.at(key)
			fe.chain, fe.service = chainKey(f, target), nftService(target)
		case "no-endpoint-services", "no-endpoint-nodeports":
			fe := r.at(key)
			fe.refusal = refusalOf(nftRefusal(verdict, target))
			if fe.service == "" {
				elem, _ := pair[0].(object)
				fe.service = str(field(elem, "elem")["comment"])
			}
		case "firewall-ips":
			r.chains[firewallOf(key)] = []rule{{do: actChain, chains: []string{chainKey(f, target)}}}
		}
	}
}

func firewallOf(key lb.FrontendKey) string { return "firewall of " + key.String() }

func nftRefusal(verdict object, target string) action {
	if _, drops := verdict["drop"]; drops || !strings.Contains(target, "reject") {
		return actDrop
	}
	return actReject
}

// nftKey reads [address, protocol, port] or [protocol, port]. With a comment, the element
// is wrapped.
func nftKey(f lb.Family, v any) (key lb.FrontendKey, ok bool) {
	o, _ := v.(object)
	if inner := field(o, "elem"); inner != nil {
		o, _ = inner["val"].(object)
	}
	parts := list(o["concat"])
	addr := f.Unspecified()
	if len(parts) == 3 {
		var err error
		if addr, err = netip.ParseAddr(str(parts[0])); err != nil {
			return key, false
		}
		parts = parts[1:]
	}
	if len(parts) != 2 {
		return key, false
	}
	proto, ok := nftProto(parts[0])
	return lb.FrontendKey{Addr: netip.AddrPortFrom(addr, uint16(num(parts[1]))), Proto: proto}, ok
}

// nftProto reads a protocol's name, or its number.
func nftProto(v any) (lb.Proto, bool) {
	if n := num(v); n != 0 {
		return lb.Proto(n), true
	}
	p, err := lb.ParseProto(str(v))
	return p, err == nil && str(v) != ""
}

// nftService makes namespace/name:port of a chain's name, service-HASH-namespace/name/protocol/port.
func nftService(chain string) string {
	_, rest, _ := strings.Cut(chain, "-")
	_, rest, _ = strings.Cut(rest, "-")
	parts := strings.Split(rest, "/")
	if len(parts) != 4 {
		return rest
	}
	if parts[3] == "" {
		return parts[0] + "/" + parts[1]
	}
	return parts[0] + "/" + parts[1] + ":" + parts[3]
}

// addNFTRule adds a rule of a chain.
func (r *Rules) addNFTRule(f lb.Family, chain string, exprs []any, timeouts map[string]int) {
	u := rule{}
	for _, e := range exprs {
		o, _ := e.(object)
		for kind, v := range o {
			inner, _ := v.(object)
			u.addExpr(f, kind, inner, timeouts)
		}
	}
	key := chainKey(f, chain)
	r.chains[key] = append(r.chains[key], u)
}

// addExpr adds one part of a rule.
func (u *rule) addExpr(f lb.Family, kind string, v object, timeouts map[string]int) {
	switch kind {
	case "match":
		u.addMatch(v)
	case "mangle":
		u.do = actMark
	case "jump", "goto":
		u.do = actChain
		if target := str(v["target"]); target == "mark-for-masquerade" {
			u.do = actMark
		} else {
			u.chains = []string{chainKey(f, target)}
		}
	case "vmap":
		if field(field(v, "key"), "numgen") == nil {
			return // of an address: see addMap
		}
		u.do = actChain
		for _, pair := range list(field(v, "data")["set"]) {
			if p := list(pair); len(p) == 2 {
				verdict, _ := p[1].(object)
				u.chains = append(u.chains, chainKey(f, str(field(verdict, "goto")["target"])))
			}
		}
	case "dnat":
		u.do, u.backends = actSend, nftBackends(v)
	case "set":
		u.affinity = timeouts[str(v["set"])]
	case "drop":
		u.do = actDrop
	case "reject":
		u.do = actReject
	}
}

// typeLocal is the kernel's number for addresses of the node: RTN_LOCAL.
const typeLocal = 2

// addMatch adds a condition.
func (u *rule) addMatch(v object) {
	left := field(v, "left")
	switch {
	case field(left, "fib") != nil:
		u.local = str(v["right"]) == "local" || num(v["right"]) == typeLocal
	case str(field(left, "payload")["field"]) == "saddr":
		if strings.HasPrefix(str(v["right"]), "@affinity") {
			u.remembered = true
			return
		}
		u.src, u.not = nftPrefixes(v["right"]), str(v["op"]) == "!="
	case field(left, "meta") != nil && str(field(left, "meta")["key"]) == "iifname":
		u.device = str(v["op"]) != "!="
	}
}

// nftPrefixes reads an address, a range, or a set of them.
func nftPrefixes(v any) (ps []netip.Prefix) {
	if p, ok := parsePrefix(str(v)); ok {
		return []netip.Prefix{p}
	}
	o, _ := v.(object)
	if p := field(o, "prefix"); p != nil {
		if a, err := netip.ParseAddr(str(p["addr"])); err == nil {
			return []netip.Prefix{netip.PrefixFrom(a, int(num(p["len"])))}
		}
	}
	for _, item := range list(o["set"]) {
		ps = append(ps, nftPrefixes(item)...)
	}
	return ps
}

// nftBackends reads where dnat leads: one address, or a map from a random number.
func nftBackends(v object) (bs []netip.AddrPort) {
	if a, err := netip.ParseAddr(str(v["addr"])); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(a, uint16(num(v["port"])))}
	}
	for _, pair := range list(field(field(field(v, "addr"), "map"), "data")["set"]) {
		p := list(pair)
		if len(p) != 2 {
			continue
		}
		to, _ := p[1].(object)
		if at := list(to["concat"]); len(at) == 2 {
			if a, err := netip.ParseAddr(str(at[0])); err == nil {
				bs = append(bs, netip.AddrPortFrom(a, uint16(num(at[1]))))
			}
		}
	}
	return bs
}

// finishNFT puts before the chain of each cluster IP what the rules for all of them say,
// and before that of each load balancer its firewall.
func (r *Rules) finishNFT(f lb.Family) {
	var masks []rule
	for _, u := range r.chains[chainKey(f, servicesChain)] {
		if u.do == actMark {
			masks = append(masks, u)
		}
	}
	prefix := chainKey(f, "service-")
	for key, fe := range r.frontends {
		if lb.FamilyOf(key.Addr.Addr()) != f || fe.chain == "" {
			continue
		}
		before := slices.Clone(r.chains[firewallOf(key)])
		for _, first := range before {
			for _, u := range r.chains[first.chains[0]] {
				if u.do == actDrop && u.not {
					fe.ranges = append(fe.ranges, u.src...)
				}
			}
		}
		if strings.HasPrefix(fe.chain, prefix) {
			before = append(before, masks...)
		}
		if len(before) > 0 {
			name := "before " + key.String()
			r.chains[name] = append(before, rule{do: actChain, chains: []string{fe.chain}})
			fe.chain = name
		}
	}
}

// field returns an object's field that is an object, or nil.
func field(o object, name string) object {
	v, _ := o[name].(object)
	return v
}

func str(v any) string {
	s, _ := v.(string)
	return s
}

func num(v any) float64 {
	n, _ := v.(float64)
	return n
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}
