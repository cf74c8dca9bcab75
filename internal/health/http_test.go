// SPDX-License-Identifier: Apache-2.0

package health

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// get is a probe of a test's server.
func get(addr netip.AddrPort, path string) Target {
	return Target{Addr: addr, Probe: lb.Probe{Kind: lb.ProbeHTTP, Timeout: enough, Path: path, Expect: "200-399"}}
}

func addrOf(t *testing.T, s *httptest.Server) netip.AddrPort {
	t.Helper()
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return netip.MustParseAddrPort(u.Host)
}

// shop is a server with something of everything.
func shop(asked *atomic.Int64) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/status/{code}", func(w http.ResponseWriter, r *http.Request) {
		var code int
		fmt.Sscan(r.PathValue("code"), &code)
		w.WriteHeader(code)
	})
	mux.HandleFunc("/body", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, strings.Repeat("x", 5000), "all is well", strings.Repeat("y", 100))
	})
	mux.HandleFunc("/late", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, strings.Repeat("x", maxBodyBytes), "all is well")
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for chunk := strings.Repeat("x", 32<<10); ; {
			if _, err := io.WriteString(w, chunk); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		http.Redirect(w, r, "/loop", http.StatusFound)
	})
	mux.HandleFunc("/to", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", r.URL.Query().Get("u"))
		w.WriteHeader(http.StatusMovedPermanently)
	})
	mux.HandleFunc("/big-header", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X", strings.Repeat("x", 2*maxHeaderBytes))
	})
	mux.HandleFunc("/mirror", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s host=%s agent=%s accept=%s a=%v encoding=%s close=%t", r.Method, r.RequestURI, r.Host, r.UserAgent(),
			r.Header["Accept"], r.Header["X-A"], r.Header.Get("Accept-Encoding"), r.Close)
	})
	return mux
}

func TestHTTP(t *testing.T) {
	var asked, elsewhere atomic.Int64
	at := addrOf(t, httptest.NewServer(shop(&asked)))
	other := addrOf(t, httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) })))
	t.Setenv("HTTP_PROXY", "http://"+other.String())
	t.Setenv("http_proxy", "http://"+other.String())
	p := startProber(t, ProberOptions{UserAgent: "lbproxy/test"})
	for _, tc := range []struct {
		name, path string
		change     func(*lb.Probe)
		want       string
	}{
		{"200", "/status/200", nil, ""},
		{"204 is not named", "/status/204", func(p *lb.Probe) { p.Expect = "200" }, "http: status 204, want 200"},
		{"204 is named", "/status/204", func(p *lb.Probe) { p.Expect = "200,204" }, ""},
		{"503", "/status/503", nil, "http: status 503, want 200-399"},
		{"503 is wanted", "/status/503", func(p *lb.Probe) { p.Expect = "503" }, ""},
		{"body", "/body", func(p *lb.Probe) { p.Body = "all is well" }, ""},
		{"body is another", "/body", func(p *lb.Probe) { p.Body = "all is lost" }, `the body's 5111 bytes do not contain "all is lost"`},
		{"body is too far", "/late", func(p *lb.Probe) { p.Body = "all is well" }, "65536 bytes do not contain"},
		{"endless body", "/endless", func(p *lb.Probe) { p.Body = "y" }, "65536 bytes do not contain"},
		{"endless body that nobody reads", "/endless", nil, ""},
		{"endless redirects", "/loop", nil, "more than 10 redirects"},
		{"redirect is wanted", "/loop", func(p *lb.Probe) { p.Expect = "302" }, ""},
		{"redirect here", "/to?u=/status/204", func(p *lb.Probe) { p.Expect = "204" }, ""},
		{"redirect here, to a fault", "/to?u=/status/500", nil, "status 500"},
		{"redirect here by address", "/to?u=http://" + at.String() + "/status/500", nil, "status 500"},
		{"redirect here by name", "/to?u=http://shop.example:" + fmt.Sprint(at.Port()) + "/status/500", func(p *lb.Probe) { p.Host = "shop.example" }, "status 500"},
		{"redirect to another port", "/to?u=http://" + other.String() + "/", nil, ""},
		{"redirect elsewhere", "/to?u=http://192.0.2.1/", nil, ""},
		{"redirect elsewhere is not wanted", "/to?u=http://192.0.2.1/", func(p *lb.Probe) { p.Expect = "200" }, "status 301"},
		{"redirect to https", "/to?u=https://" + at.String() + "/", nil, ""},
		{"redirect to a file", "/to?u=file:///etc/passwd", nil, ""},
		{"redirect to nowhere", "/to?u=:", nil, "Location"},
		{"big header", "/big-header", nil, "exceeded"},
		{"mirror", "/mirror?x=%20", func(p *lb.Probe) {
			p.Body = "GET /mirror?x=%20 host=" + at.String() + " agent=lbproxy/test accept=[*/*] a=[] encoding= close=true"
		}, ""},
		{"mirror with headers", "/mirror", func(p *lb.Probe) {
			p.Host, p.Headers = "shop.example", "X-A: b\nx-a: c\nUser-Agent: me\nAccept: text/plain\n"
			p.Body = "GET /mirror host=shop.example agent=me accept=[text/plain] a=[b c] encoding= close=true"
		}, ""},
		{"headers stay with redirects", "/to?u=http://shop.example:" + fmt.Sprint(at.Port()) + "/mirror", func(p *lb.Probe) {
			p.Host, p.Headers = "shop.example", "X-A: b\n"
			p.Body = "GET /mirror host=shop.example agent=lbproxy/test accept=[*/*] a=[b]"
		}, ""},
	} {
		target := get(at, tc.path)
		if tc.change != nil {
			tc.change(&target.Probe)
		}
		asked.Store(0)
		checkErr(t, tc.name, await(t, p, target).Err, tc.want, false)
		if asked.Load() > maxRedirects+1 {
			t.Errorf("%s: %d requests", tc.name, asked.Load())
		}
	}
	if elsewhere.Load() > 0 {
		t.Errorf("%d requests went to a proxy or another port", elsewhere.Load())
	}
}

