// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cilium/ebpf/link"

	"github.com/lbproxy/lbproxy/internal/netns"
)

const (
	staleRounds   = 25                    // how often stale sockets are looked for at most: for more than a second
	stalePause    = 2 * time.Millisecond  // before the third round; doubles with each
	stalePauseMax = 50 * time.Millisecond // what becomes stale meanwhile waits no longer
)

// staleKiller ends sockets that are connected to what is gone: a UDP socket would send
// to nobody until its process gives up, and a process that waits for an answer never
// does. Calls are not concurrent.
type staleKiller struct {
	maps    *maps
	progs   programs
	own     *netns.Namespace // the agent's
	refusal error            // why the kernel destroys no sockets; told once
	useless bool
	walked  time.Duration // that iterators took since somebody asked
}

// newStaleKiller loads the programs and finds out whether the kernel destroys
// sockets. The calling thread is in the agent's network namespace.
func newStaleKiller(m *maps) (_ *staleKiller, err error) {
	k := &staleKiller{maps: m, progs: programs{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.close())
		}
	}()
	if k.own, err = netns.Current(); err != nil {
		return nil, fmt.Errorf("own network namespace: %w", err)
	}
	spec, err := loadStale()
	if err != nil {
		return nil, err
	}
	if err := k.progs.load(spec, m, nil); err != nil {
		return nil, err
	}
	if err := probeDestroy(); err != nil {
		k.useless = true
		k.refusal = fmt.Errorf("sockets connected to endpoints that are gone stay until their processes "+
			"connect again (the kernel needs INET_DIAG_DESTROY, INET_UDP_DIAG and INET_TCP_DIAG): %w", err)
	}
	return k, nil
}

func (k *staleKiller) close() error {
	k.progs.close()
	if k.own == nil {
		return nil
	}
	return k.own.Close()
}

// killStale destroys, in every network namespace of the node, UDP sockets that are
// connected to a backend that is gone or through a frontend that is, and TCP sockets
// to a backend in state RESET. It returns how many.
//
// Sockets that are there now are destroyed in the first round. Then it waits for
// programs that may still choose what is gone, and looks again until there is nothing.
// If some remain the error names one of them. A kernel that cannot do it is told once.
func (k *staleKiller) killStale(ctx context.Context) (killed int, err error) {
	if k.useless {
		err, k.refusal = k.refusal, nil
		return 0, err
	}
	pause := stalePause
	for round := range staleRounds {
		found, connecting, err := k.find()
		if err != nil {
			return killed, fmt.Errorf("look for stale sockets: %w", err)
		}
		n, kept := k.destroy(found)
		killed += n
		switch {
		case round == 0:
			grace(ctx, k.maps)
		case len(found) == 0 && !connecting:
			return killed, nil
		case n == 0 && !connecting && round > 1, round == staleRounds-1:
			return killed, kept
		default:
			if !sleep(ctx, pause) {
				return killed, nil
			}
			pause = min(2*pause, stalePauseMax)
		}
	}
	return killed, nil
}

// sleep waits, unless ctx is done before.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// find returns the sockets that are stale, by the inode number of their network
// namespace, and whether some are about to connect to what is gone.
func (k *staleKiller) find() (found map[uint32][]diagSocket, connecting bool, err error) {
	all, err := iterate[staleStaleSock](k, staleProgLbStale)
	if err != nil {
		return nil, false, err
	}
	found = map[uint32][]diagSocket{}
	seen := map[uint64]bool{} // by cookie: several processes may have a socket
	for _, s := range all {
		if staleStaleAction(s.Action) == staleStaleActionSTALE_AGAIN {
			connecting = true
			continue
		}
		if seen[s.Cookie] {
			continue
		}
		seen[s.Cookie] = true
		found[s.Netns] = append(found[s.Netns], diagSocket{
			proto:  s.Proto,
			local:  addrPortOf(lbAddr(s.Local), s.LocalPort),
			peer:   addrPortOf(lbAddr(s.Peer), s.PeerPort),
			device: s.Device,
			cookie: s.Cookie,
		})
	}
	return found, connecting, nil
}

// members returns the oldest process in each network namespace.
func (k *staleKiller) members() (map[uint32]uint32, error) {
	all, err := iterate[staleStaleProcess](k, staleProgLbProcesses)
	pids := map[uint32]uint32{}
	for _, p := range all {
		if pid, ok := pids[p.Netns]; !ok || p.Pid < pid {
			pids[p.Netns] = p.Pid
		}
	}
	return pids, err
}

// iterate runs a program for every socket with an assignment, or for every process,
// and returns the records that it wrote.
func iterate[T any](k *staleKiller, prog string) (records []T, err error) {
	began := time.Now()
	defer func() { k.walked += time.Since(began) }()
	var r io.ReadCloser
	if prog == staleProgLbProcesses {
		r, err = iterator(link.IterOptions{Program: k.progs[prog]})
	} else {
		r, err = k.progs.overSockets(prog, k.maps)
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	// The kernel may pass over sockets when others vanish between two reads, so
	// reads take all that its buffer (32 KiB) holds.
	in := bufio.NewReaderSize(r, 1<<16)
	for {
		var record T
		err := binary.Read(in, binary.NativeEndian, &record)
		if errors.Is(err, io.EOF) {
			return records, nil
		}
		if err != nil {
			return nil, err
		}
		records = append(records, record)
	}
}

// destroy ends sockets, by network namespace. It returns how many it ended, and an
// error that names one of those that stay.
func (k *staleKiller) destroy(sockets map[uint32][]diagSocket) (n int, err error) {
	if len(sockets) == 0 {
		return 0, nil
	}
	inodes := make([]uint32, 0, len(sockets))
	for inode := range sockets {
		inodes = append(inodes, inode)
	}
	spaces, findErr := netns.Find(inodes, k.members)
	failed := netns.Each(spaces, func(inode uint32) error {
		ended, kept := destroyHere(sockets[inode])
		n += ended
		return kept
	})
	for inode, socks := range sockets {
		ns := spaces[inode]
		if ns == nil {
			err = fmt.Errorf("%d sockets connected to endpoints that are gone stay, such as %s: network namespace %d is not found: %w",
				len(socks), socks[0], inode, cmp.Or(findErr, errNoNamespace))
			continue
		}
		if kept := failed[inode]; kept != nil {
			err = fmt.Errorf("sockets connected to endpoints that are gone stay: network namespace %d: %w", inode, kept)
		}
		ns.Close()
	}
	return n, err
}

// errNoNamespace is all that is known of a network namespace that is not found.
var errNoNamespace = errors.New("no process is in it, and it is mounted nowhere")
