// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
	"github.com/lbproxy/lbproxy/internal/lb"
)

var tunAddr = netip.MustParseAddr("172.40.0.2") // a client behind it

// tun makes a device without Ethernet header in the node. What is written to the file
// comes in through it.
func (r *rig) tun(name string) *os.File {
	r.t.Helper()
	dev := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TUN, Queues: 1,
		Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_ONE_QUEUE,
	}
	r.onNode(func() error {
		if err := netlink.LinkAdd(dev); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(dev); err != nil {
			return err
		}
		dst := &net.IPNet{IP: tunAddr.AsSlice(), Mask: net.CIDRMask(32, 32)}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: dev.Index, Dst: dst, Scope: netlink.SCOPE_LINK})
	})
	f := dev.Fds[0]
	r.t.Cleanup(func() { f.Close() })
	return f
}

// datagram4 is a UDP datagram over IPv4; no checksum is one that is right.
func datagram4(from, to netip.AddrPort, payload string) []byte {
	b := make([]byte, 28, 28+len(payload))
	src, dst := from.Addr().As4(), to.Addr().As4()
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(payload)))
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(b[20:], from.Port())
	binary.BigEndian.PutUint16(b[22:], to.Port())
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(payload)))
	return append(b, payload...)
}

// TestDeviceWithoutEthernet serves a client behind a tunnel. The programs for it are
// loaded when it is there.
func TestDeviceWithoutEthernet(t *testing.T) {
	r := newRig(t, nil)
	vip := netip.MustParseAddrPort(vips[lb.IPv4])
	r.sync(dataplane.Delta{Full: true, Put: []*dataplane.Service{r.svc("web", lb.IPv4, lb.UDP, "random",
		r.pods(lb.IPv4, "backend1"), frontend(lb.LoadBalancer, lb.UDP, vips[lb.IPv4], lb.MasqueradeAlways))}})
	if r.dp.layer3 != nil {
		t.Error("programs for devices without Ethernet are loaded, and there is none")
	}
	tun := r.tun("lbptun")
	client := netip.AddrPortFrom(tunAddr, 5353)
	answers := make(chan []byte, 64)
	go func() {
		defer close(answers)
		for {
			b := make([]byte, 2048)
			n, err := tun.Read(b)
			if err != nil {
				return
			}
			answers <- b[:n]
		}
	}()
	r.eventually("an answer comes from the VIP", func() bool { // the device is seen a little later
		if _, err := tun.Write(datagram4(client, vip, "token")); err != nil {
			t.Fatal(err)
		}
		for {
			select {
			case b := <-answers:
				if len(b) < 28 || b[9] != unix.IPPROTO_UDP {
					continue
				}
				src, _ := netip.AddrFromSlice(b[12:16])
				return netip.AddrPortFrom(src, binary.BigEndian.Uint16(b[20:])) == vip &&
					binary.BigEndian.Uint16(b[22:]) == client.Port()
			case <-time.After(100 * time.Millisecond):
				return false
			}
		}
	})
	r.answersFrom(lab.Outside, lab.UDP, vips[lb.IPv4], lab.OK)
}
