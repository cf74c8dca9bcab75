package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/vishvananda/netns"
)

const (
	envHelper = "LBPROXY_LAB_HELPER"
	envHost   = "LBPROXY_LAB_HOST"
	envNetNS  = "LBPROXY_LAB_NETNS" // the only namespace to dial in, as NsHandle.UniqueId
)

// errRootNS is the safety catch: a packet sent there could leave the machine.
var errRootNS = errors.New("refused: this helper is not inside a lab's network namespace")

// Main turns this process into a lab helper if a lab started it as one, and
// then does not return. Otherwise it does nothing. Call it first in main and
// in TestMain of every program that makes a lab.
func Main() {
	if os.Getenv(envHelper) != "1" {
		return
	}
	h := &helper{
		host:    os.Getenv(envHost),
		out:     json.NewEncoder(os.Stdout),
		servers: map[string]io.Closer{},
		conns:   map[uint64]*held{},
	}
	if err := h.run(os.Stdin); err != nil {
		fmt.Fprintf(os.Stderr, "lab helper %s: %v\n", h.host, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// helper owns the sockets of one host.
type helper struct {
	host string

	outMu sync.Mutex
	out   *json.Encoder

	mu      sync.Mutex
	servers map[string]io.Closer // by serverKey
	conns   map[uint64]*held
	lastID  uint64
}

// run serves requests concurrently until in ends.
func (h *helper) run(in io.Reader) error {
	dec := json.NewDecoder(in)
	for {
		var c call
		if err := dec.Decode(&c); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		go func() {
			r := h.handle(c)
			r.ID = c.ID
			h.outMu.Lock()
			defer h.outMu.Unlock()
			if err := h.out.Encode(r); err != nil {
				os.Exit(1) // the lab is gone
			}
		}()
	}
}

func (h *helper) handle(c call) reply {
	r, err := h.dispatch(c)
	if err != nil {
		r.Err = err.Error()
	}
	return r
}

func (h *helper) dispatch(c call) (reply, error) {
	switch c.Verb {
	case verbServe:
		return reply{}, h.serve(c.Req.Proto, c.Addr)
	case verbStop:
		return reply{}, h.stop(c.Req.Proto, c.Addr)
	}
	if err := checkNetNS(); err != nil {
		return reply{}, err
	}
	switch c.Verb {
	case verbDial:
		return h.dialMany(c)
	case verbPaced:
		return h.dialPaced(c), nil
	case verbOpen:
		return h.open(c)
	case verbOpenUDP:
		return h.openUDP(c)
	case verbPing, verbBulk, verbExchange, verbClose:
		return h.onConn(c)
	}
	return reply{}, fmt.Errorf("unknown verb %q", c.Verb)
}

// checkNetNS fails unless this process is in the very namespace that the lab
// made for it. Comparing with pid 1 alone would not do: sandboxes hide its
// namespace even from root. Where it can be read, it must be another one.
func checkNetNS() error {
	own, err := netns.Get()
	if err != nil {
		return fmt.Errorf("own network namespace: %w", err)
	}
	defer own.Close()
	if want := os.Getenv(envNetNS); want == "" || own.UniqueId() != want {
		return errRootNS
	}
	root, err := netns.GetFromPid(1)
	if err != nil {
		return nil
	}
	defer root.Close()
	if own.Equal(root) {
		return errRootNS
	}
	return nil
}

// dialMany dials one after the other and gives up when the budget is spent;
// the last dial may have had less than its own timeout.
func (h *helper) dialMany(c call) (reply, error) {
	start := time.Now()
	results := make([]Result, 0, c.N)
	for range c.N {
		req := c.Req
		req.Timeout = budget(req.Timeout, 0)
		if c.Budget > 0 {
			// The clock, not a timer: a late timer would let through dials
			// with no time left, and they would look like timeouts.
			left := c.Budget - time.Since(start)
			if left <= 0 {
				err := fmt.Errorf("after %d of %d dials: %w", len(results), c.N, os.ErrDeadlineExceeded)
				return reply{Results: results}, err
			}
			req.Timeout = min(req.Timeout, left)
		}
		results = append(results, dial(req))
	}
	return reply{Results: results}, nil
}

// dialPaced begins each exchange when it is due, on a goroutine of its own: those that
// wait for an answer do not hold up others.
func (h *helper) dialPaced(c call) reply {
	c.Req.Timeout = budget(c.Req.Timeout, 0)
	paced := make([]Paced, c.N)
	var wg sync.WaitGroup
	for i := range paced {
		p := &paced[i]
		p.Due = c.Start.Add(time.Duration(i) * c.Every)
		time.Sleep(time.Until(p.Due))
		wg.Go(func() {
			p.Begun = time.Now()
			p.Result = dial(c.Req)
		})
	}
	wg.Wait()
	return reply{Paced: paced}
}

func (h *helper) open(c call) (reply, error) {
	c.Req.Timeout = budget(c.Req.Timeout, c.Budget)
	s, res := open(c.Req)
	if s == nil {
		return reply{Results: []Result{res}}, nil
	}
	return reply{Conn: h.hold(s, c.Req), Results: []Result{res}}, nil
}

func (h *helper) openUDP(c call) (reply, error) {
	c.Req.Proto = UDP
	s, err := newSock(c.Req)
	if err != nil {
		return reply{}, err
	}
	return reply{Conn: h.hold(s, c.Req)}, nil
}

func (h *helper) hold(s *sock, req Request) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lastID++
	h.conns[h.lastID] = &held{sock: s, proto: req.Proto}
	return h.lastID
}

// onConn runs a verb on a held socket; verbClose forgets it.
func (h *helper) onConn(c call) (reply, error) {
	h.mu.Lock()
	s := h.conns[c.Conn]
	if c.Verb == verbClose {
		delete(h.conns, c.Conn)
	}
	h.mu.Unlock()
	if s == nil {
		return reply{}, errors.New("connection " + strconv.FormatUint(c.Conn, 10) + " is closed")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch c.Verb {
	case verbPing:
		return s.result(s.ping(budget(defaultTimeout, c.Budget)))
	case verbBulk:
		return s.result(s.bulk(c.N, budget(bulkTimeout, c.Budget)))
	case verbExchange:
		c.Req.Timeout = budget(c.Req.Timeout, c.Budget)
		return reply{Results: []Result{exchange(s.sock, c.Req)}}, nil
	}
	if c.How == "rst" {
		return reply{}, s.sock.abort()
	}
	s.sock.close()
	return reply{}, nil
}

// budget is the smaller of a timeout, which has a default, and an optional limit.
func budget(timeout, limit time.Duration) time.Duration {
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	if limit > 0 && limit < timeout {
		return limit
	}
	return timeout
}
