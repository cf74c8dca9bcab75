// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// TestRefusedIsRead: of what the kernel tells of entries that it forgets, only connections
// that were answered by a reset and nothing else were refused.
func TestRefusedIsRead(t *testing.T) {
	const (
		dnat    = statusDNAT | 1<<3
		replied = dnat | statusReplied
		tcp     = unix.IPPROTO_TCP
	)
	for _, tc := range []struct {
		name   string
		proto  uint8
		status uint32
		state  uint8
		want   int
	}{
		{"refused", tcp, dnat, tcpClose, 1},
		{"nobody's", tcp, 1 << 3, tcpClose, 0},
		{"answered, and reset", tcp, replied, tcpClose, 0},
		{"never answered", tcp, dnat, tcpSynSent, 0},
		{"of UDP", unix.IPPROTO_UDP, dnat, tcpClose, 0},
	} {
		one := destroyed(tc.proto, tc.status, tc.state)
		for _, times := range []int{1, 2} { // a message, and two of them
			var msgs []byte
			for range times {
				msgs = append(msgs, one...)
			}
			got := 0
			for fl := range refused(msgs) {
				got++
				if fl.frontend != ap("10.96.0.1:80") || fl.backend != ap("10.244.1.1:8080") {
					t.Errorf("%s: %+v", tc.name, fl)
				}
			}
			if got != tc.want*times {
				t.Errorf("%s: %d of %d were refused", tc.name, got, times)
			}
		}
		for n := range one { // a part of a message is none
			for fl := range refused(one[:n]) {
				t.Errorf("%s: %d bytes of it: %+v", tc.name, n, fl)
			}
		}
	}
}

// destroyed is what the kernel says of 10.0.0.1:1000, which dialled 10.96.0.1:80 and was given
// 10.244.1.1:8080.
func destroyed(proto uint8, status uint32, state uint8) []byte {
	tuple := func(typ int, src, dst netip.AddrPort) []byte {
		ip := attribute(nil, nl.CTA_IP_V4_SRC, src.Addr().AsSlice())
		ip = attribute(ip, nl.CTA_IP_V4_DST, dst.Addr().AsSlice())
		ports := attribute(nil, nl.CTA_PROTO_NUM, []byte{proto})
		ports = attribute(ports, nl.CTA_PROTO_SRC_PORT, binary.BigEndian.AppendUint16(nil, src.Port()))
		ports = attribute(ports, nl.CTA_PROTO_DST_PORT, binary.BigEndian.AppendUint16(nil, dst.Port()))
		both := attribute(nil, nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, ip)
		return attribute(nil, typ|unix.NLA_F_NESTED, attribute(both, nl.CTA_TUPLE_PROTO|unix.NLA_F_NESTED, ports))
	}
	client, frontend, backend := ap("10.0.0.1:1000"), ap("10.96.0.1:80"), ap("10.244.1.1:8080")
	msg := make([]byte, unix.NLMSG_HDRLEN+nfgenLen)
	msg = append(msg, tuple(nl.CTA_TUPLE_ORIG, client, frontend)...)
	msg = append(msg, tuple(nl.CTA_TUPLE_REPLY, backend, client)...)
	msg = attribute(msg, nl.CTA_STATUS, binary.BigEndian.AppendUint32(nil, status))
	info := attribute(nil, nl.CTA_PROTOINFO_TCP|unix.NLA_F_NESTED, attribute(nil, nl.CTA_PROTOINFO_TCP_STATE, []byte{state}))
	msg = attribute(msg, nl.CTA_PROTOINFO|unix.NLA_F_NESTED, info)
	binary.NativeEndian.PutUint32(msg, uint32(len(msg)))
	return msg
}
