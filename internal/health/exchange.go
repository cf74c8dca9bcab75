// SPDX-License-Identifier: Apache-2.0

package health

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// exchange is a GET, and the head of its answer, over a socket that does not block. It is
// what askHTTP does for probes over plain HTTP that ask nothing of the body.
type exchange struct {
	form      *form
	host      string // of the request
	connected bool

	first  url.URL  // of the first request: the place of the backend that is probed
	at     *url.URL // where the request goes
	asked  int      // requests so far
	out    []byte   // of the request: what is to be written
	in     []byte   // of the answer: what was read before
	looked int      // bytes of in among which the head does not end
	opened bool     // the status line is in, and is one
	heard  int      // bytes of answers that only said that another follows
}

// form is what all requests of a probe have in common.
type form struct {
	expect lb.Statuses
	first  url.URL // but for its Host, which is the address of a target
	tail   []byte  // of the request, after its Host
}

// maxForms is how many are remembered.
const maxForms = 1024

// forms remembers them, for one goroutine.
type forms struct {
	p     *prober
	known map[lb.Probe]*form
}

// begin makes x the exchange of t's probe.
func (f *forms) begin(x *exchange, t Target) error {
	known := f.known[t.Probe]
	if known == nil {
		var err error
		if known, err = f.p.newForm(t); err != nil {
			return err
		}
		if len(f.known) >= maxForms {
			clear(f.known)
		}
		f.known[t.Probe] = known
	}
	*x = exchange{form: known, host: hostHeader(t), first: known.first, out: x.out[:0], in: x.in[:0]}
	x.first.Host = t.Addr.String()
	x.at = &x.first
	x.ask()
	return nil
}

func (p *prober) newForm(t Target) (*form, error) {
	expect, err := lb.ParseExpect(t.Probe.Expect)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCannot, err)
	}
	first, err := p.request(t)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCannot, err)
	}
	var tail bytes.Buffer
	if err := first.Header.Write(&tail); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCannot, err)
	}
	tail.WriteString("Connection: close\r\n\r\n")
	place := *first.URL
	place.Host = ""
	return &form{expect: expect, first: place, tail: tail.Bytes()}, nil
}

// ask makes the next request.
func (x *exchange) ask() {
	x.asked++
	x.out = fmt.Appendf(x.out[:0], "GET %s HTTP/1.1\r\nHost: %s\r\n%s", x.at.RequestURI(), x.host, x.form.tail)
	x.in, x.looked, x.opened, x.heard = x.in[:0], 0, false, 0
}

// step writes and reads what can be. over: the probe has found err; again: the next request
// needs another connection. chunk is for what is read.
func (x *exchange) step(fd int, chunk []byte) (again, over bool, err error) {
	for len(x.out) > 0 {
		n, err := unix.Write(fd, x.out)
		if errors.Is(err, unix.EAGAIN) {
			return false, false, nil
		}
		if err != nil {
			return false, true, os.NewSyscallError("write", err)
		}
		x.out = x.out[n:]
	}
	for {
		n, err := unix.Read(fd, chunk)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false, false, nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return false, true, os.NewSyscallError("read", err)
		case n == 0:
			return false, true, x.cut()
		}
		if again, over, err = x.hear(chunk[:n]); again || over {
			return again, over, err
		}
	}
}

// errHead is the error of an answer whose head has no end.
var errHead = fmt.Errorf("the answer's head exceeded %d bytes", maxHeaderBytes)

// hear takes note of more of the answer.
func (x *exchange) hear(more []byte) (again, over bool, err error) {
	head := more
	if len(x.in) > 0 {
		x.in = append(x.in, more...)
		head = x.in
	}
	for {
		end := endOfHead(head, x.looked)
		if end < 0 {
			break
		}
		answer, err := readHead(head[:end])
		if err != nil {
			return false, true, blameHTTP(err)
		}
		if answer.StatusCode >= 200 || answer.StatusCode == http.StatusSwitchingProtocols {
			again, err := x.answered(answer)
			return again, !again, err
		}
		head, x.looked, x.opened, x.heard = head[end:], 0, false, x.heard+end
	}
	if x.heard+len(head) >= maxHeaderBytes {
		return false, true, errHead
	}
	if end := bytes.IndexByte(head, '\n'); end >= 0 && !x.opened {
		if _, err := readHead(append(bytes.Clone(head[:end+1]), "\r\n"...)); err != nil {
			return false, true, blameHTTP(err)
		}
		x.opened = true
	}
	x.in, x.looked = append(x.in[:0], head...), max(0, len(head)-2)
	return false, false, nil
}

// cut is what came of an answer that has ended too early.
func (x *exchange) cut() error {
	_, err := readHead(x.in)
	return blameHTTP(err)
}

func readHead(head []byte) (*http.Response, error) {
	return http.ReadResponse(bufio.NewReaderSize(bytes.NewReader(head), 512), nil)
}

// endOfHead returns where the empty line ends that ends a head; negative: there is none. The
// first bytes are known to have none.
func endOfHead(head []byte, known int) int {
	for i := known; ; {
		n := bytes.IndexByte(head[i:], '\n')
		if n < 0 {
			return -1
		}
		i += n + 1
		switch rest := head[i:]; {
		case len(rest) > 0 && rest[0] == '\n':
			return i + 1
		case len(rest) > 1 && rest[0] == '\r' && rest[1] == '\n':
			return i + 2
		}
	}
}

// answered judges an answer. again: it leads on.
func (x *exchange) answered(answer *http.Response) (again bool, err error) {
	next, err := x.redirect(answer)
	switch {
	case err != nil:
		return false, err
	case next != nil:
		x.at = next
		x.ask()
		return true, nil
	case !x.form.expect.Has(answer.StatusCode):
		return false, fmt.Errorf("status %d, want %s", answer.StatusCode, x.form.expect)
	}
	return false, nil
}

// redirect returns where an answer leads, if that is to be followed.
func (x *exchange) redirect(answer *http.Response) (*url.URL, error) {
	switch answer.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil
	}
	to := answer.Header.Get("Location")
	if to == "" {
		return nil, nil
	}
	next, err := x.at.Parse(to)
	if err != nil {
		return nil, fmt.Errorf("cannot parse Location %s", lb.Quote(lb.Shorten(to, 100)))
	}
	if x.form.expect.Names(answer.StatusCode) || !samePlace(next, x.at, x.host) {
		return nil, nil
	}
	if x.asked > maxRedirects {
		return nil, errRedirects
	}
	next.Host, next.User = x.at.Host, nil
	return next, nil
}

// isPlain tells whether a probe is an exchange.
func isPlain(p *lb.Probe) bool {
	return p.Kind == lb.ProbeHTTP && p.Body == ""
}
