package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxDatagram holds any UDP payload.
const maxDatagram = 1 << 16

// errPayload reports bytes that came back changed.
var errPayload = errors.New("the payload came back changed")

// dial makes one exchange on a socket of its own.
func dial(req Request) Result {
	s, res := open(req)
	if s == nil {
		return res
	}
	defer s.close()
	if req.Proto == UDP || len(req.Payload) == 0 {
		return res
	}
	start := time.Now()
	deadline := start.Add(req.Timeout - res.Took)
	err := echo(s, req.Payload, deadline)
	res.Took += time.Since(start)
	return res.with(err)
}

// open connects and reads the banner; for UDP it makes a whole exchange.
// The socket is nil unless the Result is OK.
func open(req Request) (*sock, Result) {
	start := time.Now()
	deadline := start.Add(req.Timeout)
	if !req.To.IsValid() {
		return nil, Result{}.with(errors.New("Request.To is not set"))
	}
	s, err := newSock(req)
	if err != nil {
		return nil, Result{}.with(err)
	}
	var res Result
	if req.Proto == UDP {
		if req.Connected {
			err = s.connect(req.To, deadline)
			req.To = netip.AddrPort{}
		}
		if err == nil {
			res = exchange(s, req)
		}
	} else if err = s.connect(req.To, deadline); err == nil {
		if req.Proto != Quiet {
			err = readBanner(s, &res, deadline)
		}
		res.Local, res.Peer = s.local(), s.peer()
	}
	res.Took = time.Since(start)
	if err != nil {
		res = res.with(err)
	} else if req.Proto != UDP {
		res.Kind = OK
	}
	if res.Kind != OK {
		s.close()
		return nil, res
	}
	return s, res
}

// with sets the outcome.
func (r Result) with(err error) Result {
	r.Kind = kindOf(err)
	if err != nil {
		r.Err = err.Error()
	}
	return r
}

func readBanner(s *sock, res *Result, deadline time.Time) error {
	var line []byte
	buf := make([]byte, 256)
	for {
		n, err := s.read(buf, deadline)
		if err != nil {
			return fmt.Errorf("banner: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("banner: %w", io.ErrUnexpectedEOF)
		}
		line = append(line, buf[:n]...)
		if i := bytes.IndexByte(line, '\n'); i == len(line)-1 {
			return parseBanner(string(line[:i]), res)
		} else if i >= 0 {
			return fmt.Errorf("banner: %d bytes too many", len(line)-i-1)
		}
	}
}

// exchange sends a datagram to req.To, or to the connected peer if that is
// zero, and waits for the answer with the same payload. Answers to earlier
// datagrams are skipped.
func exchange(s *sock, req Request) Result {
	start := time.Now()
	deadline := start.Add(req.Timeout)
	payload := req.Payload
	if len(payload) == 0 {
		payload = token()
	}
	var res Result
	err := s.sendTo(payload, req.To, deadline)
	if err == nil || errors.Is(err, unix.EPERM) { // the firewall of this host took it: ICMP tells whether that is a refusal
		err = receive(s, payload, &res, deadline)
	}
	res.Local = s.local()
	if !req.To.IsValid() {
		res.Peer = s.peer()
	}
	res.Took = time.Since(start)
	return res.with(err)
}

func receive(s *sock, payload []byte, res *Result, deadline time.Time) error {
	buf := make([]byte, maxDatagram)
	var other error
	for {
		n, from, err := s.recvFrom(buf, deadline)
		if err != nil {
			if other != nil && kindOf(err) == Timeout {
				return other
			}
			return err
		}
		line, got, found := bytes.Cut(buf[:n], []byte("\n"))
		if !found || !bytes.Equal(got, payload) {
			other = fmt.Errorf("datagram from %s: %w", from, errPayload)
			continue
		}
		res.Peer = from
		return parseBanner(string(line), res)
	}
}

func token() []byte { return fmt.Appendf(nil, "token-%016x", rand.Uint64()) }

// echo sends b and expects it back. Both directions run at once, so b may be
// larger than the socket buffers.
func echo(s *sock, b []byte, deadline time.Time) error {
	var wg sync.WaitGroup
	var werr error
	wg.Go(func() { werr = s.writeAll(b, deadline) })
	rerr := readEcho(s, b, deadline)
	wg.Wait()
	return errors.Join(werr, rerr)
}

func readEcho(s *sock, want []byte, deadline time.Time) error {
	buf := make([]byte, min(len(want), 1<<18))
	for off := 0; off < len(want); {
		n, err := s.read(buf[:min(len(buf), len(want)-off)], deadline)
		if err != nil {
			return fmt.Errorf("echo after %d of %d bytes: %w", off, len(want), err)
		}
		if n == 0 {
			return fmt.Errorf("echo after %d of %d bytes: %w", off, len(want), io.ErrUnexpectedEOF)
		}
		if !bytes.Equal(buf[:n], want[off:off+n]) {
			return fmt.Errorf("echo after %d of %d bytes: %w", off, len(want), errPayload)
		}
		off += n
	}
	return nil
}

// held is a socket that outlives the request that made it.
type held struct {
	mu    sync.Mutex // one operation at a time
	sock  *sock
	proto string
}

func (h *held) result(err error) (reply, error) {
	return reply{Results: []Result{Result{}.with(err)}}, nil
}

func (h *held) ping(timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	b := token()
	if h.proto != UDP {
		return echo(h.sock, b, deadline)
	}
	to := netip.AddrPort{}
	if err := h.sock.sendTo(b, to, deadline); err != nil {
		return err
	}
	return receive(h.sock, b, &Result{}, deadline)
}

// bulk echoes n bytes of a pattern in which no two segments are equal.
func (h *held) bulk(n int, timeout time.Duration) error {
	if h.proto == UDP {
		return errors.New("bulk needs a TCP connection")
	}
	b := make([]byte, n)
	var seed [32]byte
	rng := rand.NewChaCha8(seed)
	if _, err := rng.Read(b); err != nil {
		return fmt.Errorf("pattern: %w", err)
	}
	return echo(h.sock, b, time.Now().Add(timeout))
}
