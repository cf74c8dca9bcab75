// SPDX-License-Identifier: Apache-2.0

//go:build root

package ebpf

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A client is this test binary, run in a host of the lab and in its cgroup: it does
// with sockets what package net does not. It carries out one of the scripts, says
// "ready" when it holds what it should hold, and goes on when it reads a line.
const envScript = "LBPROXY_TEST_SCRIPT"

// script is what a client does; to is a VIP, step waits for the test.
type script func(to netip.AddrPort, n int, step func()) error

var scripts = map[string]script{
	"dup":        scriptDup,
	"fork":       scriptFork,
	"again":      scriptAgain,
	"disconnect": scriptDisconnect,
	"udp":        scriptUDP,
	"mill":       scriptMill,
	"speak":      scriptSpeak,
	"impatient":  scriptImpatient,
	"mute":       scriptMute,
	"other":      scriptOther,
}

// clientMain runs a script if this process was started for that.
func clientMain() {
	name := os.Getenv(envScript)
	if name == "" {
		return
	}
	in := bufio.NewReader(os.Stdin)
	step := func() {
		fmt.Fprintln(os.Stdout, "ready")
		if _, err := in.ReadString('\n'); err != nil {
			os.Exit(0) // the test is over
		}
	}
	n, err := strconv.Atoi(os.Args[2])
	if err == nil {
		err = scripts[name](netip.MustParseAddrPort(os.Args[1]), n, step)
	}
	if err != nil {
		fmt.Fprintln(os.Stdout, err)
		os.Exit(1)
	}
	step()
	os.Exit(0)
}

// client is a running script.
type client struct {
	t   *testing.T
	cmd *exec.Cmd
	in  interface{ Write([]byte) (int, error) }
	out *bufio.Reader
}

// startClient starts a script in a host of the lab; client2 is not hooked.
func (r *rig) startClient(host, name, to string, n int) *client {
	r.t.Helper()
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	cgroup, err := os.Open(filepath.Join(r.lab.CgroupRoot()))
	if err != nil {
		r.t.Fatal(err)
	}
	defer cgroup.Close()
	c := &client{t: r.t, cmd: exec.Command(self, to, strconv.Itoa(n))}
	c.cmd.Env = append(os.Environ(), envScript+"="+name)
	c.cmd.Stderr = os.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: host != "client2", CgroupFD: int(cgroup.Fd())}
	in, err := c.cmd.StdinPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	c.in, c.out = in, bufio.NewReader(out)
	if err := r.lab.Host(host).Do(c.cmd.Start); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.kill)
	return c
}

// ready waits until the client has reached its next step.
func (c *client) ready() {
	c.t.Helper()
	line, err := c.out.ReadString('\n')
	if err != nil || line != "ready\n" {
		c.t.Fatalf("client: %q, %v", line, err)
	}
}

// next lets the client go on, and waits for its next step.
func (c *client) next() {
	c.t.Helper()
	if _, err := c.in.Write([]byte("\n")); err != nil {
		c.t.Fatal(err)
	}
	c.ready()
}

func (c *client) kill() {
	_ = c.cmd.Process.Kill() // it may be gone
	_ = c.cmd.Wait()
}

func sockaddr(to netip.AddrPort) unix.Sockaddr {
	return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
}

// dialFD connects a socket.
func dialFD(to netip.AddrPort, kind int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// scriptDup duplicates a connected socket and closes one after the other.
func scriptDup(to netip.AddrPort, _ int, step func()) error {
	fd, err := dialFD(to, unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	again, err := unix.Dup(fd)
	if err != nil {
		return err
	}
	step()
	unix.Close(fd)
	step()
	unix.Close(again)
	return nil
}

// scriptFork leaves a connected socket to a child, which outlives the parent's use.
func scriptFork(to netip.AddrPort, _ int, step func()) error {
	fd, err := dialFD(to, unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	child := exec.Command("/bin/sh", "-c", "read line")
	child.ExtraFiles = []*os.File{os.NewFile(uintptr(fd), "socket")}
	in, err := child.StdinPipe()
	if err != nil {
		return err
	}
	if err := child.Start(); err != nil {
		return err
	}
	child.ExtraFiles[0].Close()
	step()
	if _, err := in.Write([]byte("\n")); err != nil {
		return err
	}
	return child.Wait()
}

// scriptAgain connects one socket again and again: to a port that refuses, to the
// VIP, and after a disconnect to the VIP once more.
func scriptAgain(to netip.AddrPort, _ int, step func()) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	closed := netip.AddrPortFrom(to.Addr(), to.Port()+1)
	if err := unix.Connect(fd, sockaddr(closed)); !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("connect to a closed port: %w", err)
	}
	step()
	for range 2 {
		if err := unix.Connect(fd, sockaddr(to)); err != nil {
			return err
		}
		step()
		if err := disconnect(fd); err != nil {
			return err
		}
		step()
	}
	return nil
}

// disconnect dissolves a socket's association: connect() to AF_UNSPEC.
func disconnect(fd int) error {
	var sa [16]byte
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(len(sa)))
	if errno != 0 {
		return errno
	}
	return nil
}

// scriptDisconnect connects a UDP socket, connects it again, and disconnects it.
func scriptDisconnect(to netip.AddrPort, _ int, step func()) error {
	fd, err := dialFD(to, unix.SOCK_DGRAM)
	if err != nil {
		return err
	}
	step()
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		return err
	}
	step()
	if err := disconnect(fd); err != nil {
		return err
	}
	step()
	return nil
}

// scriptUDP sends n datagrams, each from a socket of its own, and keeps the sockets.
func scriptUDP(to netip.AddrPort, n int, step func()) error {
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err == nil {
			err = unix.Sendto(fd, []byte("x"), 0, sockaddr(to))
		}
		if err != nil {
			return err
		}
	}
	step()
	return nil
}

// scriptSpeak opens n connections, one after the other, writes to each and waits
// for an answer.
func scriptSpeak(to netip.AddrPort, n int, step func()) error {
	step()
	for range n {
		fd, err := dialFD(to, unix.SOCK_STREAM)
		if err != nil {
			return err
		}
		var buf [64]byte
		if _, err := unix.Write(fd, []byte("hello")); err != nil {
			return err
		}
		if _, err := unix.Read(fd, buf[:]); err != nil {
			return err
		}
		unix.Close(fd)
	}
	return nil
}

// scriptMill makes n connections and ends them in all ways, some kept to the end.
func scriptMill(to netip.AddrPort, n int, step func()) error {
	const workers = 4
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	for range workers {
		wg.Go(func() {
			for {
				i := int(next.Add(1))
				if i > n {
					return
				}
				if err := mill(to, i); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	if err := <-errs; err != nil {
		return err
	}
	step()
	return nil
}

// mill makes one connection.
func mill(to netip.AddrPort, i int) error {
	kind := unix.SOCK_STREAM
	switch {
	case i%7 == 0: // refused
		to = netip.AddrPortFrom(to.Addr(), to.Port()+1)
	case i%5 == 0:
		kind = unix.SOCK_DGRAM
	}
	fd, err := dialFD(to, kind)
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return nil
	case err != nil:
		return err
	}
	switch {
	case i%1000 == 1: // kept until the process ends
		return nil
	case kind == unix.SOCK_STREAM && i%11 != 0: // all others end with a FIN
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return err
		}
	}
	return unix.Close(fd)
}
