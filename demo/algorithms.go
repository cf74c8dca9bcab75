// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	manyDraws = 600 // show the distribution of a random choice
	fewDials  = 12  // show that all of a client's connections go to one backend
	busyConns = 20  // make a backend busy
)

// algorithmOrder is the order of the table, and what is shown of each algorithm.
var algorithmOrder = []struct {
	name string
	show func(*exhibit, context.Context) error
}{
	{"random", (*exhibit).random},
	{"round-robin", (*exhibit).roundRobin},
	{"hash", (*exhibit).hash},
	{"ip-hash", (*exhibit).hash},
	{"power-of-two", (*exhibit).powerOfTwo},
	{"least-connection", (*exhibit).leastConnection},
	{"least-time", (*exhibit).leastTime},
}

// exhibit is a Service that shows its algorithm, with lines for the table.
type exhibit struct {
	*demo
	svc    *service
	to     frontend
	trials []*trial
	held   []held
}

// trial is one line of the table of algorithms.
type trial struct {
	*row
	client   string // who connected
	how      string // and how
	expected string
}

// held is a connection that is open, and who answered it.
type held struct {
	conn *lab.Conn
	pod  string
}

// algorithms shows what each algorithm does, in one table.
func (d *demo) algorithms(ctx context.Context) error {
	var all []*trial
	for _, a := range algorithmOrder {
		for _, s := range d.cluster.services {
			if !s.showcase || s.algorithm != a.name {
				continue
			}
			e, err := newExhibit(d, s)
			if err != nil {
				return err
			}
			if err := a.show(e, ctx); err != nil {
				return fmt.Errorf("service %s: %w", s.name, err)
			}
			if err := e.release(ctx, nil); err != nil {
				return err
			}
			all = append(all, e.trials...)
		}
	}
	if len(all) > 0 {
		d.screen.heading("Algorithms: what one annotation of a Service changes")
		d.judge(all)
	}
	return nil
}

// newExhibit finds the address at which s is shown.
func newExhibit(d *demo, s *service) (*exhibit, error) {
	for _, f := range s.frontends() {
		if f.typ == "ClusterIP" && f.proto == lab.TCP && len(s.expect(f, d.clients[0]).servers) > 0 {
			return &exhibit{demo: d, svc: s, to: f}, nil
		}
	}
	return nil, fmt.Errorf("service %s: the demo shows algorithms at a ClusterIP for TCP with a backend", s.name)
}

// weights are those of the backends that may answer.
func (e *exhibit) weights() map[string]int { return e.svc.expect(e.to, e.clients[0]).weights }

// ratio names the weights, in the order of the columns.
func (e *exhibit) ratio() string {
	var texts []string
	ws := e.weights()
	for _, pod := range slices.Sorted(maps.Keys(ws)) {
		texts = append(texts, fmt.Sprint(ws[pod]))
	}
	return "weights " + strings.Join(texts, ":")
}

// shown is the name of a Service, and its algorithm if the name does not say it.
func (s *service) shown() string {
	if strings.HasSuffix(s.name, "/"+s.algorithm) {
		return s.name
	}
	return s.name + ": " + s.algorithm
}

// add adds a line for n connections of c.
func (e *exhibit) add(c *client, n int, how, expected string) *trial {
	r := &row{svc: e.svc, to: e.to, from: c, want: e.svc.expect(e.to, c), n: n}
	r.reset()
	t := &trial{row: r, client: c.host.Name, how: how, expected: expected}
	e.trials = append(e.trials, t)
	return t
}

// addAll adds a line for n connections of all clients in turn.
func (e *exhibit) addAll(n int, how, expected string) *trial {
	t := e.add(e.clients[0], n, how, expected)
	t.client, t.want.sources = "all in turn", nil
	for _, c := range e.clients {
		t.want.sources = append(t.want.sources, e.svc.expect(e.to, c).sources...)
	}
	return t
}

// open opens a connection that stays, on behalf of a line.
func (e *exhibit) open(ctx context.Context, t *trial, c *client) (pod string, err error) {
	conn, res := c.host.Open(ctx, lab.Request{Proto: lab.TCP, To: e.to.addr, Timeout: patience})
	if conn == nil {
		return "", fmt.Errorf("%s opens %s: %s", c.host.Name, e.to.addr, res.Err)
	}
	t.note(res)
	e.held = append(e.held, held{conn, res.Backend})
	return res.Backend, nil
}