// TestRedirectsOfEachBackend: where a redirect leads is judged by the address of the backend
// that says it, not by that of another one with the same probe.
func TestRedirectsOfEachBackend(t *testing.T) {
	var at [2]netip.AddrPort
	var servers [2]*httptest.Server
	for i := range at {
		mux := http.NewServeMux()
		mux.HandleFunc("/leader", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+at[1-i].String()+"/leader", http.StatusTemporaryRedirect)
		})
		mux.HandleFunc("/own", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+at[i].String()+"/fault", http.StatusTemporaryRedirect)
		})
		mux.HandleFunc("/fault", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
		servers[i] = httptest.NewUnstartedServer(mux)
		at[i] = netip.MustParseAddrPort(servers[i].Listener.Addr().String())
	}
	for _, s := range servers { // when both addresses are known
		s.Start()
		t.Cleanup(s.Close)
	}
	for first := range at {
		p := startProber(t, ProberOptions{})
		for _, i := range []int{first, 1 - first} {
			for path, want := range map[string]string{"/leader": "", "/own": "status 503"} {
				for _, host := range []string{"", "shop.example"} {
					target := get(at[i], path)
					target.Probe.Host = host
					what := fmt.Sprintf("backend %d, when %d was probed first, %s of host %q", i, first, path, host)
					checkErr(t, what, await(t, p, target).Err, want, false)
				}
			}
		}
	}
}

// TestHTTPSpeaksFirst: what a backend says before it is asked is an answer like any, and
// comes into nobody's log.
func TestHTTPSpeaksFirst(t *testing.T) {
	var logged bytes.Buffer
	log.SetOutput(&logged)
	defer log.SetOutput(os.Stderr)
	p := startProber(t, ProberOptions{})
	greet := func(conn net.Conn) {
		_, _ = io.WriteString(conn, "220 mail\r\n")
		_, _ = io.Copy(io.Discard, conn)
	}
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	defer cert.Close()
	for kind, at := range map[lb.ProbeKind]netip.AddrPort{
		lb.ProbeHTTP:  listen(t, "127.0.0.1:0", greet),
		lb.ProbeHTTPS: listen(t, "127.0.0.1:0", func(conn net.Conn) { greet(tls.Server(conn, cert.TLS)) }),
	} {
		for range 200 {
			target := get(at, "/")
			target.Probe.Kind = kind
			checkErr(t, kind.String(), await(t, p, target).Err, "malformed", false)
		}
	}
	if logged.Len() > 0 {
		t.Errorf("logged: %.200q", logged.String())
	}
}

