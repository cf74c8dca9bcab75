// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// A rewritten packet is another packet, so running a program again and again on
// one (BPF_PROG_TEST_RUN with repeat) would measure misses after the first run.
// These benchmarks therefore lay out a chain: packet 0 is translated into packet
// 1, that into packet 2, and every run of a repeat does the whole work. The
// kernel measures the runs; preparing and cleaning is not in the numbers.
const (
	bigChain   = 1 << 16 // flows: more than the caches hold
	smallChain = 2
	newChain   = 2000   // connections of one run of BenchmarkNewConnection
	coldChain  = 30_000 // the same, and more than the caches hold
)

// benchRig is a Dataplane in a lab without pods. Nothing is attached to devices:
// programs run on made-up packets.
type benchRig struct {
	b *testing.B
	d *Dataplane
}

func newBenchRig(b *testing.B) *benchRig {
	b.Helper()
	l, err := lab.New(lab.Options{Name: "bench", Pods: []lab.PodSpec{}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := l.Close(); err != nil {
			b.Error(err)
		}
	})
	r := &benchRig{b: b}
	if err := l.Host(lab.Node).Do(func() (err error) {
		r.d, err = Open(Options{
			CgroupRoot: l.CgroupRoot(), BPFFS: l.BPFFS(), NodeName: "node",
			Local: podRanges(),
		})
		return err
	}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := r.d.Close(); err != nil {
			b.Error(err)
		}
	})
	all := uint32(len(r.d.maps.backends))
	if err := r.d.maps.grow(ofBackend, all); err != nil { // the last one is in use from now on
		b.Fatal(err)
	}
	r.d.maps.backends[all-1] = lbBackend{State: uint8(lbBackendStateBACKEND_ACTIVE), Gen: 1}
	return r
}

// packetCase is what packets look like and what is done to them.
type packetCase struct {
	family lb.Family
	proto  lb.Proto
	hook   lbHook
	snat   bool // the other port is replaced too, as when masquerading
	flows  int
}

// packetCases are all of one number of flows.
func packetCases() []packetCase {
	var all []packetCase
	for _, hook := range []lbHook{lbHookHOOK_INGRESS, lbHookHOOK_EGRESS} {
		for _, snat := range []bool{false, true} {
			for _, family := range []lb.Family{lb.IPv4, lb.IPv6} {
				for _, proto := range []lb.Proto{lb.TCP, lb.UDP} {
					all = append(all, packetCase{family: family, proto: proto, hook: hook, snat: snat})
				}
			}
		}
	}
	return all
}

func (c packetCase) String() string {
	s := fmt.Sprintf("%s/%s", c.family, c.proto)
	if c.hook == lbHookHOOK_EGRESS {
		s = "egress/" + s
	} else {
		s = "ingress/" + s
	}
	if c.snat {
		s += "/snat"
	}
	return s
}

func (c packetCase) program(d *Dataplane) *ebpf.Program {
	if c.hook == lbHookHOOK_EGRESS {
		return d.progs[lbProgLbEgress]
	}
	return d.progs[lbProgLbIngress]
}

// benchClient is the end that no translation of a chain replaces.
func benchClient(f lb.Family) netip.AddrPort {
	if f == lb.IPv4 {
		return netip.MustParseAddrPort("192.0.2.7:40000")
	}
	return netip.MustParseAddrPort("[2001:db8::7]:40000")
}

// node is end i of a chain; neighbours differ in address and port.
func (c packetCase) node(i int) netip.AddrPort {
	port := uint16(2000 + i%2)
	if c.family == lb.IPv4 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18 + byte(i>>16), byte(i >> 8), byte(i)}), port)
	}
	a := netip.MustParseAddr("2001:db8:1::").As16()
	binary.BigEndian.PutUint32(a[12:], uint32(i))
	return netip.AddrPortFrom(netip.AddrFrom16(a), port)
}

// tuple is packet i of a chain as the kernel keys it.
func (c packetCase) tuple(i int) lbTuple {
	end, client := c.node(i), c.client(i)
	t := lbTuple{
		Saddr: addrOf(client.Addr()), Sport: swap16(client.Port()),
		Daddr: addrOf(end.Addr()), Dport: swap16(end.Port()),
		Proto: uint8(c.proto), Hook: uint8(c.hook),
	}
	if c.hook == lbHookHOOK_EGRESS {
		t.Saddr, t.Daddr, t.Sport, t.Dport = t.Daddr, t.Saddr, t.Dport, t.Sport
	}
	return t
}

