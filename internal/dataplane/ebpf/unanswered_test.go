// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// scriptImpatient makes n connections, one after the other, and does not wait long
// for an answer. One that is refused is made up for by nothing.
func scriptImpatient(to netip.AddrPort, n int, step func()) error {
	for range n {
		fd, err := dialFD(to, unix.SOCK_STREAM)
		if errors.Is(err, unix.ECONNREFUSED) {
			continue
		}
		if err != nil {
			return err
		}
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 150_000})
		if err == nil {
			_, err = unix.Write(fd, []byte("x"))
		}
		if err != nil {
			return fmt.Errorf("ask: %w", err)
		}
		var b [8]byte
		for err = unix.EINTR; errors.Is(err, unix.EINTR); { // the runtime's signals; a read with a time-out is not restarted
			_, err = unix.Read(fd, b[:])
		}
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			return fmt.Errorf("answer: %w", err)
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	step()
	return nil
}

// scriptMute makes n connections and ends each at once with a reset.
func scriptMute(to netip.AddrPort, n int, step func()) error {
	for range n {
		fd, err := dialFD(to, unix.SOCK_STREAM)
		if err != nil {
			return err
		}
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return err
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	step()
	return nil
}

// scriptOther connects to the VIP and, with the same socket, to the address that is
// n as a number.
func scriptOther(to netip.AddrPort, n int, step func()) error {
	fd, err := dialFD(to, unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	step()
	if err := disconnect(fd); err != nil {
		return err
	}
	other := netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(other, backendPort))); err != nil {
		return fmt.Errorf("connect directly: %w", err)
	}
	step()
	return nil
}

// serveByTime balances the pods of hosts at a port by the time of a signal.
func (r *rig) serveByTime(signal lb.Signal, proto lb.Proto, port uint16, hosts ...string) {
	r.t.Helper()
	bs := r.pods(lb.IPv4, hosts...)
	for i := range bs {
		bs[i].Addr = netip.AddrPortFrom(bs[i].Addr.Addr(), port)
	}
	svc := r.svc("web", lb.IPv4, proto, "least-time", bs, frontend(lb.ClusterIP, proto, endsVIP, lb.MasqueradeOffCluster))
	svc.Balance = lb.Balance{Algorithm: "least-time", Signal: signal}
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{svc}})
}

// statsOf returns what was counted for the backend at host.
func (r *rig) statsOf(host string) dataplane.BackendStats {
	r.t.Helper()
	s, err := r.dp.Stats()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, b := range s.Backends {
		if b.Backend.Addr() == r.lab.Host(host).Addr4 {
			return b
		}
	}
	r.t.Fatalf("no backend at %s: %+v", host, s.Backends)
	return dataplane.BackendStats{}
}

// watches returns how many sockets' answers are awaited.
func (r *rig) watches() (n int) {
	r.t.Helper()
	var (
		key lbTuple
		c   lbConn
	)
	it := r.dp.maps.byName[lbMapConns].Iterate()
	for it.Next(&key, &c) {
		if c.Flags&uint32(lbConnFlagsCONN_WATCH) != 0 {
			n++
		}
	}
	if err := it.Err(); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// TestBackendThatDoesNotAnswerIsLeft: a backend of which no answer was ever measured
// is not the fastest.
func TestBackendThatDoesNotAnswerIsLeft(t *testing.T) {
	const connections, most = 40, 4
	for _, tc := range []struct {
		name    string
		listens bool // and says nothing; otherwise it refuses
		signal  lb.Signal
	}{
		{"it is silent", true, lb.SignalFirstByte},
		{"it refuses, first byte", false, lb.SignalFirstByte},
		{"it refuses, connect", false, lb.SignalConnect},
		{"it refuses, last byte", false, lb.SignalLastByte},
	} {
		for _, host := range []string{"client1", "client2"} {
			t.Run(tc.name+", from "+host, func(t *testing.T) {
				r := newRig(t, nil)
				r.thinker("backend1")
				if tc.listens {
					r.listener("backend2")
				}
				r.serveByTime(tc.signal, lb.TCP, thinkPort, "backend1", "backend2")
				r.startClient(host, "impatient", endsVIP, connections).ready()
				good, bad := r.statsOf("backend1"), r.statsOf("backend2")
				if good.Opened+bad.Opened != connections || bad.Opened > most {
					t.Errorf("%d connections to the backend that answers after %v, %d to the other, want at most %d of %d",
						good.Opened, good.Latency, bad.Opened, most, connections)
				}
			})
		}
	}
}

// listener listens at thinkPort of a host. Connections are made, but not accepted.
func (r *rig) listener(host string) net.Listener {
	r.t.Helper()
	var l net.Listener
	if err := r.lab.Host(host).Do(func() (err error) {
		l, err = net.Listen("tcp4", netip.AddrPortFrom(r.lab.Host(host).Addr4, thinkPort).String())
		return err
	}); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { l.Close() })
	return l
}

