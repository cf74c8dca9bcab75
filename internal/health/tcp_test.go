// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// TestSocketsAreReused: whatever a socket was used for before, and by whatever it ended, the
// next probe tells of its own target only. Few sockets do for many probes.
func TestSocketsAreReused(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	const limit, probes = 16, 600
	reset := listen(t, "127.0.0.1:0", func(conn net.Conn) { _ = conn.(*net.TCPConn).SetLinger(0) })
	http := func(text string) netip.AddrPort {
		return listen(t, "127.0.0.1:0", func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 1000))
			_, _ = conn.Write([]byte(text))
		})
	}
	web := func(addr netip.AddrPort) Target { return get(addr, "/") }
	targets := []struct {
		target Target
		want   string
	}{
		{tcp(listen(t, "127.0.0.1:0", func(net.Conn) {}), enough), ""},
		{tcp(listen(t, "[::1]:0", func(net.Conn) {}), enough), ""},
		{tcp(reset, enough), ""},
		{tcp(closedPort(t, "127.0.0.1:0"), enough), "connection refused"},
		{tcp(closedPort(t, "[::1]:0"), enough), "connection refused"},
		{tcp(silent(t), 20*time.Millisecond), "no answer within 20ms"},
		{web(http("HTTP/1.1 200 OK\r\n\r\n")), ""},
		{web(http("HTTP/1.1 503 Not Now\r\n\r\nand much more")), "status 503"},
		{web(http("")), "without an answer"},
		{web(closedPort(t, "127.0.0.1:0")), "connection refused"},
	}
	before := descriptors(t)
	p := startProber(t, ProberOptions{MaxTCP: limit, MaxHTTP: limit})
	type found struct {
		Result
		i int
	}
	results := make(chan found, probes)
	for range probes {
		i := random.IntN(len(targets))
		p.Start(targets[i].target, func(r Result) { results <- found{r, i} })
	}
	for range probes {
		r := <-results
		want := targets[r.i]
		if errors.Is(r.Err, ErrCannot) && strings.Contains(want.want, "no answer") {
			continue // this machine was too busy to tell
		}
		checkErr(t, want.target.Addr.String(), r.Err, want.want, false)
	}
	if n := descriptors(t); n > before+4*limit+8 { // both ends of HTTP's, and what the servers have not yet closed
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

// TestStarvedLoop: a loop that did not run when its probes had to end does not count that
// time against backends: who has answered meanwhile is healthy, and of who has not,
// nothing is known unless the loop was there in time.
func TestStarvedLoop(t *testing.T) {
	const timeout = time.Second
	for _, tc := range []struct {
		name   string
		to     netip.AddrPort
		passes time.Duration // until the loop runs again
		want   string
		cannot bool
	}{
		{"answered, in time", listen(t, "127.0.0.1:0", func(net.Conn) {}), timeout / 2, "", false},
		{"answered, and looked at late", listen(t, "127.0.0.1:0", func(net.Conn) {}), time.Hour, "", false},
		{"refused, and looked at late", closedPort(t, "127.0.0.1:0"), time.Hour, "connection refused", false},
		{"silent", silent(t), timeout, "no answer within 1s", false},
		{"silent, a bit late", silent(t), timeout + lateness, "no answer within 1s", false},
		{"silent, and looked at late", silent(t), timeout + lateness + 1, "too busy", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			now := time.Now()
			c := newConnector(1, nil)
			l := &connects{c: c, now: func() time.Time { return now }}
			if err := l.open(); err != nil {
				t.Fatal(err)
			}
			defer l.close()
			var results []Result
			c.start(job{t: tcp(tc.to, timeout), done: func(r Result) { results = append(results, r) }})
			l.admit()
			if !strings.HasPrefix(tc.name, "silent") { // the kernel has the answer before the loop runs
				if n, err := unix.Poll([]unix.PollFd{{Fd: int32(l.epoll), Events: unix.POLLIN}}, int(enough.Milliseconds())); n != 1 {
					t.Fatal("no event: ", err)
				}
			}
			now = now.Add(tc.passes)
			ended, cancel := context.WithCancel(t.Context())
			cancel() // it is not to wait
			if err := l.turn(ended); err != nil {
				t.Fatal(err)
			}
			if len(results) != 1 {
				t.Fatalf("%d results, want 1", len(results))
			}
			checkErr(t, tc.name, results[0].Err, tc.want, tc.cannot)
		})
	}
}

// TestClosedSocketsAreSilent: a socket that was closed says nothing more, not even where a
// copy of it is still open, as in a process that is forked just then. Its end would be taken
// for what becomes of the next connection.
func TestClosedSocketsAreSilent(t *testing.T) {
	l := &connects{c: newConnector(1, nil), now: time.Now}
	if err := l.open(); err != nil {
		t.Fatal(err)
	}
	defer l.close()
	var results []Result
	l.c.start(job{t: tcp(silent(t), enough), done: func(r Result) { results = append(results, r) }})
	l.admit()
	if len(l.attempts) != 1 || len(results) != 0 {
		t.Fatalf("%d attempts, results %v; want one attempt", len(l.attempts), results)
	}
	a := l.attempts[0]
	fork, err := unix.FcntlInt(uintptr(a.socket.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fork)
	a.socket.close()
	if err := l.connect(a); err != nil {
		t.Fatal(err)
	}
	n, err := l.poll()
	if err != nil {
		t.Fatal(err)
	}
	l.heed(n)
	if n != 0 || len(results) != 0 {
		t.Errorf("%d events, results %v; want none of a backend that is silent", n, results)
	}
}

// TestTurns: namespaces take turns, none has more than its share, and what waits for long
// takes no more memory than what waits.
func TestTurns(t *testing.T) {
	turns := newTurns(4) // a share of 3
	put := func(namespace string) {
		turns.push(job{t: Target{Service: lb.ServiceName{Object: lb.Object{Namespace: namespace}}}})
	}
	for range 5 {
		put("a")
	}
	put("b")
	put("b")
	var order string
	var taken []job
	for j, ok := turns.pop(); ok; j, ok = turns.pop() {
		order += j.t.Service.Namespace
		taken = append(taken, j)
	}
	if order != "ababa" || turns.ready() {
		t.Errorf("%q, and more: %t; want ababa and no more", order, turns.ready())
	}
	turns.leave(taken[0])
	if j, ok := turns.pop(); !ok || j.t.Service.Namespace != "a" || turns.ready() {
		t.Errorf("%v %t after one has left, and more: %t", j.t.Service, ok, turns.ready())
	}
	for range 10_000 {
		put("a")
		turns.leave(taken[0])
		if _, ok := turns.pop(); !ok {
			t.Fatal("nothing waits")
		}
	}
	if n := cap(turns.lines["a"].jobs); n > 100 {
		t.Errorf("one job waits in a line for %d", n)
	}
	if rest := turns.drain(); len(rest) != 1 || turns.ready() {
		t.Errorf("%d are left, want 1", len(rest))
	}
}
