// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/node"
)

// envHolder makes this process one that holds a connected UDP socket, see holder.
const envHolder = "LBPROXY_BENCH_HOLDER"

// holderMain turns this process into a holder if it was started as one.
func holderMain() {
	if os.Getenv(envHolder) == "" {
		return
	}
	fmt.Fprintln(os.Stderr, "holder:", holder(os.Stdin, os.Stdout))
	os.Exit(1)
}

func holderName(i int) string { return fmt.Sprint("holder-", i) }

// holder connects a UDP socket to each address that it reads, says so, waits for an
// error, and says when that came, in nanoseconds since 1970.
func holder(in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		conn, err := net.Dial("udp4", lines.Text())
		if err != nil {
			return err
		}
		fmt.Fprintln(out, "connected")
		_, err = conn.Read(make([]byte, 1))
		at := time.Now()
		if err == nil {
			return errors.New("somebody answered")
		}
		fmt.Fprintln(out, at.UnixNano(), err)
		if err := conn.Close(); err != nil {
			return err
		}
	}
	return lines.Err()
}

// held is a holder, from outside.
type held struct {
	name string
	in   io.WriteCloser
	out  *bufio.Scanner
	cmd  *exec.Cmd
}

// hold starts a holder in each pod that is to have one.
func (p *place) hold(ctx context.Context) (all []*held, err error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("holder: %w", err)
	}
	for i := range p.world.holders {
		host := p.Lab.Host(holderName(i))
		h := &held{name: host.Name, cmd: host.Command(ctx, exe)}
		h.cmd.Env = append(os.Environ(), envHolder+"=1")
		h.cmd.Stderr = os.Stderr
		if h.in, err = h.cmd.StdinPipe(); err != nil {
			return all, fmt.Errorf("%s: %w", h.name, err)
		}
		out, err := h.cmd.StdoutPipe()
		if err != nil {
			return all, fmt.Errorf("%s: %w", h.name, err)
		}
		h.out = bufio.NewScanner(out)
		if err := host.Start(h.cmd); err != nil {
			return all, err
		}
		all = append(all, h)
	}
	return all, nil
}

func (h *held) end() {
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait() // killed: there is no other way for it to end
}

// line returns what the holder says next.
func (h *held) line() (string, error) {
	if !h.out.Scan() {
		return "", fmt.Errorf("%s: ended: %w", h.name, errors.Join(h.out.Err(), io.EOF))
	}
	return h.out.Text(), nil
}

// connect makes the holder connect, and waits until it has.
func (h *held) connect(to netip.AddrPort) error {
	if _, err := fmt.Fprintln(h.in, to); err != nil {
		return fmt.Errorf("%s: %w", h.name, err)
	}
	if text, err := h.line(); err != nil || text != "connected" {
		return fmt.Errorf("%s: connect to %s: said %q: %w", h.name, to, text, err)
	}
	return nil
}

// destroyed waits for the error of the holder's socket, and returns when it came.
func (h *held) destroyed() (time.Time, error) {
	text, err := h.line()
	if err != nil {
		return time.Time{}, err
	}
	var at int64
	if _, err := fmt.Sscan(text, &at); err != nil || !strings.HasSuffix(text, "software caused connection abort") {
		return time.Time{}, fmt.Errorf("%s: its socket ended with %q", h.name, text)
	}
	return time.Unix(0, at), nil
}

// destroy measures how long UDP sockets stay that are connected to an endpoint which is
// removed, in network namespaces of their own.
func (b *bench) destroy(ctx context.Context, a arm) (err error) {
	if b.removals == 0 {
		return nil
	}
	w := &world{scale: b.stale, holders: b.holders}
	if err := w.fill(); err != nil {
		return err
	}
	s, err := cold(ctx, a, w, b.cold)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	b.log("%s, %s: %d removals, %d network namespaces", a.name, w.scale, b.removals, b.holders)
	all, err := s.place.hold(ctx)
	defer func() {
		for _, h := range all {
			h.end()
		}
	}()
	if err != nil {
		return err
	}
	var took []float64
	for range b.removals {
		ms, err := s.removal(ctx, all)
		if err != nil {
			return s.place.Explain(err)
		}
		took = append(took, ms...)
	}
	slices.Sort(took)
	s.set(rowStaleP50, quantile(took, 0.5), "ms", len(took))
	s.set(rowStaleP99, quantile(took, 0.99), "ms", len(took))
	s.set(rowStaleMax, took[len(took)-1], "ms", len(took))
	b.report.add(s)
	return nil
}

// removal connects all holders to the one endpoint of a Service, puts another pod in its
// place, and returns how long each socket stayed, in milliseconds.
func (s *site) removal(ctx context.Context, all []*held) (took []float64, err error) {
	i := s.rng.IntN(s.place.world.services)
	for _, h := range all {
		if err := h.connect(netip.AddrPortFrom(plus(firstVIP, i), servicePort)); err != nil {
			return nil, err
		}
	}
	if err := node.Sleep(ctx, s.pause); err != nil {
		return nil, err
	}
	_, begin, err := s.change(i)
	if err != nil {
		return nil, err
	}
	for _, h := range all {
		at, err := h.destroyed()
		if err != nil {
			return nil, err
		}
		took = append(took, ms(at.Sub(begin)))
	}
	_, err = s.detect.arrived() // nobody waits for it
	return took, err
}
