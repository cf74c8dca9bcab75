// SPDX-License-Identifier: Apache-2.0

package live

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/node"
	"github.com/lbproxy/lbproxy/bench/internal/observe"
	"github.com/lbproxy/lbproxy/bench/internal/worker"
	"github.com/lbproxy/lbproxy/bench/result"
	"github.com/lbproxy/lbproxy/bench/scenario"
)

const (
	lead  = 200 * time.Millisecond // from an order until its beginning
	bunch = 1000                   // connections between two times that the server takes them
)

// meter reads what a block costs.
type meter struct{ lab, softirq, proxy float64 }

func (s *site) meter() (m meter, err error) {
	if m.lab, err = observe.LabCPU(s.Lab); err != nil {
		return m, err
	}
	if m.softirq, err = observe.SoftIRQ(); err != nil || s.Cmd == nil {
		return m, err
	}
	user, system, err := observe.ProcessCPU(s.PID())
	m.proxy = user + system
	return m, err
}

// block measures one block of an algorithm. Where the traffic is as fast as it can, client
// and server have one processor: all work is then on the path that is measured.
func (s *site) block(ctx context.Context, algorithm string, cpu int) (*result.Block, error) {
	before, err := s.meter()
	if err != nil {
		return nil, err
	}
	measure := s.fast
	if s.sc.Live.Paced() {
		measure = s.paced
	}
	out, c, err := measure(ctx, algorithm, cpu)
	if err != nil {
		return nil, s.explain(fmt.Errorf("%s %s: %w", s.name, algorithm, err))
	}
	after, err := s.meter()
	if err == nil && s.sc.Live.Paced() {
		err = s.restore(ctx) // on nobody's account
	}
	if err != nil {
		return nil, err
	}
	b := &result.Block{
		Seconds: out.Seconds, Requests: out.Requests, Failed: out.Failed, Connect: out.Connect, Latency: out.Latency,
		Windows: out.Windows, Bytes: out.Bytes, Moved: out.Moved, CPU: after.lab - before.lab,
		Extra: map[string]result.Value{"softirq of the machine": {Value: after.softirq - before.softirq, Unit: "s"}},
	}
	if s.Cmd != nil {
		b.Extra["processor time of the proxy"] = result.Value{Value: after.proxy - before.proxy, Unit: "s"}
	}
	if out.Wall > 0 {
		b.Extra["time on the clock"] = result.Value{Value: out.Wall, Unit: "s"}
	}
	if s.sc.Live.Paced() {
		b.Extra["requests began late, p99"] = result.Value{Value: out.Late, Unit: "s"}
	}
	if out.Returned != nil {
		b.Extra["clients elsewhere after the last change"] = result.Value{Value: *out.Returned, Unit: "of 1"}
	}
	if s.sc.Live.Traffic == scenario.Packets {
		b.Failed = map[string]int{"lost": int(max(b.Requests, c.Delivered) - c.Delivered)}
	}
	s.shares(b, c)
	b.Memory, err = s.memory()
	return b, err
}

// shares fills in what the servers counted.
func (s *site) shares(b *result.Block, c counts) {
	for _, g := range s.groups {
		for i := range g.Count {
			n := g.first + i
			var requests uint64
			if n < len(c.Backends) {
				requests = c.Backends[n]
			}
			b.Backends = append(b.Backends, result.Backend{
				Name: s.backend(0, n).Addr().String(), Group: g.Name, Weight: float64(*g.Weight), Requests: requests,
			})
		}
	}
}

// memory is what the proxy has, in bytes.
func (s *site) memory() (uint64, error) {
	if s.peer != nil {
		return s.peer.memory()
	}
	if s.Cmd == nil {
		return 0, nil
	}
	mb, err := observe.Memory(s.PID(), "status", "VmRSS")
	return uint64(mb * 1e6), err
}

// paced is a block whose requests come as arrivals do.
func (s *site) paced(ctx context.Context, algorithm string, _ int) (*outcome, counts, error) {
	var c counts
	start := time.Now().Add(lead)
	if err := s.server.Do(order{Verb: verbBegin, Start: start}, nil); err != nil {
		return nil, c, err
	}
	o := order{Verb: verbLoad, Scenario: s.sc, Start: start, Targets: s.targets(algorithm), Direct: s.Direct(), Rule: algorithm}
	if hashed(s.sc) {
		o.Sources = firstSource
	}
	during, cancel := context.WithCancel(ctx)
	changed := make(chan error, 1)
	go func() { changed <- s.changes(during, start) }()
	out := &outcome{}
	err := s.client.Do(o, out)
	cancel() // changes after the last request concern nobody
	if cerr := <-changed; !errors.Is(cerr, context.Canceled) {
		err = errors.Join(err, cerr)
	}
	err = errors.Join(err, s.server.Do(order{Verb: verbEnd}, &c))
	return out, c, err
}

// changes makes what happens known to the API, or to the peer, at its times.
func (s *site) changes(ctx context.Context, start time.Time) error {
	for _, c := range s.sc.InOrder() {
		if err := node.Sleep(ctx, time.Until(start.Add(time.Duration(c.At)))); err != nil {
			return err
		}
		if err := s.change(&c); err != nil {
			return fmt.Errorf("%s: %w", describe(&c), err)
		}
	}
	return nil
}

