// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync/atomic"
	"time"

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

// served is how many probes a server has seen.
type served struct{ TCP, HTTP int64 }

// workerMain is this program's life as a worker. It returns at once in a process that is
// none.
func workerMain() {
	switch os.Getenv(envWork) {
	case workServe:
		if err := serveProbes(); err != nil {
			fmt.Fprintln(os.Stderr, "bench-failover server:", err)
			os.Exit(1)
		}
		os.Exit(0)
	case workBurn:
		for n := 0; ; n++ { // until it is killed
			runtimeSink.Store(int64(n))
		}
	}
}

var runtimeSink atomic.Int64

// serveProbes answers on both ports, and tells how often for every line that it reads.
func serveProbes() error {
	const backlog = "/proc/sys/net/core/somaxconn" // of this namespace
	if err := os.WriteFile(backlog, []byte("65535"), 0); err != nil {
		return err
	}
	var tcp, web atomic.Int64
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", tcpPort))
	if err != nil {
		return err
	}
	go func() {
		for {
			if c, err := l.Accept(); err == nil {
				tcp.Add(1)
				c.Close()
			}
		}
	}()
	h, err := net.Listen("tcp", fmt.Sprintf(":%d", httpPort))
	if err != nil {
		return err
	}
	go func() {
		_ = http.Serve(h, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { web.Add(1) })) // until this process ends
	}()
	out := json.NewEncoder(os.Stdout)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if err := out.Encode(served{tcp.Load(), web.Load()}); err != nil {
			return err
		}
	}
	return nil
}

// worker is such a process.
type worker struct {
	cmd *exec.Cmd
	in  *bufio.Writer
	out *json.Decoder
}

func startWorker(ctx context.Context, h *lab.Host, work string) (*worker, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := h.Command(ctx, exe)
	cmd.Env = append(os.Environ(), envWork+"="+work)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := h.Start(cmd); err != nil {
		return nil, err
	}
	return &worker{cmd, bufio.NewWriter(in), json.NewDecoder(out)}, nil
}

// served asks a server.
func (w *worker) served() (s served, at time.Time, err error) {
	if _, err = w.in.WriteString("?\n"); err == nil {
		err = w.in.Flush()
	}
	if err == nil {
		err = w.out.Decode(&s)
	}
	return s, time.Now(), err
}

// stop ends the worker.
func (w *worker) stop() {
	_ = w.cmd.Process.Kill() // an error says that it has ended already
	_ = w.cmd.Wait()         // killed: there is no other way for it to end
}
