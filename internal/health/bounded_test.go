// SPDX-License-Identifier: Apache-2.0

package health

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// probeMemory is how much is allocated for a probe at most, whatever a backend answers:
// docs/SECURITY.md.
const probeMemory = 2 << 20

// TestProbesAreBounded: an answer without end ends with what a probe reads of it at most, or
// with its timeout, and takes no more memory than that.
func TestProbesAreBounded(t *testing.T) {
	const probes, timeout = 5, 200 * time.Millisecond
	flood := func(first, again string) func(net.Conn) { // allocates nothing for each
		text := bytes.Repeat([]byte(again), 1+(64<<10)/len(again))
		return func(conn net.Conn) {
			_, _ = io.WriteString(conn, first)
			for {
				if _, err := conn.Write(text); err != nil {
					return
				}
			}
		}
	}
	p := startProber(t, ProberOptions{})
	for _, tc := range []struct {
		name, first, again string
		probe              lb.Probe
	}{
		{"body", "HTTP/1.1 200 OK\r\n\r\n", "x", lb.Probe{Kind: lb.ProbeHTTP, Body: "y"}},
		{"header", "HTTP/1.1 200 OK\r\nX: ", "x", lb.Probe{Kind: lb.ProbeHTTP}},
		{"headers", "HTTP/1.1 200 OK\r\n", "X: y\r\n", lb.Probe{Kind: lb.ProbeHTTP}},
		{"status", "HTTP/1.1 200 ", "x", lb.Probe{Kind: lb.ProbeHTTP}},
		{"1xx", "", "HTTP/1.1 100 Continue\r\n\r\n", lb.Probe{Kind: lb.ProbeHTTP}},
		{"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n", lb.Probe{Kind: lb.ProbeHTTP, Body: "y"}},
		{"TLS", "", "\x16\x03\x03\x40\x00x", lb.Probe{Kind: lb.ProbeHTTPS}},
		{"gRPC", "\x00\x00\x00\x04\x00\x00\x00\x00\x00", "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678", lb.Probe{Kind: lb.ProbeGRPC}},
		{"gRPC headers", "\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x01\x00\x00\x00\x00\x01\x82", "\x00\x00\x01\x09\x00\x00\x00\x00\x01\x82", lb.Probe{Kind: lb.ProbeGRPC}},
	} {
		tc.probe.Timeout = timeout
		if tc.name == "gRPC" { // it is the flood that ends it
			tc.probe.Timeout = enough
		}
		if tc.probe.Kind != lb.ProbeGRPC {
			tc.probe.Path, tc.probe.Expect = "/", "200"
		}
		target := Target{Addr: listen(t, "127.0.0.1:0", flood(tc.first, tc.again)), Probe: tc.probe}
		_ = await(t, p, target) // what is made once
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range probes {
			r := await(t, p, target)
			if r.Err == nil || tc.name == "gRPC" && !strings.Contains(r.Err.Error(), errFlood.Error()) {
				t.Errorf("%s: %v", tc.name, r.Err)
			}
		}
		runtime.ReadMemStats(&after)
		each := (after.TotalAlloc - before.TotalAlloc) / probes
		t.Logf("%s: %d KiB for each", tc.name, each>>10)
		if each > probeMemory {
			t.Errorf("%s: %d bytes were allocated for each probe, want at most %d", tc.name, each, probeMemory)
		}
	}
}
