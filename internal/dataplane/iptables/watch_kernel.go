// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// dumpTries is how often a listing is repeated that changed while it was read.
const dumpTries = 10

// nft asks the kernel about nftables, in which the nft backend keeps its rules.
type nft struct{ sockets map[int]*nl.SocketHandle }

// openNFT opens the socket in the network namespace of the calling thread.
func openNFT() (*nft, error) {
	s, err := netfilterSocket()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return &nft{s}, nil
}

func (n *nft) close() error {
	n.sockets[unix.NETLINK_NETFILTER].Close()
	return nil
}

func (n *nft) request(cmd, flags int, family uint8) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|cmd, flags)
	req.Sockets = n.sockets
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	return req
}

// generation returns a number that every transaction in this network namespace counts up.
func (n *nft) generation() (id uint32, err error) {
	err = execute(n.request(unix.NFT_MSG_GETGEN, 0, unix.AF_UNSPEC), func(msg []byte) {
		eachAttr(msg, nl.SizeofNfgenmsg, func(typ int, v []byte) {
			if typ == unix.NFTA_GEN_ID && len(v) == 4 {
				id = binary.BigEndian.Uint32(v)
			}
		})
	})
	if err != nil {
		return 0, fmt.Errorf("generation of nftables: %w", err)
	}
	return id, nil
}

// rules hands each rule of a chain to each, as the kernel encodes it. A chain that is not
// there has none.
func (n *nft) rules(f lb.Family, t table, name string, each func([]byte)) error {
	var rules [][]byte
	for range dumpTries {
		req := n.request(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, addressFamily(f))
		req.AddData(nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(string(t))))
		req.AddData(nl.NewRtAttr(unix.NFTA_RULE_CHAIN, nl.ZeroTerminated(name)))
		rules = rules[:0]
		err := execute(req, func(msg []byte) { rules = append(rules, msg) })
		if errors.Is(err, nl.ErrDumpInterrupted) {
			continue
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("rules of chain %s of table %s: %w", name, t, err)
		}
		for _, r := range rules {
			each(r)
		}
		return nil
	}
	return fmt.Errorf("rules of chain %s of table %s: %w", name, t, nl.ErrDumpInterrupted)
}

// uses returns the chains of a table, each with how many rules it has and how many lead to
// it, together. The kernel knows that without looking at a rule.
func (n *nft) uses(f lb.Family, t table) (map[string]int, error) {
	for range dumpTries {
		got := map[string]int{}
		req := n.request(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, addressFamily(f))
		err := execute(req, func(msg []byte) {
			var of, name string
			use := 0
			eachAttr(msg, nl.SizeofNfgenmsg, func(typ int, v []byte) {
				switch {
				case typ == unix.NFTA_CHAIN_TABLE:
					of = unix.ByteSliceToString(v)
				case typ == unix.NFTA_CHAIN_NAME:
					name = unix.ByteSliceToString(v)
				case typ == unix.NFTA_CHAIN_USE && len(v) == 4:
					use = int(binary.BigEndian.Uint32(v))
				}
			})
			if of == string(t) {
				got[name] = use
			}
		})
		if err == nil || !errors.Is(err, nl.ErrDumpInterrupted) {
			return got, err
		}
	}
	return nil, fmt.Errorf("chains of table %s: %w", t, nl.ErrDumpInterrupted)
}

// leadsTo tells whether an encoded rule names a chain; names end with a zero byte.
func leadsTo(rule []byte, chain string) bool {
	return bytes.Contains(rule, append([]byte(chain), 0))
}

// processorTime returns the time that processors spent on the calling thread, and on
// programs that this process ran and that have ended.
func processorTime() time.Duration {
	return usedBy(unix.RUSAGE_THREAD) + usedBy(unix.RUSAGE_CHILDREN)
}

// threadTime returns the time that processors spent on the calling thread.
func threadTime() time.Duration { return usedBy(unix.RUSAGE_THREAD) }

func usedBy(who int) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil { // it never fails
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// tableInfo is what the kernel's part of the legacy backend says of a table: struct
// ipt_getinfo and ip6t_getinfo of include/uapi/linux/netfilter_ipv{4,6}.
type tableInfo struct {
	name      [32]byte
	hooks     uint32
	entry     [5]uint32 // where the rules of a built-in chain begin
	underflow [5]uint32 // and where its policy is
	entries   uint32
	size      uint32
}

// getInfo is IPT_SO_GET_INFO and IP6T_SO_GET_INFO.
const getInfo = 64

// builtins returns the lengths of the built-in chains, which no change of lbproxy's own
// chains alters.
func (i tableInfo) builtins() (lens [5]uint32) {
	for h := range lens {
		lens[h] = i.underflow[h] - i.entry[h]
	}
	return lens
}

// legacy asks the kernel about the tables of the legacy backend, of one family.
type legacy struct {
	fd    int
	level int
}

// openLegacy opens a raw socket in the network namespace of the calling thread.
func openLegacy(f lb.Family) (*legacy, error) {
	l := &legacy{level: unix.IPPROTO_IP}
	if f == lb.IPv6 {
		l.level = unix.IPPROTO_IPV6
	}
	var err error
	l.fd, err = unix.Socket(int(addressFamily(f)), unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("raw socket: %w", err)
	}
	return l, nil
}

func (l *legacy) close() error { return unix.Close(l.fd) }

func (l *legacy) info(t table) (i tableInfo, err error) {
	copy(i.name[:], t)
	size := uint32(unsafe.Sizeof(i))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(l.fd), uintptr(l.level), getInfo,
		uintptr(unsafe.Pointer(&i)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return i, fmt.Errorf("table %s: %w", t, errno)
	}
	return i, nil
}