// TestWatchEndsWithItsSocket: connections that nobody answers leave nothing behind,
// so others find room.
func TestWatchEndsWithItsSocket(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Sizes.Conns = 256 })
	r.serveByTime(lb.SignalFirstByte, lb.TCP, backendPort, "backend1", "backend2")
	r.startClient("client1", "mute", endsVIP, 2000).ready()
	r.eventually("no answer is awaited", func() bool { return r.watches() == 0 })
	got, _ := r.dial("client2", lab.Request{Proto: lab.TCP, To: netip.MustParseAddrPort(endsVIP)}, 5)
	if got["backend1"]+got["backend2"] != 5 {
		t.Errorf("on the packet path %v answered, want 5 answers", got)
	}
}

// TestOnlyItsOwnConnectionIsMeasured: a socket that goes elsewhere afterwards tells
// nothing of the backend that it had.
func TestOnlyItsOwnConnectionIsMeasured(t *testing.T) {
	r := newRig(t, nil)
	r.serveByTime(lb.SignalConnect, lb.TCP, backendPort, "backend1")
	a := r.lab.Host("backend2").Addr4.As4()
	c := r.startClient("client1", "other", endsVIP, int(a[0])<<24|int(a[1])<<16|int(a[2])<<8|int(a[3]))
	c.ready()
	before := r.statsOf("backend1").Latency
	<-time.After(50 * time.Millisecond) // makes a wrong sample differ
	c.next()
	if after := r.statsOf("backend1").Latency; before == 0 || after != before {
		t.Errorf("latency %v became %v by a connection to another pod", before, after)
	}
}

func TestUDPIsNotMeasured(t *testing.T) {
	r := newRig(t, nil)
	r.serveByTime(lb.SignalFirstByte, lb.UDP, backendPort, "backend1")
	for _, host := range []string{"client1", "client2"} {
		r.dial(host, lab.Request{Proto: lab.UDP, To: netip.MustParseAddrPort(endsVIP)}, 5)
		if s := r.statsOf("backend1"); s.Latency != 0 || s.Opened == 0 {
			t.Errorf("after 5 exchanges of %s: latency %v of %d flows, want none", host, s.Latency, s.Opened)
		}
	}
}

// TestPaddingIsNoPayload: Ethernet makes short packets longer.
func TestPaddingIsNoPayload(t *testing.T) {
	r := newRig(t, nil)
	r.serveByTime(lb.SignalFirstByte, lb.TCP, backendPort, "backend1")
	c := packetCase{family: lb.IPv4, proto: lb.TCP}
	watch := lbConn{
		Flags:   uint32(lbConnFlagsCONN_WATCH) | uint32(lbSignalSIGNAL_FIRST_BYTE)<<2,
		Backend: r.dp.backendsInUse()[0],
		Start:   uint32(monotonic()/time.Microsecond) - 777000,
	}
	if err := r.dp.maps.byName[lbMapConns].Put(c.tuple(0), watch); err != nil {
		t.Fatal(err)
	}
	const headers = 14 + 20 + 20
	for _, tc := range []struct {
		length, padding, watches int
	}{{40, 6, 1}, {41, 5, 0}} {
		frame := append(c.frame(0, tcpACK)[:headers], make([]byte, 6)...)
		frame[14+3] = byte(tc.length) // of the IP packet
		if _, _, err := r.dp.progs[lbProgLbIngress].Test(frame); err != nil {
			t.Fatal(err)
		}
		if got := r.watches(); got != tc.watches {
			t.Errorf("after an IP packet of %d bytes and %d of padding %d answers are awaited, want %d", tc.length, tc.padding, got, tc.watches)
		}
	}
}
