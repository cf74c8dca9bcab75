// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/bench/internal/node"
	"github.com/lbproxy/lbproxy/internal/lab"
)

// detector sees changes arrive in the kernel.
type detector interface {
	// expect looks out for a change of Service i to the new pod addr, which is
	// about to be written.
	expect(i int, addr netip.Addr)
	// arrived returns the new pods that arrived since, and when.
	arrived() (map[netip.Addr]time.Time, error)
	// pause is how long to wait between calls of arrived.
	pause() time.Duration
	close() error
}

// poolWords sees lbproxy's changes: it maps the table services, in which one
// 8-byte store commits a change, and looks at the words of Services that change.
type poolWords struct {
	mem     []byte
	size    int            // of an element
	ids     map[int]uint32 // of Services
	pending []word
}

type word struct {
	at   *uint64
	old  uint64
	addr netip.Addr
}

func pinned(p *place, name string) (*ebpf.Map, error) {
	dirs, err := filepath.Glob(filepath.Join(p.Lab.BPFFS(), "lbproxy", "v*", "maps", name))
	if err != nil || len(dirs) != 1 {
		return nil, fmt.Errorf("map %s: %d pins: %w", name, len(dirs), err)
	}
	return ebpf.LoadPinnedMap(dirs[0], nil)
}

func newPoolWords(p *place) (*poolWords, error) {
	d := &poolWords{ids: map[int]uint32{}}
	names, err := pinned(p, "service_names")
	if err != nil {
		return nil, err
	}
	defer names.Close()
	var id uint32
	name := make([]byte, names.ValueSize())
	for it := names.Iterate(); it.Next(&id, &name); {
		var i int
		if _, err := fmt.Sscanf(string(name), node.Namespace+"/svc-%d:", &i); err != nil {
			return nil, fmt.Errorf("service name %q: %w", bytes.TrimRight(name, "\x00"), err)
		}
		d.ids[i] = id
	}
	if len(d.ids) != p.world.services {
		return nil, fmt.Errorf("map service_names has %d of %d Services", len(d.ids), p.world.services)
	}
	m, err := pinned(p, "services")
	if err != nil {
		return nil, err
	}
	defer m.Close()
	d.size = int(m.ValueSize())
	if d.size < 8 || d.size%8 != 0 {
		return nil, fmt.Errorf("map services: elements of %d bytes", d.size)
	}
	page := unix.Getpagesize()
	length := (d.size*int(m.MaxEntries()) + page - 1) / page * page
	d.mem, err = unix.Mmap(m.FD(), 0, length, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map services: %w", err)
	}
	return d, nil
}

func (d *poolWords) expect(i int, addr netip.Addr) {
	at := (*uint64)(unsafe.Pointer(&d.mem[int(d.ids[i])*d.size]))
	d.pending = append(d.pending, word{at, atomic.LoadUint64(at), addr})
}

func (d *poolWords) arrived() (map[netip.Addr]time.Time, error) {
	var got map[netip.Addr]time.Time
	rest := d.pending[:0]
	for _, w := range d.pending {
		if atomic.LoadUint64(w.at) == w.old {
			rest = append(rest, w)
			continue
		}
		if got == nil {
			got = map[netip.Addr]time.Time{}
		}
		got[w.addr] = time.Now()
	}
	d.pending = rest
	return got, nil
}

// pause is short, because the time of a call of arrived is the time it returns. It
// is not 0: the program would have to do with one processor less.
func (d *poolWords) pause() time.Duration { return 10 * time.Microsecond }

func (d *poolWords) close() error { return unix.Munmap(d.mem) }

// netfilter sees changes of nf_tables: the kernel tells its listeners of every
// transaction when it is committed, iptables' too, if that is built on it. A new pod is found in them by the bytes of its address.
type netfilter struct {
	fd   int
	stop atomic.Bool
	done chan struct{}

	mu      sync.Mutex
	pending map[netip.Addr]bool
	got     map[netip.Addr]time.Time
	err     error
}

// The kernel's names: uapi/linux/netfilter/nfnetlink.h and nf_tables.h.
const (
	nfGroupTables  = 7
	nfSubsysTables = 10
	nfMsgNewGen    = 15
	nlHeader       = 16
)

func newNetfilter(p *place) (*netfilter, error) {
	d := &netfilter{done: make(chan struct{}), pending: map[netip.Addr]bool{}, got: map[netip.Addr]time.Time{}}
	err := p.Lab.Host(lab.Node).Do(func() (err error) {
		d.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netfilter: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(d.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20),
		unix.SetsockoptTimeval(d.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
		unix.Bind(d.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (nfGroupTables - 1)}))
	if err != nil {
		return nil, fmt.Errorf("netfilter: %w", errors.Join(err, unix.Close(d.fd)))
	}
	go d.run()
	return d, nil
}

// run reads until close.
func (d *netfilter) run() {
	defer close(d.done)
	buf := make([]byte, 1<<20)
	seen := map[netip.Addr]bool{} // in the transaction that is being told
	for !d.stop.Load() {
		n, _, err := unix.Recvfrom(d.fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case err != nil: // ENOBUFS: something was not heard
			d.mu.Lock()
			d.err = fmt.Errorf("netfilter: %w", err)
			d.mu.Unlock()
		default:
			d.read(buf[:n], seen)
		}
	}
}

// read takes one datagram of messages.
func (d *netfilter) read(b []byte, seen map[netip.Addr]bool) {
	now := time.Now()
	for len(b) >= nlHeader {
		n := int(binary.NativeEndian.Uint32(b))
		if n < nlHeader || n > len(b) {
			return
		}
		if binary.NativeEndian.Uint16(b[4:]) == nfSubsysTables<<8|nfMsgNewGen {
			d.commit(seen, now)
			clear(seen)
		} else {
			for addr := range newPods(b[nlHeader:n]) {
				seen[addr] = true
			}
		}
		b = b[min((n+3)&^3, len(b)):]
	}
}

// commit notes what arrived.
func (d *netfilter) commit(seen map[netip.Addr]bool, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for addr := range seen {
		if d.pending[addr] {
			delete(d.pending, addr)
			d.got[addr] = now
		}
	}
}

func (d *netfilter) expect(_ int, addr netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pending[addr] = true
}

func (d *netfilter) arrived() (map[netip.Addr]time.Time, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.got) == 0 {
		return nil, d.err
	}
	got := d.got
	d.got = map[netip.Addr]time.Time{}
	return got, d.err
}

// pause is longer: arrivals have been noted when they happened.
func (d *netfilter) pause() time.Duration { return 200 * time.Microsecond }

func (d *netfilter) close() error {
	d.stop.Store(true)
	<-d.done
	return unix.Close(d.fd)
}
