// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	patience = 10 * time.Second       // how long a client waits for an answer
	silence  = 500 * time.Millisecond // and where none is expected
	resent   = time.Second            // after which TCP sends a lost SYN again
)

// row is one line of the table: a client dials a frontend some times.
type row struct {
	svc  *service
	to   frontend
	from *client
	want want
	n    int

	answers map[string]int         // by pod
	other   map[lab.Kind]int       // outcomes without an answer
	peers   map[netip.AddrPort]int // what the client saw as the other end
	sources map[netip.Addr]int     // what the servers saw as their client
	slow    int                    // answers that took as long as a packet that is sent again
	faults  []string               // nil: as the manifests demand
}

// rows lists who dials what of a Service. Of a headless one the first pod of
// each port will do.
func rows(s *service, clients []*client, n int) []*row {
	var out []*row
	for _, f := range s.frontends() {
		if s.headless() && slices.ContainsFunc(out, func(r *row) bool { return r.to.port == f.port }) {
			continue
		}
		for _, c := range clients {
			if f.local && c.host.Name != lab.Node {
				continue
			}
			out = append(out, &row{svc: s, to: f, from: c, want: s.expect(f, c), n: n})
		}
	}
	return out
}

// measure dials and judges. It does not repeat what nobody answers.
func (r *row) measure(ctx context.Context) error {
	r.reset()
	req := lab.Request{Proto: r.to.proto, To: r.to.addr, Timeout: patience}
	if r.want.kind != lab.OK {
		req.Timeout = silence
		req.Connected = true // else a UDP socket is not told that it was refused
	}
	for _, n := range []int{1, r.n - 1} {
		if n == 0 || r.other[lab.Timeout] > 0 {
			break
		}
		results, err := r.from.host.DialMany(ctx, req, n)
		if err != nil {
			return fmt.Errorf("%s dials %s: %w", r.from.host.Name, r.to.addr, err)
		}
		for _, res := range results {
			r.note(res)
		}
	}
	r.checkSpread()
	return nil
}

// reset forgets what was measured.
func (r *row) reset() {
	r.answers, r.other = map[string]int{}, map[lab.Kind]int{}
	r.peers, r.sources = map[netip.AddrPort]int{}, map[netip.Addr]int{}
	r.slow, r.faults = 0, nil
}

// note counts one result and what is wrong with it.
func (r *row) note(res lab.Result) {
	if res.Kind != lab.OK {
		r.other[res.Kind]++
		if res.Kind != r.want.kind {
			r.fault("%s instead of %s: %s", res.Kind, r.want.kind, res.Err)
		}
		return
	}
	r.answers[res.Backend]++
	r.peers[res.Peer]++
	r.sources[res.Seen.Addr()]++
	if res.Took >= resent {
		if r.slow++; r.slow > 1 { // one may be the machine's
			r.fault("packets were lost: %d answers took longer than %s", r.slow, resent)
		}
	}
	server, allowed := r.want.servers[res.Backend]
	switch {
	case r.want.kind != lab.OK:
		r.fault("%s answered, want %s", res.Backend, r.want.kind)
	case !allowed:
		r.fault("%s answered and is no backend here", res.Backend)
	case res.ServerLocal != server:
		r.fault("%s answered at %s, want %s", res.Backend, res.ServerLocal, server)
	case res.Peer != r.to.addr:
		r.fault("the client saw %s as its peer", res.Peer)
	case !slices.Contains(r.want.sources, res.Seen.Addr()):
		r.fault("%s saw %s as its client, want %s", res.Backend, res.Seen.Addr(), r.want.sources[0])
	}
}

// fault notes what is wrong, once.
func (r *row) fault(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(r.faults, text) {
		r.faults = append(r.faults, text)
	}
}

// checkSpread checks who answered how often, where the algorithm leaves no choice.
func (r *row) checkSpread() {
	switch {
	case r.want.kind != lab.OK:
	case r.want.even:
		r.checkCounts(turns(r.want.weights, r.n))
	case r.want.sticky && len(r.answers) > 1:
		r.fault("one client got %d backends", len(r.answers))
	}
}

// checkCounts checks how often each server answered.
func (r *row) checkCounts(ss spans) {
	for _, pod := range slices.Sorted(maps.Keys(ss)) {
		if !ss[pod].holds(r.answers[pod]) {
			r.fault("%s: %d answers by %s, want %s", r.svc.algorithm, r.answers[pod], pod, ss[pod])
		}
	}
}

// checkCoverage finds backends that never answered although they should: in all
// rows together that may use the same ones, which makes chance no excuse.
func checkCoverage(rs []*row) []string {
	var faults []string
	type group struct{ port, servers string }
	answers, weights := map[group]map[string]int{}, map[group]map[string]int{}
	for _, r := range rs {
		if !r.want.chance || r.want.kind != lab.OK {
			continue
		}
		g := group{r.to.port, fmt.Sprint(slices.Sorted(maps.Keys(r.want.servers)))}
		if answers[g] == nil {
			answers[g], weights[g] = map[string]int{}, r.want.weights
		}
		for pod, n := range r.answers {
			answers[g][pod] += n
		}
	}
	for g, by := range answers {
		total := int(sum(by))
		for pod, s := range chances(weights[g], total) {
			if by[pod] == 0 && s.least > 0 {
				faults = append(faults, fmt.Sprintf("%s: %s got none of %d connections", g.port, pod, total))
			}
		}
	}
	slices.Sort(faults)
	return faults
}

// most returns the key with the highest count.
func most[K cmp.Ordered](counts map[K]int) (best K) {
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		if counts[k] > counts[best] {
			best = k
		}
	}
	return best
}
