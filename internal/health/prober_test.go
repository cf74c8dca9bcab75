// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// enough is a timeout of probes that are to be answered, and of tests.
const enough = 20 * time.Second

// everywhere lets a test's prober probe loopback.
var everywhere = []netip.Prefix{}

// startProber runs a Prober until the test ends.
func startProber(t testing.TB, o ProberOptions) Prober {
	t.Helper()
	if o.Refuse == nil {
		o.Refuse = everywhere
	}
	p := NewProber(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(enough):
			t.Error("Run does not end")
		}
	})
	return p
}

// await probes once and waits for what was found.
//
// A probe by a node that was too busy to look says nothing of the backend: it is begun
// again, as a monitor does.
func await(t testing.TB, p Prober, target Target) (r Result) {
	t.Helper()
	for range 20 {
		r = awaitOnce(t, p, target)
		if r.Err == nil || !strings.Contains(r.Err.Error(), "too busy") {
			break
		}
	}
	return r
}

func awaitOnce(t testing.TB, p Prober, target Target) Result {
	t.Helper()
	results := make(chan Result, 2)
	p.Start(target, func(r Result) { results <- r })
	select {
	case r := <-results:
		return r
	case <-time.After(2 * enough):
		t.Fatalf("the probe of %s does not end", target.Addr)
		return Result{}
	}
}

// checkErr compares a probe's error: want is a part of its text, or empty for none.
func checkErr(t *testing.T, what string, err error, want string, cannot bool) {
	t.Helper()
	if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
		t.Errorf("%s: %v, want %q", what, err, want)
	}
	if errors.Is(err, ErrCannot) != cannot {
		t.Errorf("%s: %v: is it ErrCannot? want %t", what, err, cannot)
	}
	if err != nil && len(err.Error()) > 400 {
		t.Errorf("%s: the reason has %d bytes", what, len(err.Error()))
	}
}

// listen listens on loopback; each connection is handed to serve.
func listen(t testing.TB, address string, serve func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// closedPort returns an address at which nobody listens.
func closedPort(t testing.TB, address string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// silent returns an address at which SYNs are not answered: its queue is full.
func silent(t testing.TB) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*unix.SockaddrInet4).Port))
	for range 16 {
		conn, err := net.DialTimeout("tcp", to.String(), 200*time.Millisecond)
		if err != nil {
			return to
		}
		t.Cleanup(func() { conn.Close() })
	}
	t.Fatal("the queue does not fill")
	return to
}

func tcp(addr netip.AddrPort, timeout time.Duration) Target {
	return Target{Addr: addr, Probe: lb.Probe{Kind: lb.ProbeTCP, Timeout: timeout}}
}

func TestTCP(t *testing.T) {
	p := startProber(t, ProberOptions{})
	mapped := listen(t, "127.0.0.1:0", func(net.Conn) {})
	mapped = netip.AddrPortFrom(netip.AddrFrom16(mapped.Addr().As16()), mapped.Port())
	for _, tc := range []struct {
		name    string
		to      netip.AddrPort
		timeout time.Duration
		want    string
	}{
		{"IPv4", listen(t, "127.0.0.1:0", func(net.Conn) {}), enough, ""},
		{"IPv6 only", listen(t, "[::1]:0", func(net.Conn) {}), enough, ""},
		{"IPv4 as IPv6", mapped, enough, ""},
		{"closed port", closedPort(t, "127.0.0.1:0"), enough, "tcp: connection refused"},
		{"closed port, IPv6", closedPort(t, "[::1]:0"), enough, "tcp: connection refused"},
		{"silence", silent(t), 50 * time.Millisecond, "tcp: no answer within 50ms"},
	} {
		r := await(t, p, tcp(tc.to, tc.timeout))
		checkErr(t, tc.name, r.Err, tc.want, false)
		if r.Took <= 0 || tc.name == "silence" && r.Took < tc.timeout {
			t.Errorf("%s took %v", tc.name, r.Took)
		}
	}
}