func (s *site) change(c *scenario.Change) error {
	for i := range s.groups {
		g := &s.groups[i]
		if g.Name != c.Backends {
			continue
		}
		switch c.Action {
		case scenario.ChangeAdd, scenario.ChangeRemove:
			g.present = c.Action == scenario.ChangeAdd
		case scenario.ChangeWeight:
			g.weight = c.Weight
		case scenario.ChangeBlackhole, scenario.ChangeRecover:
			return s.hole(g, c.Action == scenario.ChangeBlackhole)
		default:
			return nil // the server does it
		}
		return s.tell()
	}
	if c.Action == scenario.ChangeAlgorithm && s.onAPI() { // kube-proxy does not heed it
		return s.switchTo(func(int) string { return c.Algorithm })
	}
	return nil
}

// hole loses packets to a group, or ends that, if it was.
func (s *site) hole(g *groupState, on bool) error {
	if g.holed == on {
		return nil
	}
	g.holed = on
	for b := range g.Count {
		if err := s.Lab.Host(serverPod).Blackhole(s.backend(0, g.first+b).Addr(), on); err != nil {
			return err
		}
	}
	return nil
}

// tell gives the API, or the peer, the backends of this moment.
func (s *site) tell() error {
	if s.Direct() {
		return nil
	}
	if s.isPeer() {
		s.peer.pools = s.pools()
		return s.peer.reload()
	}
	for i := range s.algorithms {
		for _, sl := range s.slices(i) {
			if _, err := s.api.Put(sl); err != nil {
				return err
			}
		}
	}
	return nil
}

// switchTo gives each targeted Service an algorithm.
func (s *site) switchTo(algorithm func(service int) string) error {
	for i := range s.algorithms {
		if _, err := s.api.Put(s.service(i, algorithm(i))); err != nil {
			return err
		}
	}
	return nil
}

// restore makes everything as it was before the changes.
func (s *site) restore(ctx context.Context) error {
	if len(s.sc.Changes) == 0 {
		return nil
	}
	for i := range s.groups {
		if err := s.hole(&s.groups[i], false); err != nil {
			return err
		}
	}
	if err := s.retell(); err != nil {
		return err
	}
	return node.Sleep(ctx, recovery(s.sc))
}

// recovery is how long after a block with changes the next one of the same proxy may
// begin: until it knows that all is as it was.
func recovery(sc *scenario.Scenario) time.Duration { return min(2*time.Second, blockTime(sc)/2) }

// retell tells the proxy what holds in the beginning, where it was told something else.
func (s *site) retell() error {
	var backends, algorithms bool
	for _, c := range s.sc.Changes {
		switch c.Action {
		case scenario.ChangeAdd, scenario.ChangeRemove, scenario.ChangeWeight:
			backends = true
		case scenario.ChangeAlgorithm:
			algorithms = s.onAPI()
		}
	}
	s.restoreGroups()
	if backends {
		if err := s.tell(); err != nil {
			return err
		}
	}
	if algorithms {
		return s.switchTo(s.algorithm)
	}
	return nil
}

// fast is a block of traffic that is as fast as it can.
func (s *site) fast(ctx context.Context, algorithm string, cpu int) (*outcome, counts, error) {
	var c counts
	for _, w := range []*worker.Worker{s.client, s.server} {
		if err := w.Do(order{Verb: verbPin, CPU: cpu}, nil); err != nil {
			return nil, c, err
		}
	}
	before, err := observe.LabCPU(s.Lab)
	if err != nil {
		return nil, c, err
	}
	o := order{Verb: verbPath, Scenario: s.sc, N: bunch, Targets: s.targets(algorithm)}
	once := s.sc.Live.Traffic != scenario.Connect
	if !once {
		o.Verb = verbConnect
	}
	for begin, worked := time.Now(), 0.0; ; {
		if err := errors.Join(ctx.Err(), s.client.Do(o, &worked)); err != nil {
			return nil, c, err
		}
		if once {
			break
		}
		if err := s.server.Do(order{Verb: verbDrain}, nil); err != nil {
			return nil, c, err
		}
		if d := s.sc.Live.Seconds.Seconds(); worked >= d || time.Since(begin).Seconds() >= mostWait*d {
			break
		}
		o.Targets, o.Scenario = nil, nil // it knows them now
	}
	after, err := observe.LabCPU(s.Lab)
	out := &outcome{}
	err = errors.Join(err, s.client.Do(order{Verb: verbCollect}, out), s.server.Do(order{Verb: verbEnd}, &c))
	if out.Seconds == 0 { // two take turns, or more: what all of them used
		out.Seconds = after - before
	}
	return out, c, err
}

// describe says what a change is.
func describe(c *scenario.Change) string {
	switch c.Action {
	case scenario.ChangeRate:
		return fmt.Sprintf("%g times as many requests as in the beginning", c.Factor)
	case scenario.ChangeAlgorithm:
		return "the algorithm becomes " + c.Algorithm
	case scenario.ChangeSlow:
		return fmt.Sprintf("%s: %g times slower", c.Backends, c.Factor)
	case scenario.ChangeWeight:
		return fmt.Sprintf("%s: weight %d", c.Backends, c.Weight)
	}
	return c.Backends + ": " + map[string]string{
		scenario.ChangeAdd: "joins", scenario.ChangeRemove: "is removed from the Service", scenario.ChangeFreeze: "answers no more",
		scenario.ChangeBlackhole: "no packet reaches it", scenario.ChangeFail: "dies and refuses", scenario.ChangeRecover: "is well again",
	}[c.Action]
}
