// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// destroyGroup is the multicast group that hears of entries which the kernel forgets.
const destroyGroup = 3 // NFNLGRP_CONNTRACK_DESTROY

// refusals hears of connections that are refused: as the reset of a SYN passes, the kernel
// forgets the connection, and says so to those who listen. While somebody listens, that
// costs a message in the kernel for each connection that is forgotten; the socket has a
// filter, so that only those wake the agent which were never answered.
type refusals struct {
	file   *os.File
	hears  atomic.Bool // listen(true) was called, and the kernel tells
	silent bool        // the kernel is set not to tell
}

// openRefusals returns a refusals of the calling thread's network namespace, which does not
// listen yet.
func openRefusals(s sysctls) (*refusals, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("conntrack events: socket: %w", err)
	}
	filter := unansweredFilter()
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("conntrack events: socket: %w", err)
	}
	r := &refusals{file: os.NewFile(uintptr(fd), "conntrack events")}
	tells, err := readSetting(s.file("net/netfilter/nf_conntrack_events"))
	r.silent = err == nil && tells == 0
	return r, nil
}

// unansweredFilter lets messages pass that are about TCP connections of which no packet came
// back. Netlink's attributes are found by an extension of classic BPF (linux/filter.h).
func unansweredFilter() []unix.SockFilter {
	const (
		header    = unix.SizeofNlMsghdr + nfgenLen
		findAttr  = 0xfffff000 + 12 // SKF_AD_OFF + SKF_AD_NLATTR: of type X, from offset A on; its offset, or 0
		lookLater = 1 << 16
	)
	find := func(attr uint32) []unix.SockFilter {
		return []unix.SockFilter{
			{Code: unix.BPF_LD | unix.BPF_IMM, K: header},
			{Code: unix.BPF_LDX | unix.BPF_IMM, K: attr},
			{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: findAttr},
		}
	}
	prog := append(find(nl.CTA_PROTOINFO), unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0, Jt: 7}) // none: it is no TCP
	prog = append(prog, find(nl.CTA_STATUS)...)
	return append(prog,
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0, Jt: 4},
		unix.SockFilter{Code: unix.BPF_MISC | unix.BPF_TAX},
		unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_IND, K: unix.SizeofNlAttr},
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: statusReplied, Jf: 1},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: lookLater},
	)
}

func (r *refusals) close() { _ = r.file.Close() }

// listen makes the kernel tell, or not. It may be called at any time.
func (r *refusals) listen(on bool) error {
	if on = on && !r.silent; on == r.hears.Load() {
		return nil
	}
	option := unix.NETLINK_DROP_MEMBERSHIP
	if on {
		option = unix.NETLINK_ADD_MEMBERSHIP
	}
	conn, err := r.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("conntrack events: %w", err)
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_NETLINK, option, destroyGroup)
	})
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("conntrack events: %w", err)
	}
	r.hears.Store(on)
	return nil
}

// heard is whether refusals are told of.
func (r *refusals) heard() bool { return r != nil && r.hears.Load() }

// way is where a connection was to, and to whom it was given.
type way struct{ frontend, backend netip.AddrPort }

// hear calls each for connections that are refused, and tell with one for each way, until ctx
// is done: at once, but after that not before tell has had its part of the time, and for
// one way once a second. lost is called when the kernel had more to tell than there was
// room for.
func (r *refusals) hear(ctx context.Context, each func(*flow), tell func([]flow), lost func()) error {
	stop := context.AfterFunc(ctx, func() { _ = r.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var waiting []flow
	var next, cleared time.Time
	told := map[way]bool{}
	buf := make([]byte, conntrackBuffer)
	for {
		var until time.Time
		if len(waiting) > 0 {
			until = next
		}
		if err := r.file.SetReadDeadline(until); err != nil {
			return fmt.Errorf("conntrack events: %w", err)
		}
		if ctx.Err() != nil {
			return nil
		}
		n, err := r.file.Read(buf)
		now := time.Now()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			lost()
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("conntrack events: %w", err)
		}
		if now.Sub(cleared) > time.Second {
			clear(told)
			cleared = now
		}
		for fl := range refused(buf[:max(n, 0)]) {
			each(&fl)
			if to := (way{fl.frontend, fl.backend}); !told[to] {
				told[to] = true
				waiting = append(waiting, fl)
			}
		}
		if len(waiting) > 0 && !now.Before(next) {
			tell(waiting)
			waiting = nil
			next = time.Now().Add(time.Duration(float64(time.Since(now)) / busy))
		}
	}
}

// refused returns the connections that messages of the kernel say were refused. Their client
// was answered by a reset, and by nothing else.
func refused(msgs []byte) func(func(flow) bool) {
	return func(yield func(flow) bool) {
		for b := msgs; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				return
			}
			var e entry
			if e.parse(b[unix.NLMSG_HDRLEN:size]) && e.proto == lb.TCP && e.natted && !e.replied && e.state == tcpClose && !yield(e.flow) {
				return
			}
			b = b[min(align4(size), len(b)):]
		}
	}
}
