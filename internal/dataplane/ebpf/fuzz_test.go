// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/algo"
	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

const (
	fuzzVIP4 = "198.18.0.0"
	fuzzVIP6 = "2001:db8:ff::1"
)

// fuzzService is a Service on port 2000 of one address, with one backend.
func fuzzService(f *testing.F, proto lb.Proto, vip, backend string) *dataplane.Service {
	table, err := algo.Build("random", []algo.Member{{ID: 1, Weight: lb.DefaultWeight}})
	if err != nil {
		f.Fatal(err)
	}
	at := netip.MustParseAddr(vip)
	family := lb.IPv4
	if at.Is6() {
		family = lb.IPv6
	}
	return &dataplane.Service{
		Name: lb.ServiceName{Object: lb.Object{Namespace: "default", Name: "fuzz"}, Proto: proto, Family: family},
		Frontends: []lb.Frontend{{
			FrontendKey: lb.FrontendKey{Addr: netip.AddrPortFrom(at, 2000), Proto: proto},
			Type:        lb.ClusterIP,
		}},
		Cluster: dataplane.Pool{
			Backends: []lb.Backend{{Addr: netip.AddrPortFrom(netip.MustParseAddr(backend), backendPort), Weight: lb.DefaultWeight, Local: true}},
			Table:    table,
		},
	}
}

// fuzzDataplane serves a Service of each protocol and family on the node of a lab.
func fuzzDataplane(f *testing.F) (*lab.Lab, *Dataplane) {
	l, err := lab.New(lab.Options{Name: "fuzz", Pods: []lab.PodSpec{{Name: "backend1"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := l.Close(); err != nil {
			f.Error(err)
		}
	})
	var d *Dataplane
	err = l.Host(lab.Node).Do(func() (err error) {
		d, err = Open(Options{CgroupRoot: l.CgroupRoot(), BPFFS: l.BPFFS(), NodeName: "node", Local: podRanges(), Log: slog.New(slog.DiscardHandler)})
		return err
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := d.Close(); err != nil {
			f.Error(err)
		}
	})
	pod := l.Host("backend1")
	var all []*dataplane.Service
	for _, proto := range []lb.Proto{lb.TCP, lb.UDP, lb.SCTP} {
		all = append(all, fuzzService(f, proto, fuzzVIP4, pod.Addr4.String()), fuzzService(f, proto, fuzzVIP6, pod.Addr6.String()))
	}
	if err := d.Sync(context.Background(), dataplane.Delta{Put: all, Full: true}); err != nil {
		f.Fatal(err)
	}
	return l, d
}

// fuzzSeeds are packets to a Service, whole, cut into fragments, and with what is rare.
func fuzzSeeds() [][]byte {
	var seeds [][]byte
	for _, family := range []lb.Family{lb.IPv4, lb.IPv6} {
		for _, proto := range []lb.Proto{lb.TCP, lb.UDP} {
			frame := packetCase{family: family, proto: proto}.frame(0, 0x02) // SYN
			if family == lb.IPv6 {
				vip := netip.MustParseAddr(fuzzVIP6).As16()
				copy(frame[14+24:], vip[:])
			}
			seeds = append(seeds, frame)
			ip := 14
			if family == lb.IPv4 {
				fragment := bytes.Clone(frame)
				fragment[ip+6] = 0x20 // more fragments
				rest := bytes.Clone(fragment)
				rest[ip+7] = 8
				options := slices.Insert(bytes.Clone(frame), ip+20, 1, 1, 1, 0)
				options[ip] = 0x46
				icmp := slices.Concat(frame[:ip+20], []byte{3, 4, 0, 0, 0, 0, 5, 0}, frame[ip:])
				icmp[ip+9] = 1
				seeds = append(seeds, fragment, rest, options, icmp)
				continue
			}
			next := frame[ip+6]
			hops := slices.Insert(bytes.Clone(frame), ip+40, next, 0, 1, 4, 0, 0, 0, 0)
			hops[ip+6] = 0
			fragment := slices.Insert(bytes.Clone(frame), ip+40, next, 0, 0, 1, 0, 0, 0, 7)
			fragment[ip+6] = 44
			tooBig := slices.Concat(frame[:ip+40], []byte{2, 0, 0, 0, 0, 0, 5, 0}, frame[ip:])
			tooBig[ip+6] = 58
			seeds = append(seeds, hops, fragment, tooBig)
		}
	}
	return seeds
}

// FuzzPackets: whatever a packet is, the programs say what becomes of it; one in which no
// address of a Service or backend is to be found is left as it is.
func FuzzPackets(f *testing.F) {
	l, d := fuzzDataplane(f)
	for _, seed := range fuzzSeeds() {
		f.Add(seed)
	}
	f.Add([]byte("000000000000\b\x000")) // IPv4, and no header of it
	pod := l.Host("backend1")
	var ours [][]byte
	for _, a := range []netip.Addr{netip.MustParseAddr(fuzzVIP4), netip.MustParseAddr(fuzzVIP6), pod.Addr4, pod.Addr6} {
		ours = append(ours, a.AsSlice())
	}
	const next, ok, drop, redirect = 0xffffffff, 0, 2, 7 // linux/pkt_cls.h
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 15 || len(frame) > 3000 { // the kernel runs no program on less than a header
			return
		}
		foreign := true
		for _, a := range ours {
			foreign = foreign && !bytes.Contains(frame, a)
		}
		err := l.Host(lab.Node).Do(func() error {
			for _, name := range []string{lbProgLbIngress, lbProgLbEgress} {
				code, out, err := d.progs[name].Test(frame)
				if err != nil {
					return err
				}
				switch code {
				case next, ok, drop, redirect:
				default:
					t.Errorf("%s returns %d for % x", name, int32(code), frame)
				}
				if foreign && (code != next || !bytes.Equal(out, frame)) {
					t.Errorf("%s returns %d for a packet that is nobody's:\n% x, which becomes\n% x", name, int32(code), frame, out)
				}
			}
			return nil
		})
		if errors.Is(err, unix.EINVAL) && len(frame) < 14+40 { // of IP without a header of it, newer kernels refuse
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	})
}