// client is the other end of packet i: its port changes only when masquerading.
func (c packetCase) client(i int) netip.AddrPort {
	a := benchClient(c.family)
	if c.snat {
		return netip.AddrPortFrom(a.Addr(), a.Port()+uint16(i%2))
	}
	return a
}

// fill puts the chain's entries into the connection table: a cycle, so that any
// number of runs finds one each time.
func (r *benchRig) fill(c packetCase) {
	r.b.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		r.b.Fatal(err)
	}
	keys, values := make([]lbTuple, c.flows), make([]lbConn, c.flows)
	for i := range c.flows {
		next := c.node((i + 1) % c.flows)
		keys[i] = c.tuple(i)
		values[i] = lbConn{
			Addr: addrOf(next.Addr()), Port: swap16(next.Port()),
			OtherPort: swap16(c.client((i + 1) % c.flows).Port()),
			State:     uint32(lbConnStateCONN_REPLIED),
			Backend:   uint32(len(r.d.maps.backends) - 1), Gen: 1,
			Last: uint64(now.Nano()),
		}
		switch {
		case c.hook == lbHookHOOK_INGRESS && !c.snat: // masqueraded replies are no forward entries
			values[i].Flags = uint32(lbConnFlagsCONN_FORWARD)
		case c.hook == lbHookHOOK_EGRESS && c.snat:
			values[i].Flags = uint32(lbConnFlagsCONN_SNAT)
		}
	}
	if _, err := r.d.maps.byName[lbMapConns].BatchUpdate(keys, values, nil); err != nil {
		r.b.Fatal(err)
	}
}

// clear empties the connection table.
func (r *benchRig) clear() {
	r.b.Helper()
	if err := r.d.sweepAt(1 << 62); err != nil {
		r.b.Fatal(err)
	}
}

// frame is packet i of a chain: 64 bytes of payload; ports and flags are real,
// checksums are not, because they are only ever adjusted.
func (c packetCase) frame(i int, tcpFlags byte) []byte {
	t := c.tuple(i)
	src, dst := netipOf(t.Saddr), netipOf(t.Daddr)
	const payload = 64
	l4 := make([]byte, 8+payload)
	if c.proto == lb.TCP {
		l4 = make([]byte, 20+payload)
		l4[12], l4[13], l4[16] = 5<<4, tcpFlags, 0x55
	} else {
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
		l4[6] = 0x55
	}
	binary.BigEndian.PutUint16(l4, swap16(t.Sport))
	binary.BigEndian.PutUint16(l4[2:], swap16(t.Dport))
	frame := make([]byte, 12, 128)
	if c.family == lb.IPv4 {
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9], ip[10] = 0x45, 64, byte(c.proto), 0x55
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(l4)))
		copy(ip[12:], src.AsSlice())
		copy(ip[16:], dst.AsSlice())
		frame = append(append(frame, 0x08, 0x00), ip...)
	} else {
		ip := make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, byte(c.proto), 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(l4)))
		copy(ip[8:], src.AsSlice())
		copy(ip[24:], dst.AsSlice())
		frame = append(append(frame, 0x86, 0xdd), ip...)
	}
	return append(frame, l4...)
}

// run runs p n times on one packet and returns the nanoseconds of each run: by the
// kernel's clock, or by this thread's processor time where that is less, because others
// had the processor meanwhile.
func (r *benchRig) run(p *ebpf.Program, frame []byte, n int) float64 {
	r.b.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begin := threadTime(r.b)
	_, d, err := p.Benchmark(frame, n, nil)
	if err != nil {
		r.b.Fatal(err)
	}
	used := threadTime(r.b) - begin
	return min(float64(d.Nanoseconds()), float64(used.Nanoseconds())/float64(n))
}

const tcpACK = 1 << 4

