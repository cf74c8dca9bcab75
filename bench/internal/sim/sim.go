// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/lbproxy/lbproxy/bench/internal/station"
	"github.com/lbproxy/lbproxy/bench/scenario"
	"github.com/lbproxy/lbproxy/internal/algo"
)

// run is one case of a scenario with one algorithm.
type run struct {
	sc      *scenario.Scenario
	offered float64 // requests per second in the beginning
	alg     *scenario.Algorithm
	engine  Engine
	policy  policy
	now     float64 // seconds

	servers []station.Server
	agenda  *agenda
	half    wire // messages that take half a round trip
	whole   wire // a round trip
	clients wire // timeouts

	pool   pool
	nodes  []node
	global node // what an oracle knows

	requests []request
	spare    []int32 // records that are free
	issued   int
	warm     int // requests that are not measured

	arrivals *scenario.Process
	work     func() float64
	client   func() int
	hashes   []uint32 // by client
	places   *rand.Rand
	picks    *rand.Rand
	in       algo.Input
	node     *node // that picks now

	timeline timeline
	measure  measure
	picked   func(node, backend int) // for tests; may be nil
}

// request is one connection with one request on it.
type request struct {
	arrived  float64
	work     float64
	turn     uint32 // how often this record was used before
	node     int32
	backend  int32
	measured bool
	left     bool // the client gave up
	failed   bool
	sampled  bool // its time was taken
}