// release closes what is held by others than the pods in keep, and waits until
// the kernel has noticed.
func (e *exhibit) release(ctx context.Context, keep []string) error {
	var kept []held
	for _, h := range e.held {
		if slices.Contains(keep, h.pod) {
			kept = append(kept, h)
		} else if err := h.conn.Close(ctx, "fin"); err != nil {
			return err
		}
	}
	e.held = kept
	return e.settle(ctx)
}

// settle waits until the kernel counts as open what is open.
func (e *exhibit) settle(ctx context.Context) error {
	want := e.loads()
	deadline := time.Now().Add(changeTimeout)
	for {
		v, err := e.view(ctx, e.to)
		if err != nil {
			return err
		}
		got := tally{}
		for _, b := range v.Backends {
			if b.Live > 0 {
				got[e.podAt(b.Address)] = int(b.Live)
			}
		}
		if maps.Equal(got, want) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("lbproxy get services: %v are open, the clients have %v", got, want)
		}
		time.Sleep(pollInterval)
	}
}

// loads counts what is held.
func (e *exhibit) loads() tally {
	l := tally{}
	for _, h := range e.held {
		l[h.pod]++
	}
	return l
}

// podAt is the pod of an endpoint's address and port.
func (e *exhibit) podAt(addr string) string {
	i := slices.IndexFunc(e.svc.endpoints, func(p endpoint) bool { return p.addr.String() == addr })
	if i < 0 {
		return addr
	}
	return e.svc.endpoints[i].pod
}

// judge counts and prints lines of the table of algorithms.
func (d *demo) judge(ts []*trial) {
	pods := map[string]bool{}
	var rs []*row
	for _, t := range ts {
		maps.Copy(pods, columns(t.svc, []*row{t.row}))
		rs = append(rs, t.row)
		d.made.note(t.row)
		d.checks++
		if len(t.faults) > 0 {
			d.wrong++
		}
	}
	names := slices.Sorted(maps.Keys(pods))
	lines := [][]cell{{{"SERVICE", dim, false}, {"CLIENT", dim, false}, {"CONNECTIONS", dim, false}}}
	for _, pod := range names {
		lines[0] = append(lines[0], cell{pod, dim, true})
	}
	lines[0] = append(lines[0], cell{"EXPECTED", dim, false}, cell{"", dim, false})
	last := (*service)(nil)
	for _, t := range ts {
		lines = append(lines, t.cells(names, t.svc != last))
		last = t.svc
	}
	d.screen.grid(lines, rs)
}

// cells is the line in the table; pods that are not in the Service have no number.
func (t *trial) cells(pods []string, first bool) []cell {
	line := []cell{{}, {t.client, "", false}, {t.how, "", false}}
	if first {
		line[0] = cell{t.svc.shown(), "", false}
	}
	own := columns(t.svc, []*row{t.row})
	for _, pod := range pods {
		if own[pod] {
			line = append(line, t.answersOf(pod))
		} else {
			line = append(line, cell{})
		}
	}
	return append(line, cell{t.expected, "", false}, t.verdict())
}

// home is the backend to which all connections of a client go.
type home struct {
	exhibit *exhibit
	client  *client
	pod     string
}

// revisit checks that the clients of hashes are at home after a restart.
func (t *story) revisit(ctx context.Context) error {
	var names []string
	moved := 0
	for _, h := range t.homes {
		res := h.client.host.Dial(ctx, lab.Request{Proto: lab.TCP, To: h.exhibit.to.addr, Timeout: patience})
		t.checks++
		if res.Backend != h.pod {
			t.wrong++
			moved++
			t.screen.line("  %s", t.screen.paint(red, fmt.Sprintf("!! %s of %s got %s, before %s %s",
				h.client.host.Name, h.exhibit.svc.name, cmp.Or(res.Backend, string(res.Kind)), h.pod, res.Err), 0))
		}
		names = append(names, h.exhibit.svc.name)
	}
	if len(names) > 0 && moved == 0 {
		t.screen.line("  the clients of %s get the backends that they had  %s",
			strings.Join(slices.Compact(names), " and "), t.screen.paint(green, "ok", 0))
	}
	return nil
}

// byPackets dials from c's address, but as a process that lbproxy does not see:
// this one, on a visit. So its packets are translated.
func (r *row) byPackets() error {
	for range r.n {
		var res lab.Result
		err := r.from.host.Do(func() (err error) {
			res, err = visit(r.to.addr)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s dials %s: %w", r.from.host.Name, r.to.addr, err)
		}
		r.note(res)
	}
	r.checkSpread()
	return nil
}

// sourceOf is what of c's address decides.
func (e *exhibit) sourceOf(c *client) (netip.Prefix, error) { return e.svc.source(c.addrs(e.to)[0]) }
