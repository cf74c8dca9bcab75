// SPDX-License-Identifier: Apache-2.0

package flowtest

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/lbproxy/lbproxy/internal/dataplane/dptest"
	"github.com/lbproxy/lbproxy/internal/lb"
)

const (
	dialers   = 8  // at a time
	fewest    = 4  // dials of a row, to meet backends that should not answer
	mostDials = 96 // of a row, until all backends have answered
)

// flowCase is one row for one protocol and family.
type flowCase struct {
	rule  *Rule
	row   *Row
	proto lb.Proto
	fam   lb.Family
	to    []netip.AddrPort
	from  dptest.Origin
	bind  netip.Addr
	want  dptest.Verdict
	whom  []netip.AddrPort // who should answer
	one   bool             // always the same of whom
	lacks dptest.Feature   // that the harness does not have

	// What happened.
	answers map[netip.AddrPort]int
	seen    map[netip.Addr]bool
	wrong   []string
}

// runs tells whether On, words of tcp, udp, v4, v6, names proto and fam; words of
// neither kind mean all of it.
func runs(on string, proto lb.Proto, fam lb.Family) bool {
	kinds := map[bool][]string{}
	for _, w := range strings.Fields(on) {
		kinds[w[0] == 'v'] = append(kinds[w[0] == 'v'], w)
	}
	is := func(list []string, word string) bool { return len(list) == 0 || slices.Contains(list, word) }
	return is(kinds[false], strings.ToLower(proto.String())) && is(kinds[true], "v"+strconv.Itoa(int(fam)))
}

// cases returns the cases of all rows.
func (w *world) cases(t *testing.T, h Harness) []*flowCase {
	t.Helper()
	var out []*flowCase
	for _, r := range w.rules {
		for i := range r.Rows {
			for _, proto := range []lb.Proto{lb.TCP, lb.UDP} {
				for _, fam := range families {
					if runs(r.On, proto, fam) && runs(r.Rows[i].On, proto, fam) {
						row := r.Rows[i]
						if !h.Supports(dptest.FeatureSocketPath) {
							row = onPackets(r.Name, row)
						}
						out = append(out, w.flowCase(t, h, r, &row, proto, fam))
					}
				}
			}
		}
	}
	return out
}

func (w *world) flowCase(t *testing.T, h Harness, r *Rule, row *Row, proto lb.Proto, fam lb.Family) *flowCase {
	t.Helper()
	c := &flowCase{rule: r, row: row, proto: proto, fam: fam, answers: map[netip.AddrPort]int{}, seen: map[netip.Addr]bool{}}
	origin, bound, _ := strings.Cut(row.From, "@")
	c.from = origins[origin]
	switch bound {
	case "":
	case "second":
		c.bind = ofFamily(w.net.Second[c.from], fam)[0]
	case "looped":
		c.bind = ofFamily(w.net.Looped, fam)[0]
	default:
		t.Fatalf("rule %s, row %s: unknown source %q", r.Name, row.Name, row.From)
	}
	for _, target := range strings.Fields(row.To) {
		c.to = append(c.to, w.target(t, r, target, fam))
	}
	gets, one := strings.CutPrefix(row.Gets, "one of ")
	switch v := dptest.Verdict(gets); v {
	case dptest.Refused, dptest.Dropped, dptest.Untouched:
		c.want = v
	default:
		c.want, c.one = dptest.OK, one
		for _, name := range strings.Fields(gets) {
			c.whom = append(c.whom, w.net.backend(name, fam))
		}
	}
	c.lacks = lacks(h, c)
	return c
}

// lacks returns the first feature that c needs and h has not, or "".
func lacks(h Harness, c *flowCase) dptest.Feature {
	needs := []dptest.Feature{dptest.Feature(c.proto.String()), dptest.Feature(c.fam.String()), dptest.Feature(c.from)}
	for _, to := range c.to {
		if !to.Addr().IsLoopback() || c.want != dptest.OK {
			continue
		}
		if c.fam == lb.IPv4 {
			needs = append(needs, dptest.FeatureLocalhost4)
		} else {
			needs = append(needs, dptest.FeatureLocalhost6)
		}
	}
	for _, f := range needs {
		if !h.Supports(f) {
			return f
		}
	}
	return ""
}

