// SPDX-License-Identifier: Apache-2.0

package health

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
	"sync"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// The bounds of an HTTP answer.
const (
	maxRedirects   = 10
	maxHeaderBytes = 16 << 10
	maxBodyBytes   = 64 << 10
)

// askHTTP probes by GET. It is healthy if the status of the last answer is expected and its
// body, or the first 64 KiB of it, contains what is asked for; a body that is not asked
// for is not waited for.
//
// Redirects are followed as by Kubernetes' probes, at most ten and only to the place that
// was asked first: same scheme, address and port. A redirect to somewhere else is not
// followed but an answer like any other, as is one whose status Expect names by itself.
func (p *prober) askHTTP(ctx context.Context, t Target) error {
	expect, err := lb.ParseExpect(t.Probe.Expect)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCannot, err)
	}
	first, err := p.request(t)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCannot, err)
	}
	transport := p.transport(t)
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: redirects(first, expect)}
	answer, err := client.Do(first.WithContext(ctx))
	if err != nil {
		return blameHTTP(err)
	}
	defer answer.Body.Close()
	if !expect.Has(answer.StatusCode) {
		return fmt.Errorf("status %d, want %s", answer.StatusCode, expect)
	}
	return findBody(answer.Body, t.Probe.Body)
}

// request returns the first request, which goes to the backend's address whatever host it
// asks for.
func (p *prober) request(t Target) (*http.Request, error) {
	to, err := url.ParseRequestURI(t.Probe.Path)
	if err != nil {
		return nil, err
	}
	to.Scheme, to.Host = t.Probe.Kind.String(), t.Addr.String()
	r, err := http.NewRequest(http.MethodGet, to.String(), nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("User-Agent", p.o.UserAgent)
	r.Header.Set("Accept", "*/*")
	own := map[string]bool{}
	for line := range strings.Lines(t.Probe.Headers) {
		name, value, _ := strings.Cut(line, ":")
		name = textproto.CanonicalMIMEHeaderKey(name)
		if !own[name] {
			r.Header.Del(name)
			own[name] = true
		}
		r.Header.Add(name, strings.TrimSpace(value))
	}
	r.Host = hostHeader(t)
	return r, nil
}

// hostHeader returns whom a request asks for.
func hostHeader(t Target) string {
	if t.Probe.Host == "" {
		return t.Addr.String()
	}
	if strings.Contains(t.Probe.Host, ":") {
		return "[" + t.Probe.Host + "]"
	}
	return t.Probe.Host
}

// transport returns one for a single probe: without proxies, without HTTP/2, and for
// connections to the backend only.
func (p *prober) transport(t Target) *http.Transport {
	name := t.Probe.Host
	if name == "" {
		name = t.Addr.Addr().String()
	}
	encryption := &tls.Config{
		ServerName:         name,
		RootCAs:            p.o.Roots,
		InsecureSkipVerify: !t.Probe.Verify,
	}
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := dialOnce(ctx, wayOf(ctx), t)
			if err != nil {
				return nil, err
			}
			return newAsking(conn), nil
		},
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := dialOnce(ctx, wayOf(ctx), t)
			if err != nil {
				return nil, err
			}
			encrypted := tls.Client(conn, encryption)
			if err := encrypted.HandshakeContext(ctx); err != nil {
				conn.Close()
				return nil, err
			}
			return newAsking(encrypted), nil
		},
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
}

// asking is a connection that reads nothing before something was written. A backend that
// speaks before it is asked would have net/http write what it says to the log of the process.
type asking struct {
	net.Conn
	begun chan struct{} // closed by the first Write, or by Close
	once  sync.Once
}

func newAsking(conn net.Conn) *asking { return &asking{Conn: conn, begun: make(chan struct{})} }

func (a *asking) begin() { a.once.Do(func() { close(a.begun) }) }

// Read waits for the first Write.
func (a *asking) Read(p []byte) (int, error) {
	<-a.begun
	return a.Conn.Read(p)
}

// Write lets reads begin.
func (a *asking) Write(p []byte) (int, error) {
	a.begin()
	return a.Conn.Write(p)
}

// Close ends reads, those that wait too.
func (a *asking) Close() error {
	err := a.Conn.Close()
	a.begin()
	return err
}

// dialOnce connects to the backend. Closing resets the connection, if the backend has not
// closed it: nothing of it stays on this node.
func dialOnce(ctx context.Context, w *way, t Target) (net.Conn, error) {
	w.begun.Store(true)
	dialer := net.Dialer{KeepAlive: -1}
	conn, err := dialer.DialContext(ctx, "tcp", t.Addr.String())
	if err != nil {
		return nil, err
	}
	w.made.Store(true)
	if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// errRedirects is the error of an answer that leads on and on.
var errRedirects = fmt.Errorf("more than %d redirects", maxRedirects)

// redirects returns what decides whether a redirect is followed.
func redirects(first *http.Request, expect lb.Statuses) func(*http.Request, []*http.Request) error {
	place, host := *first.URL, first.Host
	header := first.Header.Clone()
	return func(next *http.Request, via []*http.Request) error {
		if expect.Names(next.Response.StatusCode) || !samePlace(next.URL, &place, host) {
			return http.ErrUseLastResponse
		}
		if len(via) > maxRedirects {
			return errRedirects
		}
		next.URL.Host, next.URL.User = place.Host, nil
		next.Host = host
		next.Header = header.Clone()
		return nil
	}
}

// samePlace tells whether a URL leads to the place of the first request: by the backend's
// address and port, or by the name that was asked for with its port or that of the scheme.
func samePlace(to, place *url.URL, host string) bool {
	if to.Scheme != place.Scheme {
		return false
	}
	if strings.EqualFold(to.Host, place.Host) || strings.EqualFold(to.Host, host) {
		return true
	}
	name, port := to.Hostname(), to.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[to.Scheme]
	}
	wanted := strings.Trim(host, "[]")
	return port == place.Port() && (strings.EqualFold(name, wanted) || name == place.Hostname())
}

// findBody reads until the text was found, at most maxBodyBytes.
func findBody(r io.Reader, text string) error {
	if text == "" {
		return nil
	}
	r = io.LimitReader(r, maxBodyBytes)
	var all []byte
	chunk := make([]byte, 4<<10)
	for {
		n, err := r.Read(chunk)
		from := max(0, len(all)-len(text)+1)
		all = append(all, chunk[:n]...)
		if bytes.Contains(all[from:], []byte(text)) {
			return nil
		}
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("the body's %d bytes do not contain %s", len(all), lb.Quote(text))
		}
		if err != nil {
			return blameHTTP(err)
		}
	}
}

// blameHTTP is blame, with TLS in words of its own: certificates are from outside.
func blameHTTP(err error) error {
	var (
		wrapped *url.Error
		name    x509.HostnameError
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		plainly tls.RecordHeaderError
	)
	if errors.As(err, &wrapped) {
		err = wrapped.Err // without the URL
	}
	switch {
	case errors.As(err, &name):
		return fmt.Errorf("the certificate is not for %s", lb.Quote(name.Host))
	case errors.As(err, &unknown):
		return errors.New("the certificate is from an unknown authority")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return errors.New("the certificate has expired or is not valid yet")
	case errors.As(err, &invalid):
		return errors.New("the certificate is not valid")
	case errors.As(err, &plainly):
		return errors.New("the backend does not speak TLS")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the backend closed the connection without an answer")
	}
	return blame(err)
}
