// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/bench/internal/node"
)

// The floor is a program in Go that reads the watch of EndpointSlices and does
// nothing with it: what any program of that kind takes on this machine at this
// moment, with the wake-up of its processor, the way through the socket, and the
// bench's own looking.
const (
	floorName = "floor"
	envFloor  = "LBPROXY_BENCH_FLOOR" // the URL of the API server
	envWord   = "LBPROXY_BENCH_WORD"  // the file that counts events
)

// floorMain turns this process into the floor if it was started as one.
func floorMain() {
	url := os.Getenv(envFloor)
	if url == "" {
		return
	}
	fmt.Fprintln(os.Stderr, "floor:", floor(url, os.Getenv(envWord)))
	os.Exit(1)
}

// mapWord maps the first 8 bytes of a file.
func mapWord(path string) (*uint64, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(int64(unix.Getpagesize())); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return (*uint64)(unsafe.Pointer(&mem[0])), nil // mapped until the process ends
}

// floor counts the events of a watch until it ends.
func floor(url, path string) error {
	word, err := mapWord(path)
	if err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodGet, url+"/apis/discovery.k8s.io/v1/endpointslices?watch=true&sendInitialEvents=true", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/vnd.kubernetes.protobuf")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	frame := make([]byte, 1<<20)
	for {
		if _, err := io.ReadFull(resp.Body, frame[:4]); err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(frame)
		if int(n) > len(frame) {
			return fmt.Errorf("an event of %d bytes", n)
		}
		if _, err := io.ReadFull(resp.Body, frame[:n]); err != nil {
			return err
		}
		atomic.AddUint64(word, 1)
	}
}

// counted sees events arrive at the floor.
type counted struct {
	word    *uint64
	seen    uint64
	pending []netip.Addr
}

// newFloor starts the floor in a place of its own.
func newFloor(ctx context.Context, w *world) (_ *site, err error) {
	p, err := newPlace(w)
	if err != nil {
		return nil, err
	}
	s := newSite(arm{name: floorName, pause: 15 * time.Millisecond}, p)
	defer func() {
		if err != nil {
			err = errors.Join(p.Explain(fmt.Errorf("%s: %w", floorName, err)), s.close())
		}
	}()
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(p.Lab.Dir(), "word")
	d := &counted{}
	if d.word, err = mapWord(path); err != nil {
		return nil, err
	}
	if err := p.Start(ctx, []string{envFloor + "=" + p.URL, envWord + "=" + path}, exe); err != nil {
		return nil, err
	}
	all := uint64(1) // the bookmark
	for _, slices := range w.slices {
		all += uint64(len(slices))
	}
	if err := node.Await(ctx, 20*time.Second, 2*time.Millisecond, func() (bool, error) { return atomic.LoadUint64(d.word) == all, nil }); err != nil {
		return nil, err
	}
	d.seen, s.detect = all, d
	return s, nil
}

func (d *counted) expect(_ int, addr netip.Addr) { d.pending = append(d.pending, addr) }

func (d *counted) arrived() (map[netip.Addr]time.Time, error) {
	n := min(int(atomic.LoadUint64(d.word)-d.seen), len(d.pending))
	if n == 0 {
		return nil, nil
	}
	got := map[netip.Addr]time.Time{}
	for _, addr := range d.pending[:n] {
		got[addr] = time.Now()
	}
	d.pending, d.seen = d.pending[n:], d.seen+uint64(n)
	return got, nil
}

func (d *counted) pause() time.Duration { return 10 * time.Microsecond }
func (d *counted) close() error         { return nil } // the word stays mapped