// report runs p b.N times in batches on one packet and reports a run's time.
func (r *benchRig) report(b *testing.B, p *ebpf.Program, frame []byte) {
	const batch = 100_000
	r.run(p, frame, 1000) // warm
	total, n := 0.0, 0
	b.ResetTimer()
	for n < b.N {
		step := min(batch, max(b.N-n, 1000))
		total += r.run(p, frame, step) * float64(step)
		n += step
	}
	b.ReportMetric(total/float64(n), "ns/packet")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkNull is a program that does nothing: what a run costs by itself.
func BenchmarkNull(b *testing.B) {
	r := newBenchRig(b)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.SchedCLS,
		License:      "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	c := packetCase{family: lb.IPv4, proto: lb.TCP}
	b.Run("packet", func(b *testing.B) { r.report(b, p, c.frame(0, tcpACK)) })
}

// BenchmarkEstablished is a packet of a connection that is in the table: parsed,
// found, address, ports and checksums replaced.
func BenchmarkEstablished(b *testing.B) {
	r := newBenchRig(b)
	for _, flows := range []int{smallChain, bigChain} {
		for _, c := range packetCases() {
			c.flows = flows
			r.fill(c)
			b.Run(fmt.Sprintf("flows=%d/%s", flows, c), func(b *testing.B) {
				r.b = b
				r.report(b, c.program(r.d), c.frame(0, tcpACK))
			})
			r.b = b
			r.clear()
		}
	}
}

// BenchmarkForeign is a packet that is none of lbproxy's business, with 1,000
// Services in the tables.
func BenchmarkForeign(b *testing.B) {
	r := newBenchRig(b)
	r.addChain(packetCase{family: lb.IPv4, proto: lb.TCP, flows: 1000}, lb.MasqueradeNever)
	for _, c := range packetCases() {
		if c.snat { // nothing is replaced
			continue
		}
		b.Run(c.String(), func(b *testing.B) {
			r.b = b
			r.report(b, c.program(r.d), c.frame(100_000, tcpACK))
		})
	}
}

// addChain makes a Service of each of c.flows ends, whose only backend is the
// next end: each run of a repeat is a connection that nobody has seen.
func (r *benchRig) addChain(c packetCase, masq lb.Masquerade) {
	r.b.Helper()
	var delta dataplane.Delta
	for i := range c.flows {
		table, err := algo.Build("random", []algo.Member{{Weight: lb.DefaultWeight}})
		if err != nil {
			r.b.Fatal(err)
		}
		delta.Put = append(delta.Put, &dataplane.Service{
			Name: lb.ServiceName{
				Object: lb.Object{Namespace: "bench", Name: fmt.Sprintf("chain-%d", i)},
				Proto:  c.proto, Family: c.family,
			},
			Frontends: []lb.Frontend{{
				FrontendKey: lb.FrontendKey{Addr: c.node(i), Proto: c.proto},
				Type:        lb.ClusterIP, Masquerade: masq,
			}},
			Cluster: dataplane.Pool{
				Backends: []lb.Backend{{Addr: c.node(i + 1), Weight: lb.DefaultWeight}}, Table: table,
			},
		})
	}
	delta.Full = true
	if err := r.d.Sync(context.Background(), delta); err != nil {
		r.b.Fatal(err)
	}
}

// BenchmarkNewConnection is the first packet of a connection: everything of an
// established one, and a backend is chosen and 2 entries are inserted; 3 with
// masquerading. Each connection has another VIP, so as many Services are touched.
func BenchmarkNewConnection(b *testing.B) {
	r := newBenchRig(b)
	for _, flows := range []int{newChain, coldChain} {
		for _, c := range packetCases() {
			if c.hook != lbHookHOOK_INGRESS || c.snat && flows == coldChain {
				continue
			}
			c.flows = flows
			masq, name := lb.MasqueradeNever, fmt.Sprintf("flows=%d/%s", flows, c)
			if c.snat {
				masq, c.snat = lb.MasqueradeAlways, false
			}
			r.b = b
			r.addChain(c, masq)
			b.Run(name, func(b *testing.B) { r.connections(b, c) })
			r.b = b
			r.removeAll()
		}
	}
}

// connections opens c.flows connections again and again, each with a run of its own, and
// reports what one takes.
func (r *benchRig) connections(b *testing.B, c packetCase) {
	const syn = 1 << 1
	r.b = b
	total := 0.0
	passes := max(1, b.N/c.flows)
	for range passes {
		total += r.run(c.program(r.d), c.frame(0, syn), c.flows)
		if out, err := runSyscall(r.d.progs[lbProgLbSweep], &lbSweep{}); err != nil || out.Conns != uint64(c.flows) {
			b.Fatalf("%d connections were made, want %d: %v", out.Conns, c.flows, err)
		}
		r.clear()
	}
	b.ReportMetric(total/float64(passes), "ns/connection")
	b.ReportMetric(0, "ns/op")
}

// removeAll makes the dataplane forget every Service, and frees what they had.
func (r *benchRig) removeAll() {
	r.b.Helper()
	if err := r.d.Sync(context.Background(), dataplane.Delta{Full: true}); err != nil {
		r.b.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		r.d.reclaim(context.Background())
		if r.d.backendIDs.used() == 0 && r.d.regions.inUse == 0 {
			return
		}
		if time.Now().After(deadline) {
			r.b.Fatalf("%d backends and %d slots stay in use", r.d.backendIDs.used(), r.d.regions.inUse)
		}
	}
}