// TestHTTPAddresses: IPv6, a closed port, silence, and what is no HTTP.
func TestHTTPAddresses(t *testing.T) {
	p := startProber(t, ProberOptions{})
	answer := func(text string) func(net.Conn) {
		return func(conn net.Conn) {
			_, _ = http.ReadRequest(bufio.NewReader(conn))
			_, _ = io.WriteString(conn, text)
		}
	}
	hang := func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }
	endless := func(first, again string) func(net.Conn) { // with a pause between bytes
		return func(conn net.Conn) {
			_, _ = io.WriteString(conn, first)
			for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
				if _, err := io.WriteString(conn, again); err != nil {
					return
				}
			}
		}
	}
	slowly := func(text string) func(net.Conn) {
		return func(conn net.Conn) {
			_, _ = http.ReadRequest(bufio.NewReader(conn))
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for i := range len(text) {
				_, _ = io.WriteString(conn, text[i:i+1])
				<-tick.C
			}
		}
	}
	const short = 150 * time.Millisecond
	for _, tc := range []struct {
		name    string
		at      netip.AddrPort
		body    string
		timeout time.Duration
		want    string
	}{
		{"IPv6", listen(t, "[::1]:0", answer("HTTP/1.1 200 OK\r\n\r\nok")), "ok", enough, ""},
		{"closed port", closedPort(t, "127.0.0.1:0"), "", enough, "http: connection refused"},
		{"no SYN-ACK", silent(t), "", short, "no answer within 150ms"},
		{"no answer", listen(t, "127.0.0.1:0", hang), "", short, "no answer within 150ms"},
		{"slow-loris status", listen(t, "127.0.0.1:0", endless("", "H")), "", short, ""},
		{"slow-loris headers", listen(t, "127.0.0.1:0", endless("HTTP/1.1 200 OK\r\n", "A: b\r\n")), "", short, "no answer within 150ms"},
		{"slow-loris body", listen(t, "127.0.0.1:0", endless("HTTP/1.1 200 OK\r\n\r\n", "x")), "y", short, "no answer within 150ms"},
		{"endless 1xx", listen(t, "127.0.0.1:0", endless("", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 100))), "", enough, "http: "},
		{"nothing", listen(t, "127.0.0.1:0", answer("")), "", enough, "closed the connection without an answer"},
		{"no HTTP", listen(t, "127.0.0.1:0", answer("220 \x1b[2J mail\r\n")), "", enough, "malformed"},
		{"status 999", listen(t, "127.0.0.1:0", answer("HTTP/1.1 999 x\r\n\r\n")), "", enough, "status 999"},
		{"1xx first", listen(t, "127.0.0.1:0", answer("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")), "", enough, ""},
		{"1xx only", listen(t, "127.0.0.1:0", answer("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")), "", enough, "closed the connection without an answer"},
		{"byte by byte", listen(t, "127.0.0.1:0", slowly("HTTP/1.1 503 Not Now\r\nA: b\r\nC: d\r\n\r\n")), "", enough, "status 503"},
		{"line feeds only", listen(t, "127.0.0.1:0", answer("HTTP/1.0 200 OK\nA: b\n\n")), "", enough, ""},
		{"no colon", listen(t, "127.0.0.1:0", answer("HTTP/1.1 200 OK\r\nA\r\n\r\n")), "", enough, "malformed"},
		{"half a head", listen(t, "127.0.0.1:0", answer("HTTP/1.1 200 OK\r\nA: b")), "", enough, "closed the connection without an answer"},
		{"a head without end", listen(t, "127.0.0.1:0", answer("HTTP/1.1 200 OK\r\nA: "+strings.Repeat("b", 2*maxHeaderBytes))), "", enough, "exceeded"},
		{"half a body", listen(t, "127.0.0.1:0", answer("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok")), "y", enough, "http: "},
		{"bad chunks", listen(t, "127.0.0.1:0", answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")), "y", enough, "chunk"},
	} {
		target := get(tc.at, "/")
		target.Probe.Body, target.Probe.Timeout = tc.body, tc.timeout
		r := await(t, p, target)
		if tc.name == "slow-loris status" { // either is fine: too slow, or too much of no HTTP
			if r.Err == nil {
				t.Errorf("%s: healthy", tc.name)
			}
		} else {
			checkErr(t, tc.name, r.Err, tc.want, false)
		}
		if r.Err != nil && strings.ContainsAny(r.Err.Error(), "\x1b\r\n") {
			t.Errorf("%s: control characters in %q", tc.name, r.Err)
		}
	}
}

