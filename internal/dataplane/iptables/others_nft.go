// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// HasTables tells which families (IPv4, IPv6) have a table of nftables of that name.
func HasTables(name string) (has [2]bool, err error) {
	n, err := openNFT()
	if err != nil {
		return has, err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	for i, f := range families {
		req := n.request(unix.NFT_MSG_GETTABLE, unix.NLM_F_ACK, addressFamily(f))
		req.AddData(nl.NewRtAttr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated(name)))
		err := execute(req, func([]byte) { has[i] = true })
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return has, fmt.Errorf("table %s %s of nftables: %w", nftFamily(f), name, err)
		}
	}
	return has, nil
}

// DeleteTables removes the tables of nftables of that name from families, with all that
// is in them, in one transaction. A table that is not there is an error.
func DeleteTables(name string, from []lb.Family) error {
	if len(from) == 0 {
		return nil
	}
	c, err := openConntrack() // a socket of the same protocol
	if err != nil {
		return err
	}
	defer c.close()
	batch := nftMessage(unix.NFNL_MSG_BATCH_BEGIN, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	for _, f := range from {
		attrs := attribute(nil, unix.NFTA_TABLE_NAME, nl.ZeroTerminated(name))
		batch = append(batch, nftMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE, addressFamily(f), 0, attrs)...)
	}
	batch = append(batch, nftMessage(unix.NFNL_MSG_BATCH_END, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)...)
	if err := unix.Sendto(c.fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for range from { // each is acknowledged when all are done
		n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		if err := nftAnswers(c.buf[:n]); err != nil {
			return fmt.Errorf("delete table %s of nftables: %w", name, err)
		}
	}
	return nil
}

// nftMessage is a message of nfnetlink; those between begin and end ask for an
// acknowledgement.
func nftMessage(typ int, family uint8, resource uint16, attrs []byte) []byte {
	flags := uint16(unix.NLM_F_REQUEST)
	if attrs != nil {
		flags |= unix.NLM_F_ACK
	}
	msg := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+nfgenLen+len(attrs))
	msg = append(msg, family, nl.NFNETLINK_V0)
	msg = binary.BigEndian.AppendUint16(msg, resource)
	msg = append(msg, attrs...)
	binary.NativeEndian.PutUint32(msg, uint32(len(msg)))
	binary.NativeEndian.PutUint16(msg[4:], uint16(typ))
	binary.NativeEndian.PutUint16(msg[6:], flags)
	return msg
}

// nftAnswers returns the first error in answers of the kernel.
func nftAnswers(b []byte) error {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return unix.EBADMSG
		}
		if typ := binary.NativeEndian.Uint16(b[4:]); typ == unix.NLMSG_ERROR && size >= unix.SizeofNlMsghdr+4 {
			if errno := int32(binary.NativeEndian.Uint32(b[unix.SizeofNlMsghdr:])); errno != 0 {
				return unix.Errno(-errno)
			}
		}
		b = b[min(align4(size), len(b)):]
	}
	return nil
}
