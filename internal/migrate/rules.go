// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"net/netip"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// Rules is what kube-proxy's rules do: where it answers, and by which chains.
type Rules struct {
	frontends map[lb.FrontendKey]*frontend
	chains    map[string][]rule // by family and name
}

// frontend is an address at which kube-proxy does something. A NodePort has the
// unspecified address of its family.
type frontend struct {
	service string // namespace/name:port, as kube-proxy's comments and names have it
	chain   string // empty: it only refuses
	refusal string // what becomes of who was sent nowhere: reject, drop or nothing
	ranges  []netip.Prefix
}

// The actions of a rule.
type action uint8

const (
	actNothing action = iota
	actChain          // jump or goto, to one of chains with equal chances
	actMark           // masquerade
	actSend           // to one of backends with equal chances
	actReturn
	actDrop
	actReject
)

// rule is one rule. Conditions that are not there hold.
type rule struct {
	src        []netip.Prefix // one of them has the source, or none if not is set
	not        bool
	local      bool    // the source is an address of the node
	device     bool    // it comes from a device of pods
	remembered bool    // it is a client that was there before
	chance     float64 // 0: always
	affinity   int     // s for which clients are remembered; 0: says nothing of that
	do         action
	chains     []string
	backends   []netip.AddrPort
}

// A caller is who connects. Rules tell three kinds.
type caller struct {
	name  string
	addr  netip.Addr
	local bool
	pod   bool
}

// outcome is what becomes of a new connection.
type outcome struct {
	shares     map[netip.AddrPort]float64 // of backends, together 1; empty: it is refused
	masquerade bool
	refusal    string // reject or drop; empty: it is sent somewhere, or nowhere
	affinity   int    // s
}

func newRules() *Rules {
	return &Rules{frontends: map[lb.FrontendKey]*frontend{}, chains: map[string][]rule{}}
}

// at returns the frontend of a key, made if it is missing.
func (r *Rules) at(key lb.FrontendKey) *frontend {
	fe := r.frontends[key]
	if fe == nil {
		fe = &frontend{}
		r.frontends[key] = fe
	}
	return fe
}

// Len returns how many addresses kube-proxy does something at.
func (r *Rules) Len() int { return len(r.frontends) }

// holds tells whether a rule's conditions hold for a new connection, but for its chance.
func (u *rule) holds(c caller) bool {
	if u.remembered || u.local && !c.local || u.device && !c.pod {
		return false
	}
	if len(u.src) == 0 {
		return true
	}
	in := false
	for _, p := range u.src {
		in = in || p.Contains(c.addr)
	}
	return in != u.not
}

// walk is the way of a new connection through chains.
type walk struct {
	rules *Rules
	from  caller
	out   *outcome
	depth int
}

// maxDepth is deeper than kube-proxy's chains are.
const maxDepth = 16

// through sends weight through a chain and returns how much of it comes out at the end.
func (w *walk) through(chain string, weight float64) (left float64) {
	if w.depth++; w.depth > maxDepth {
		return weight
	}
	defer func() { w.depth-- }()
	returned := 0.0
	for i := range w.rules.chains[chain] {
		u := &w.rules.chains[chain][i]
		if u.affinity > 0 {
			w.out.affinity = u.affinity
		}
		if weight <= 0 || !u.holds(w.from) {
			continue
		}
		part := weight
		if u.chance > 0 {
			part *= u.chance
		}
		switch u.do {
		case actMark:
			w.out.masquerade = true
		case actReturn:
			weight, returned = weight-part, returned+part
		case actDrop, actReject:
			weight, w.out.refusal = weight-part, refusalOf(u.do)
		case actSend:
			weight -= part
			for _, b := range u.backends {
				w.out.shares[b] += part / float64(len(u.backends))
			}
		case actChain:
			weight -= part
			for _, next := range u.chains {
				weight += w.through(next, part/float64(len(u.chains)))
			}
		case actNothing:
		}
	}
	return weight + returned
}

func refusalOf(a action) string {
	if a == actDrop {
		return lb.Drop.String()
	}
	return lb.Reject.String()
}

// outcome tells what becomes of a new connection to a frontend.
func (r *Rules) outcome(fe *frontend, from caller) outcome {
	out := outcome{shares: map[netip.AddrPort]float64{}}
	if fe.chain != "" {
		w := walk{rules: r, from: from, out: &out}
		w.through(fe.chain, 1)
	}
	if len(out.shares) == 0 {
		out.masquerade = false
		if out.refusal == "" {
			out.refusal = fe.refusal
		}
	}
	return out
}
