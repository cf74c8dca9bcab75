// SPDX-License-Identifier: Apache-2.0

package health

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestUnreached: probes tell a backend to which there is no connection from one that
// answers badly, or not at all once there is a connection.
func TestUnreached(t *testing.T) {
	p := startProber(t, ProberOptions{})
	closed, mute := closedPort(t, "127.0.0.1:0"), silent(t)
	hangs := listen(t, "127.0.0.1:0", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	ill := listen(t, "127.0.0.1:0", func(c net.Conn) {
		_, _ = c.Read(make([]byte, 4096))
		_, _ = io.WriteString(c, "HTTP/1.1 503 Not Now\r\nContent-Length: 0\r\n\r\n")
	})
	web := func(k lb.ProbeKind) lb.Probe { return lb.Probe{Kind: k, Path: "/", Expect: "200-399"} }
	for _, tc := range []struct {
		name  string
		probe lb.Probe
		to    int // index into the following
		want  bool
	}{
		{"tcp, closed", lb.Probe{Kind: lb.ProbeTCP}, 0, true},
		{"tcp, silent", lb.Probe{Kind: lb.ProbeTCP}, 1, true},
		{"http, closed", web(lb.ProbeHTTP), 0, true},
		{"http, silent", web(lb.ProbeHTTP), 1, true},
		{"http, hangs", web(lb.ProbeHTTP), 2, false},
		{"http, 503", web(lb.ProbeHTTP), 3, false},
		{"https, closed", web(lb.ProbeHTTPS), 0, true},
		{"https, silent", web(lb.ProbeHTTPS), 1, true},
		{"https, hangs", web(lb.ProbeHTTPS), 2, false},
		{"grpc, closed", lb.Probe{Kind: lb.ProbeGRPC}, 0, true},
		{"grpc, silent", lb.Probe{Kind: lb.ProbeGRPC}, 1, true},
		{"grpc, hangs", lb.Probe{Kind: lb.ProbeGRPC}, 2, false},
		{"grpc, HTTP", lb.Probe{Kind: lb.ProbeGRPC}, 3, false},
	} {
		tc.probe.Timeout = enough
		if tc.to == 1 || tc.to == 2 {
			tc.probe.Timeout = 300 * time.Millisecond
		}
		target := Target{Addr: []lb.Backend{{Addr: closed}, {Addr: mute}, {Addr: hangs}, {Addr: ill}}[tc.to].Addr, Probe: tc.probe}
		r := await(t, p, target)
		if got := unreached(tc.probe.Kind, r.Err); got != tc.want || r.Err == nil {
			t.Errorf("%s: %v: unreached %t, want %t", tc.name, r.Err, got, tc.want)
		}
	}
}