// TestTCPQuiet: a probe leaves no socket in TIME_WAIT on this node, and a backend that
// answers in time does not even notice.
func TestTCPQuiet(t *testing.T) {
	const probes = 50
	var accepted atomic.Int64
	to := listen(t, "127.0.0.1:0", func(conn net.Conn) {
		accepted.Add(1)
		_, _ = io.Copy(conn, conn)
	})
	p := startProber(t, ProberOptions{})
	for range probes {
		if r := await(t, p, tcp(to, enough)); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	table, err := os.ReadFile("/proc/self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	const timeWait = " 06 "
	for line := range strings.Lines(string(table)) {
		if strings.Contains(line, fmt.Sprintf(":%04X%s", to.Port(), timeWait)) {
			t.Errorf("TIME_WAIT: %s", line)
		}
	}
	conn, err := net.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil { // what came before it has been accepted
		t.Fatal(err)
	}
	if n := accepted.Load(); n > probes/2 { // a machine that is busy may acknowledge some
		t.Errorf("the backend accepted %d of %d probes", n-1, probes)
	}
}

// TestTCPPlaces: there are never more sockets than places, each probe has its timeout from
// when it gets one, and one namespace's silent backends leave room for others'.
func TestTCPPlaces(t *testing.T) {
	const limit, probes = 4, 20
	to, open := silent(t), listen(t, "127.0.0.1:0", func(net.Conn) {})
	before := descriptors(t)
	p := startProber(t, ProberOptions{MaxTCP: limit})
	results := make(chan Result, probes)
	for range probes {
		target := tcp(to, 200*time.Millisecond)
		target.Service.Namespace = "silent"
		p.Start(target, func(r Result) { results <- r })
	}
	other := tcp(open, enough)
	other.Service.Namespace = "other"
	earlier := make(chan int, 1)
	p.Start(other, func(r Result) {
		if r.Err != nil {
			t.Error(r.Err)
		}
		earlier <- len(results)
	})
	if n := <-earlier; n > limit {
		t.Errorf("%d silent probes came before the one of another namespace", n)
	}
	for range probes {
		if r := <-results; !errors.Is(r.Err, ErrCannot) { // this machine was too busy to tell
			checkErr(t, "silence", r.Err, "no answer within 200ms", false)
		}
		if now := descriptors(t); now > before+limit+4 { // epoll, eventfd, the listing itself, a server's
			t.Errorf("%d descriptors, %d before", now, before)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestRunEnds: what is under way, what waits, and what is started later ends as cancelled.
func TestRunEnds(t *testing.T) {
	to := silent(t)
	for _, kind := range []lb.ProbeKind{lb.ProbeTCP, lb.ProbeHTTP, lb.ProbeGRPC} {
		p := NewProber(ProberOptions{MaxTCP: 1, MaxHTTP: 1, Refuse: everywhere})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		results := make(chan Result, 4)
		target := Target{Addr: to, Probe: lb.Probe{Kind: kind, Timeout: enough, Path: "/", Expect: "200"}}
		start := func() { p.Start(target, func(r Result) { results <- r }) }
		start() // before Run
		go func() { done <- p.Run(ctx) }()
		start()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: Run: %v", kind, err)
		}
		start()
		for i := range 3 {
			if r := <-results; !errors.Is(r.Err, context.Canceled) || errors.Is(r.Err, ErrCannot) {
				t.Errorf("%s: result %d: %v, want context.Canceled", kind, i, r.Err)
			}
		}
	}
}

// TestIncomplete: what cannot be probed says nothing of the backend.
func TestIncomplete(t *testing.T) {
	good := lb.Probe{Kind: lb.ProbeTCP, Timeout: time.Second}
	p := startProber(t, ProberOptions{Refuse: DefaultRefuse()})
	for _, tc := range []struct{ addr, want string }{
		{"10.0.0.1:0", "port 0"},
		{"0.0.0.0:80", "no address"},
		{"[::]:80", "no address"},
		{"224.0.0.1:80", "no address"},
		{"[ff02::1]:80", "no address"},
		{"[fe80::1%lo]:80", "no address"},
		{"127.0.0.1:80", "127.0.0.0/8"},
		{"[::ffff:127.0.0.1]:80", "127.0.0.0/8"},
		{"[::1]:80", "::1/128"},
		{"169.254.169.254:80", "169.254.0.0/16"},
		{"[fe80::1]:80", "fe80::/10"},
		{"[64:ff9b::a9fe:a9fe]:80", "64:ff9b::/96"},
		{"[fd00:ec2::254]:80", "fd00:ec2::254"},
		{"255.255.255.255:80", "255.255.255.255"},
	} {
		r := await(t, p, Target{Addr: netip.MustParseAddrPort(tc.addr), Probe: good})
		checkErr(t, tc.addr, r.Err, tc.want, true)
	}
	checkErr(t, "no address", await(t, p, Target{Probe: good}).Err, "no address", true)
	for _, tc := range []struct {
		probe lb.Probe
		want  string
	}{
		{lb.Probe{Kind: lb.ProbeTCP}, "timeout 0s"},
		{lb.Probe{Kind: lb.ProbeTCP, Timeout: -time.Second}, "timeout -1s"},
		{lb.Probe{Kind: lb.ProbeHTTP, Timeout: time.Second, Path: "/", Expect: "0-9"}, "expect"},
		{lb.Probe{Kind: lb.ProbeHTTP, Timeout: time.Second, Path: "/\r\nX: y", Expect: "200"}, "path"},
		{lb.Probe{Kind: lb.ProbeNone, Timeout: time.Second}, "none"},
		{lb.Probe{Timeout: time.Second}, "default"},
	} {
		r := await(t, p, Target{Addr: netip.MustParseAddrPort("10.0.0.1:80"), Probe: tc.probe})
		checkErr(t, fmt.Sprintf("%+v", tc.probe), r.Err, tc.want, true)
	}
}

func TestBlame(t *testing.T) {
	for code, cannot := range map[syscall.Errno]bool{
		syscall.ECONNREFUSED: false, syscall.EHOSTUNREACH: false, syscall.ENETUNREACH: false, syscall.ECONNRESET: false, syscall.ETIMEDOUT: false,
		syscall.EMFILE: true, syscall.ENFILE: true, syscall.EADDRNOTAVAIL: true, syscall.EPERM: true, syscall.ENOBUFS: true,
	} {
		err := blame(fmt.Errorf("dial: %w", os.NewSyscallError("connect", code)))
		if errors.Is(err, ErrCannot) != cannot {
			t.Errorf("%v becomes %v, want ErrCannot %t", code, err, cannot)
		}
	}
	if got := blame(errors.New("a\nb")).Error(); got != `"a\nb"` {
		t.Errorf("a line feed becomes %s", got)
	}
	if got := blame(errors.New(strings.Repeat("\x01", 1000))).Error(); len(got) > 1000 {
		t.Errorf("%d bytes of a long text", len(got))
	}
}

// TestBusy: a probe that ends much later than it should was not looked at.
func TestBusy(t *testing.T) {
	target := tcp(netip.AddrPort{}, time.Second)
	for took, cannot := range map[time.Duration]bool{time.Second: false, time.Second + lateness: false, time.Second + lateness + 1: true} {
		job{t: target, done: func(r Result) {
			if errors.Is(r.Err, ErrCannot) != cannot || r.Err == nil {
				t.Errorf("late by %v: %v, want ErrCannot %t", took-time.Second, r.Err, cannot)
			}
		}}.end(context.DeadlineExceeded, took)
	}
}
