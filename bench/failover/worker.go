// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// envWork says that this process is a worker in a lab, and which.
const (
	envWork   = "LBPROXY_FAILOVER_WORK"
	workServe = "serve" // answers probes
	workBurn  = "burn"  // keeps one processor busy
)

const (
	tcpPort  = 8080
	httpPort = 8081
)

// workerMain is this program's life as a worker. It returns at once in a process that is
// none.
func workerMain() {
	switch os.Getenv(envWork) {
	case workServe:
		fmt.Fprintln(os.Stderr, "bench-failover server:", serveProbes())
		os.Exit(1)
	case workNull:
		fmt.Fprintln(os.Stderr, "bench-failover null program:", nullProbes())
		os.Exit(1)
	case workBurn:
		for n := 0; ; n++ { // until it is killed
			burnt.Store(int64(n))
		}
	}
}

var burnt atomic.Int64

// serveProbes answers on both ports until it is killed.
func serveProbes() error {
	const backlog = "/proc/sys/net/core/somaxconn" // of this namespace
	if err := os.WriteFile(backlog, []byte("65535"), 0); err != nil {
		return err
	}
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", tcpPort))
	if err != nil {
		return err
	}
	go func() {
		for {
			if c, err := l.Accept(); err == nil {
				c.Close()
			}
		}
	}()
	return http.ListenAndServe(fmt.Sprintf(":%d", httpPort), http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
}

// startWorker starts such a process on a host, which writes to out.
func startWorker(ctx context.Context, h *lab.Host, work string, out io.Writer, env ...string) (stop func(), err error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := h.Command(ctx, exe)
	cmd.Env = append(append(os.Environ(), envWork+"="+work), env...)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	if err := h.Start(cmd); err != nil {
		return nil, err
	}
	return func() {
		_ = cmd.Process.Kill() // an error says that it has ended already
		_ = cmd.Wait()         // killed: there is no other way for it to end
	}, nil
}