func TestHTTPS(t *testing.T) {
	var names atomic.Value
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { names.Store(r.TLS.ServerName + " " + r.Host) }))
	s.Config.ErrorLog = quiet()
	s.StartTLS() // its certificate is for example.com and 127.0.0.1
	at := addrOf(t, s)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	knows, strange := startProber(t, ProberOptions{Roots: roots}), startProber(t, ProberOptions{Roots: x509.NewCertPool()})
	plain := addrOf(t, httptest.NewServer(http.NotFoundHandler()))
	hang := listen(t, "127.0.0.1:0", func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	for _, tc := range []struct {
		name   string
		p      Prober
		at     netip.AddrPort
		host   string
		verify bool
		want   string
		names  string
	}{
		{"any certificate", strange, at, "", false, "", " " + at.String()},
		{"any name", strange, at, "shop.example", false, "", "shop.example shop.example"},
		{"verified by name", knows, at, "example.com", true, "", "example.com example.com"},
		{"verified by address", knows, at, "", true, "", " " + at.String()},
		{"wrong name", knows, at, "shop.example", true, `https: the certificate is not for "shop.example"`, ""},
		{"unknown authority", strange, at, "example.com", true, "https: the certificate is from an unknown authority", ""},
		{"no TLS", knows, plain, "", true, "https: ", ""},
		{"no handshake", knows, hang, "", false, "no answer within", ""},
	} {
		names.Store("")
		target := get(tc.at, "/")
		target.Probe.Kind, target.Probe.Host, target.Probe.Verify = lb.ProbeHTTPS, tc.host, tc.verify
		if tc.name == "no handshake" {
			target.Probe.Timeout = 150 * time.Millisecond
		}
		checkErr(t, tc.name, await(t, tc.p, target).Err, tc.want, false)
		if got := names.Load(); got != tc.names {
			t.Errorf("%s: names %q, want %q", tc.name, got, tc.names)
		}
	}
}

// FuzzHTTP: whatever a backend answers, the probe ends, and its reason is short and
// printable.
func FuzzHTTP(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\n\r\nok", "HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", "HTTP/1.0 200\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\n", "\x16\x03\x01", "", "HTTP/1.1 301 \r\nLocation: //\xff\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	defer l.Close()
	var answer atomic.Value
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = http.ReadRequest(bufio.NewReader(conn))
				_, _ = conn.Write(answer.Load().([]byte))
			}()
		}
	}()
	p := startProber(f, ProberOptions{}).(*prober)
	at := l.Addr().(*net.TCPAddr).AddrPort()
	f.Fuzz(func(t *testing.T, data []byte) {
		answer.Store(data)
		target := get(at, "/")
		head := await(t, p, target).Err
		target.Probe.Body = "ok"
		ctx, cancel := context.WithTimeout(t.Context(), enough)
		defer cancel()
		whole := p.askHTTP(ctx, target)
		for _, err := range []error{head, whole} {
			if err == nil {
				continue
			}
			text := err.Error()
			for i := range len(text) {
				if text[i] < ' ' || text[i] > '~' {
					t.Fatalf("%q: the reason %q is not printable", data, text)
				}
			}
			if len(text) > 1000 {
				t.Errorf("%q: the reason has %d bytes", data, len(text))
			}
		}
		if head != nil && whole == nil {
			t.Errorf("%q: healthy with its body, and without: %v", data, head)
		}
		if ctx.Err() != nil {
			t.Errorf("%q: the probe took %s", data, enough)
		}
	})
}