// newRun prepares a case. The seed decides everything that is random.
func newRun(sc *scenario.Scenario, alg *scenario.Algorithm, offered float64, nodes int, engine Engine) (*run, error) {
	r := &run{
		sc: sc, alg: alg, engine: engine,
		nodes:  make([]node, nodes),
		warm:   int(sc.Warmup * float64(sc.Requests)),
		work:   sc.Service.Draw(scenario.Stream(sc.Seed, scenario.StreamWork)),
		client: sc.Clients.Draw(scenario.Stream(sc.Seed, scenario.StreamClients)),
		places: scenario.Stream(sc.Seed, scenario.StreamNodes),
		picks:  scenario.Stream(sc.Seed, scenario.StreamPicks),
	}
	servers, members := newServers(sc)
	r.servers = servers
	n := len(r.servers)
	r.pool.servers = r.servers
	r.agenda = newAgenda(n)
	r.measure = newMeasure(n)
	starts := scenario.Stream(sc.Seed, scenario.StreamStarts)
	for i := range r.nodes {
		r.nodes[i] = node{seq: starts.Uint32(), loads: make([]load, n)}
	}
	r.global.loads = make([]load, n)
	r.hashes = make([]uint32, sc.Clients.Count)
	for i := range r.hashes {
		r.hashes[i] = algo.HashSource(0, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	r.in.Load = r.load
	r.timeline = newTimeline(r, members)
	r.policy = r.newPolicy(alg)
	if err := r.timeline.rebuild(); err != nil {
		return nil, err
	}
	r.offered = sc.Rate(offered)
	r.arrivals = sc.Arrivals.Draw(r.offered, scenario.Stream(sc.Seed, scenario.StreamArrivals))
	return r, nil
}

// newServers returns all backends, and them as members by their numbers.
func newServers(sc *scenario.Scenario) ([]station.Server, []algo.Member) {
	var servers []station.Server
	var members []algo.Member
	for _, g := range sc.Backends {
		for range g.Count {
			servers = append(servers, station.Server{Speed: g.Speed, Cores: g.Cores, Shared: sc.Discipline == "ps"})
			members = append(members, algo.Member{ID: uint64(len(servers)), Weight: *g.Weight})
		}
	}
	return servers, members
}

// load is algo.Input.Load of the node that picks.
func (r *run) load(member int) algo.Load {
	l := &r.node.loads[r.pool.backends[member]]
	return algo.Load{Active: l.active, Latency: l.latency, Idle: uint32(r.now*1000) - max(l.changed, l.opened)}
}

// simulate runs the case until all requests have ended that will end.
func (r *run) simulate() error {
	arrival := r.arrivals.Gap()
	for {
		at, server := r.agenda.next()
		message := min(r.half.next(), r.whole.next(), r.clients.next())
		change, window := r.timeline.next(), r.timeline.window
		next := min(arrival, at, message)
		if next == never {
			return nil
		}
		if min(change, window) <= next { // goes first: it decides what is picked
			r.now = min(change, window)
			if err := r.timeline.step(change <= window); err != nil {
				return err
			}
			continue
		}
		r.now = next
		switch next {
		case arrival:
			if err := r.arrive(); err != nil {
				return err
			}
			arrival += r.arrivals.Gap()
			if r.issued == r.sc.Requests {
				arrival = never
				r.stop()
			}
		case at:
			r.complete(server)
		default:
			r.deliver()
		}
	}
}

// stop closes what is measured per request issued, at the last one.
func (r *run) stop() {
	r.measure.settle(&r.pool)
	r.measure.usage(r.servers, r.now, 1)
	r.timeline.end()
}

// arrive takes a new request at one of the nodes.
func (r *run) arrive() error {
	if r.issued == r.warm {
		r.measure.usage(r.servers, r.now, -1)
	}
	measured := r.issued >= r.warm
	r.issued++
	place := 0
	if len(r.nodes) > 1 {
		place = r.places.IntN(len(r.nodes))
	}
	work := r.work()
	member, err := r.choose(&r.nodes[place])
	if err != nil {
		return err
	}
	if member < 0 {
		r.measure.fail(measured)
		return nil
	}
	backend := r.pool.backends[member]
	if r.picked != nil {
		r.picked(place, int(backend))
	}
	r.measure.pick(backend, len(r.pool.backends), measured)
	id := r.record()
	q := &r.requests[id]
	q.arrived, q.work, q.node, q.backend, q.measured = r.now, work, int32(place), backend, measured
	r.nodes[place].open(&r.pool, backend, r.now)
	r.global.add(&r.pool, backend, 1)
	if t := r.sc.Timeout; t > 0 {
		r.send(&r.clients, t.Seconds(), id, giveUp)
	}
	if r.sc.Delay == 0 {
		r.reach(id)
		return nil
	}
	r.send(&r.half, r.sc.Delay.Seconds()/2, id, reachServer)
	if r.alg.Signal == "connect" {
		r.send(&r.whole, r.sc.Delay.Seconds(), id, seeConnect)
	}
	return nil
}

// choose picks a member at a node. It draws the same random numbers whatever the
// algorithm.
func (r *run) choose(n *node) (int, error) {
	a, b := r.picks.Uint64(), r.picks.Uint64()
	r.in.Rand = [5]uint32{uint32(a >> 32), uint32(a), uint32(b >> 32), uint32(b), r.picks.Uint32()}
	r.in.Seq = n.seq
	r.in.Hash = r.hashes[r.client()]
	n.seq++
	r.node = n
	member, err := r.policy.pick(n, &r.in)
	if err != nil {
		return 0, fmt.Errorf("pick %d of %s: %w", r.issued, r.alg.Label, err)
	}
	return member, nil
}

// record returns a free record.
func (r *run) record() int32 {
	if n := len(r.spare); n > 0 {
		id := r.spare[n-1]
		r.spare = r.spare[:n-1]
		return id
	}
	r.requests = append(r.requests, request{})
	return int32(len(r.requests) - 1)
}

func (r *run) send(w *wire, after float64, id int32, kind messageKind) {
	w.Push(message{at: r.now + after, req: id, turn: r.requests[id].turn, kind: kind})
}

// deliver handles the message whose time has come.
func (r *run) deliver() {
	w := &r.half
	if r.whole.next() == r.now {
		w = &r.whole
	} else if r.clients.next() == r.now {
		w = &r.clients
	}
	m := w.Pop()
	q := &r.requests[m.req]
	if q.turn != m.turn {
		return // it ended before
	}
	switch m.kind {
	case reachServer:
		r.reach(m.req)
	case seeConnect:
		r.sample(q, r.sc.Delay.Seconds())
	case seeFirst:
		r.sample(q, r.now-q.arrived)
	case seeEnd:
		r.ended(m.req)
	case giveUp:
		r.abandon(q)
	}
}

// reach brings a request to its backend.
func (r *run) reach(id int32) {
	q := &r.requests[id]
	s := &r.servers[q.backend]
	if s.Failed {
		q.failed = true
		r.done(id)
		return
	}
	if r.alg.Signal == "connect" && r.sc.Delay == 0 {
		r.sample(q, 0)
	}
	if s.Enter(r.now, id, q.work) {
		r.begun(id)
	}
	r.agenda.set(int(q.backend), s.Next())
}

// complete ends the service whose time has come.
func (r *run) complete(server int) {
	s := &r.servers[server]
	done, begun := s.Leave(r.now)
	if begun >= 0 {
		r.begun(begun)
	}
	r.agenda.set(server, s.Next())
	r.done(done)
}

// begun is when the service of a request begins, and with it the answer.
func (r *run) begun(id int32) {
	switch {
	case r.alg.Signal != "first-byte":
	case r.sc.Delay == 0:
		q := &r.requests[id]
		r.sample(q, r.now-q.arrived)
	default:
		r.send(&r.half, r.sc.Delay.Seconds()/2, id, seeFirst)
	}
}

// done is when a backend has done with a request.
func (r *run) done(id int32) {
	r.global.add(&r.pool, r.requests[id].backend, -1)
	if r.sc.Delay == 0 {
		r.ended(id)
		return
	}
	r.send(&r.half, r.sc.Delay.Seconds()/2, id, seeEnd)
}

// ended is when the node sees the end of a request.
func (r *run) ended(id int32) {
	q := &r.requests[id]
	if !q.left {
		r.nodes[q.node].add(&r.pool, q.backend, -1)
		if q.failed {
			r.sample(q, slowest)
			r.measure.fail(q.measured)
		} else {
			if r.alg.Signal == "last-byte" {
				r.sample(q, r.now-q.arrived)
			}
			r.measure.end(r.now-q.arrived, q.measured)
		}
	}
	*q = request{turn: q.turn + 1}
	r.spare = append(r.spare, id)
}

// abandon is when a client gives up. The backend does not know and goes on.
func (r *run) abandon(q *request) {
	n := &r.nodes[q.node]
	n.add(&r.pool, q.backend, -1)
	if !q.sampled { // it would have taken at least so long
		r.sample(q, max(r.now-q.arrived, float64(n.loads[q.backend].latency)/1e6))
	}
	q.left = true
	r.measure.timeout(q.measured)
}

// slowest is the sample of what failed, in seconds: more than the kernel takes.
const slowest = 10

func (r *run) sample(q *request, seconds float64) {
	if q.left {
		return // the socket is gone
	}
	q.sampled = true
	n := &r.nodes[q.node]
	if t, ok := r.policy.(*trial); ok {
		t.sample(n, q.backend, micros(seconds), r.now)
	} else {
		n.sample(q.backend, micros(seconds), r.now)
	}
}
