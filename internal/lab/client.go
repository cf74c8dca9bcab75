package lab

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// call runs one verb in the host's helper.
func (h *Host) call(ctx context.Context, c call) (reply, error) {
	c.Addr, c.Req.From = anyIfNone(c.Addr), anyIfNone(c.Req.From)
	h.mu.Lock()
	r := h.remote
	h.mu.Unlock()
	if r == nil {
		return reply{}, fmt.Errorf("host %s: %s: %w", h.Name, c.Verb, errHelperGone)
	}
	rep, err := r.call(ctx, c)
	if err != nil {
		return rep, fmt.Errorf("host %s: %s: %w", h.Name, c.Verb, err)
	}
	return rep, nil
}

// result is call for the verbs with one Result; failing to carry out the
// request is Failed.
func (h *Host) result(ctx context.Context, c call) (reply, Result) {
	rep, err := h.call(ctx, c)
	if err == nil && len(rep.Results) != 1 {
		err = fmt.Errorf("host %s: %s: %d results", h.Name, c.Verb, len(rep.Results))
	}
	if err != nil {
		return rep, Result{Kind: Failed, Err: err.Error()}
	}
	return rep, rep.Results[0]
}

// Serve starts an echo server on addr, or on all addresses with [AnyAddr].
// To each TCP connection it writes the line "host client-address local-address"
// and then echoes everything, of Quiet without the line; to each UDP datagram it answers that line
// followed by the datagram.
func (h *Host) Serve(ctx context.Context, proto string, addr netip.AddrPort) error {
	_, err := h.call(ctx, call{Verb: verbServe, Req: Request{Proto: proto}, Addr: addr})
	return err
}

// StopServe stops the server that Serve started with the same arguments.
// Accepted TCP connections live on.
func (h *Host) StopServe(ctx context.Context, proto string, addr netip.AddrPort) error {
	_, err := h.call(ctx, call{Verb: verbStop, Req: Request{Proto: proto}, Addr: addr})
	return err
}

// Dial makes one exchange on a new socket and closes it.
func (h *Host) Dial(ctx context.Context, req Request) Result {
	_, res := h.result(ctx, call{Verb: verbDial, Req: req, N: 1})
	return res
}

// DialMany makes n exchanges one after the other, each on a new socket. If
// ctx's deadline passes, it returns the results so far with an error; the last
// of them may be a timeout that ctx caused.
func (h *Host) DialMany(ctx context.Context, req Request, n int) ([]Result, error) {
	rep, err := h.call(ctx, call{Verb: verbDial, Req: req, N: n})
	return rep.Results, err
}

// DialPaced makes n exchanges, each on a new socket: one at start, and another one after
// every period, whatever became of those before. It returns when the last one has ended.
func (h *Host) DialPaced(ctx context.Context, req Request, start time.Time, every time.Duration, n int) ([]Paced, error) {
	rep, err := h.call(ctx, call{Verb: verbPaced, Req: req, Start: start, Every: every, N: n})
	return rep.Paced, err
}

// Conn is a connected socket that a host's helper holds open.
type Conn struct {
	host *Host
	id   uint64
}

// Open connects and keeps the socket; Conn is nil unless the Result is OK.
// A UDP socket is a connected one, after a first exchange.
func (h *Host) Open(ctx context.Context, req Request) (*Conn, Result) {
	req.Connected = true
	rep, res := h.result(ctx, call{Verb: verbOpen, Req: req})
	if res.Kind != OK {
		return nil, res
	}
	return &Conn{host: h, id: rep.Conn}, res
}

// Ping sends a token and expects it back. A failure on the socket is an [*OpError].
func (c *Conn) Ping(ctx context.Context) error { return c.op(ctx, call{Verb: verbPing}) }

// Bulk sends n bytes and expects the same n bytes back; TCP only.
// A failure on the socket is an [*OpError].
func (c *Conn) Bulk(ctx context.Context, n int) error { return c.op(ctx, call{Verb: verbBulk, N: n}) }

// Exchange sends one datagram to the peer of a UDP socket and waits for its answer; an
// empty payload is replaced by a token. timeout 0 means 2 s.
func (c *Conn) Exchange(ctx context.Context, payload []byte, timeout time.Duration) Result {
	_, res := c.host.result(ctx, call{Verb: verbExchange, Conn: c.id, Req: Request{Payload: payload, Timeout: timeout}})
	return res
}

func (c *Conn) op(ctx context.Context, cl call) error {
	cl.Conn = c.id
	rep, err := c.host.call(ctx, cl)
	if err != nil {
		return err
	}
	if len(rep.Results) == 1 && rep.Results[0].Kind != OK {
		return &OpError{Op: string(cl.Verb), Kind: rep.Results[0].Kind, Msg: rep.Results[0].Err}
	}
	return nil
}

// Close closes the socket with a FIN if how is "fin", with an RST if it is "rst".
func (c *Conn) Close(ctx context.Context, how string) error {
	_, err := c.host.call(ctx, call{Verb: verbClose, Conn: c.id, How: how})
	return err
}

// UDPSocket is an unconnected UDP socket that a host's helper holds open.
type UDPSocket struct {
	host *Host
	id   uint64
	req  Request
}

// OpenUDP opens an unconnected socket. Of req it uses From, MappedV6, the
// family of To, and Timeout for each exchange.
func (h *Host) OpenUDP(ctx context.Context, req Request) (*UDPSocket, error) {
	req.Proto = UDP
	rep, err := h.call(ctx, call{Verb: verbOpenUDP, Req: req})
	if err != nil {
		return nil, err
	}
	return &UDPSocket{host: h, id: rep.Conn, req: req}, nil
}

// Exchange sends one datagram to to and waits for its answer; an empty payload
// is replaced by a token.
func (u *UDPSocket) Exchange(ctx context.Context, to netip.AddrPort, payload []byte) Result {
	req := u.req
	req.To, req.Payload = to, payload
	_, res := u.host.result(ctx, call{Verb: verbExchange, Conn: u.id, Req: req})
	return res
}

// Close closes the socket.
func (u *UDPSocket) Close(ctx context.Context) error {
	_, err := u.host.call(ctx, call{Verb: verbClose, Conn: u.id})
	return err
}
