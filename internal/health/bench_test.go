// SPDX-License-Identifier: Apache-2.0

package health

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// benchServer makes this test's program a server of its own, so that only the prober's CPU
// time is measured: for connections ("tcp") or for GET ("http").
const benchServer = "LBPROXY_TEST_BENCH_SERVER"

func TestMain(m *testing.M) {
	kind := os.Getenv(benchServer)
	if kind == "" {
		os.Exit(m.Run())
	}
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		panic(err)
	}
	fmt.Fprintln(os.Stdout, l.Addr().(*net.TCPAddr).Port)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0) // who has started it has ended
	}()
	if kind == "http" {
		panic(http.Serve(l, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			panic(err)
		}
		conn.Close()
	}
}

// benchmark probes 10,000 endpoints, a hundred each 10 ms, b.N times. It reports the CPU
// time of this process for 10,000 probes, which on loopback has both ends' handshakes in it.
func benchmark(b *testing.B, server string, probe lb.Probe) {
	const endpoints, step = 10_000, 100
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), benchServer+"="+server)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer stdin.Close()
	var port uint16
	if _, err := fmt.Fscan(bufio.NewReader(stdout), &port); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	p := NewProber(ProberOptions{Refuse: everywhere})
	ran := make(chan error)
	go func() { ran <- p.Run(ctx) }()
	defer func() { cancel(); <-ran }()
	targets := make([]Target, endpoints)
	for i := range targets {
		addr := netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)})
		targets[i] = Target{Addr: netip.AddrPortFrom(addr, port), Probe: probe, Service: lb.ServiceName{Object: lb.Object{Namespace: "bench", Name: fmt.Sprint(i / 10)}}}
	}
	var failed error
	var mu sync.Mutex
	var took time.Duration
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	before := cpuTime(b)
	for b.Loop() {
		var all sync.WaitGroup
		all.Add(endpoints)
		for i := range targets {
			if i%step == 0 {
				<-tick.C
			}
			p.Start(targets[i], func(r Result) {
				defer all.Done()
				mu.Lock()
				defer mu.Unlock()
				took = max(took, r.Took)
				if r.Err != nil {
					failed = r.Err
				}
			})
		}
		all.Wait()
	}
	b.ReportMetric((cpuTime(b)-before).Seconds()/float64(b.N), "cpu-s/10k-probes")
	b.ReportMetric(float64(took.Microseconds())/1000, "ms-longest")
	if failed != nil {
		b.Error(failed)
	}
}

func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkTCP: 10,000 endpoints each second are to cost less than half a core, so at most
// 0.5 cpu-s/10k-probes.
func BenchmarkTCP(b *testing.B) {
	benchmark(b, "tcp", lb.Probe{Kind: lb.ProbeTCP, Timeout: time.Second})
}

func BenchmarkHTTP(b *testing.B) {
	benchmark(b, "http", lb.Probe{Kind: lb.ProbeHTTP, Timeout: time.Second, Path: "/", Expect: "200"})
}