// target returns the address of "TARGET", "SERVICE.TARGET" or either with ":PORT". The
// Service is the rule's first unless it is named.
func (w *world) target(t *testing.T, r *Rule, text string, fam lb.Family) netip.AddrPort {
	t.Helper()
	name, what, named := strings.Cut(text, ".")
	if !named {
		name, what = r.Services[0].Name, text
	}
	what, portText, _ := strings.Cut(what, ":")
	b := w.built[r.Name][name]
	if b == nil {
		t.Fatalf("rule %s: no Service %q", r.Name, name)
	}
	port := 80
	if portText != "" {
		var err error
		if port, err = strconv.Atoi(portText); err != nil {
			t.Fatalf("rule %s: target %s: %v", r.Name, text, err)
		}
	}
	if slices.Contains([]string{"node", "node2", "localhost"}, what) {
		port += int(b.port) - 80
	}
	addrs := ofFamily(b.targets[what], fam)
	if len(addrs) != 1 {
		t.Fatalf("rule %s: Service %s has no target %q", r.Name, name, what)
	}
	return netip.AddrPortFrom(addrs[0], uint16(port))
}

// dialAll dials all cases, several at a time.
func dialAll(ctx context.Context, h Harness, cases []*flowCase) {
	work := make(chan *flowCase)
	var wg sync.WaitGroup
	for range dialers {
		wg.Go(func() {
			for c := range work {
				c.dial(ctx, h)
			}
		})
	}
	for _, c := range cases {
		if c.lacks == "" {
			work <- c
		}
	}
	close(work)
	wg.Wait()
}

// dial makes the attempts of a case: one where nobody should answer, and otherwise so
// many that all have answered.
func (c *flowCase) dial(ctx context.Context, h Harness) {
	if c.want != dptest.OK {
		for _, to := range c.to {
			c.attempt(ctx, h, to, 1)
		}
		return
	}
	n := max(fewest, 2*len(c.whom))
	for made := 0; made < mostDials && len(c.wrong) == 0; made += n {
		for _, to := range c.to {
			c.attempt(ctx, h, to, n)
		}
		if c.one || !slices.ContainsFunc(c.whom, func(be netip.AddrPort) bool { return c.answers[be] == 0 }) {
			return
		}
	}
}

func (c *flowCase) attempt(ctx context.Context, h Harness, to netip.AddrPort, n int) {
	f := dptest.Flow{
		From: c.from, To: to, Proto: c.proto, N: n, Source: c.bind,
		Silence: c.want == dptest.Dropped || c.want == dptest.Untouched,
	}
	got, err := h.Dial(ctx, f)
	if err != nil {
		c.wrong = append(c.wrong, fmt.Sprintf("%s: %v", f, err))
		return
	}
	for be, k := range got.Backends {
		c.answers[be] += k
	}
	for _, a := range got.Seen {
		c.seen[a] = true
	}
	switch {
	case !fits(h, got.Verdict, c.want):
		c.wrong = append(c.wrong, fmt.Sprintf("%s: %s by %v, want %s", f, got.Verdict, got.Backends, c.want))
	case c.want == dptest.OK && h.Supports(dptest.FeaturePeer) && got.Peer != to:
		c.wrong = append(c.wrong, fmt.Sprintf("%s: the client's peer is %s", f, got.Peer))
	}
}

// fits tells whether got is what was wanted, as far as a harness can tell.
func fits(h Harness, got, want dptest.Verdict) bool {
	switch {
	case got == want:
		return true
	case want == dptest.Untouched: // on a real network nobody has that address, or nobody listens
		return got == dptest.Dropped || got == dptest.Refused
	case want == dptest.Dropped:
		return got == dptest.Refused && !h.Supports(dptest.FeatureDrop)
	}
	return false
}

// check fails unless what happened is what should.
func (c *flowCase) check(t *testing.T, h Harness, n *Network) {
	t.Helper()
	for _, w := range c.wrong {
		t.Error(w)
	}
	if c.want != dptest.OK || t.Failed() {
		return
	}
	for be := range c.answers {
		if !slices.Contains(c.whom, be) {
			t.Errorf("%s answered, want only %v", be, c.whom)
		}
	}
	if c.one && len(c.answers) != 1 {
		t.Errorf("%v answered, want always the same of %v", c.answers, c.whom)
	}
	for _, be := range c.whom {
		if !c.one && c.answers[be] == 0 {
			t.Errorf("%s never answered: %v", be, c.answers)
		}
	}
	c.checkSeen(t, h, n)
}

func (c *flowCase) checkSeen(t *testing.T, h Harness, n *Network) {
	t.Helper()
	if c.row.Sees == nobody || !h.Supports(dptest.FeatureSeen) {
		return
	}
	allowed := n.Sources[c.from]
	switch {
	case c.row.Sees == node:
		allowed = n.Node
	case c.bind.IsValid():
		allowed = []netip.Addr{c.bind}
	}
	if len(c.seen) == 0 {
		t.Error("the harness tells no source")
	}
	for _, a := range slices.SortedFunc(maps.Keys(c.seen), netip.Addr.Compare) {
		if !slices.Contains(allowed, a) {
			t.Errorf("the backend saw %s, want %s address, of %v", a, c.row.Sees, allowed)
		}
	}
}
