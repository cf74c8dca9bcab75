// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	healthAddr   = "127.0.0.1:10256"
	readyTimeout = 2 * time.Minute
	pollInterval = 10 * time.Millisecond
)

// agent is `lbproxy run` on the lab's node.
type agent struct {
	lab       *lab.Lab
	program   string
	manifests string

	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended
	state  string        // how it ended, once exited is closed
}

func (a *agent) logPath() string { return filepath.Join(a.lab.Dir(), "lbproxy.log") }

// args are the arguments that every verb needs to find this node's state.
func (a *agent) args() []string { return []string{"--bpffs=" + a.lab.BPFFS()} }

// start starts lbproxy and waits until it is ready. It returns how long that took.
func (a *agent) start(ctx context.Context) (time.Duration, error) {
	log, err := os.OpenFile(a.logPath(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, fmt.Errorf("log: %w", err)
	}
	defer log.Close()
	began := time.Now()
	a.cmd = a.lab.Host(lab.Node).Command(ctx, a.program, append([]string{
		"run",
		"--manifests=" + a.manifests,
		"--node-name=" + lab.Node,
		"--cgroup-root=" + a.lab.CgroupRoot(),
		"--state-dir=" + filepath.Join(a.lab.Dir(), "state"),
		"--cluster-cidr=" + lab.ClusterPods4.String() + "," + lab.ClusterPods6.String(),
		"--healthz-bind-address=" + healthAddr,
		"--metrics-bind-address=127.0.0.1:10249",
	}, a.args()...)...)
	a.cmd.Stdout, a.cmd.Stderr = log, log
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the demo, which then cleans up
	if err := a.lab.Host(lab.Node).Start(a.cmd); err != nil {
		return 0, err
	}
	a.exited = make(chan struct{})
	go func() {
		_ = a.cmd.Wait() // its state tells
		a.state = a.cmd.ProcessState.String()
		close(a.exited)
	}()
	if err := a.awaitReady(ctx); err != nil {
		return 0, fmt.Errorf("lbproxy run: %w; the end of its log:\n%s", err, a.logTail())
	}
	return time.Since(began), nil
}

// awaitReady polls /readyz in the node's network namespace.
func (a *agent) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		err := a.readyz()
		if err == nil {
			return nil
		}
		select {
		case <-a.exited:
			return fmt.Errorf("it ended: %s", a.state)
		case <-ctx.Done():
			return fmt.Errorf("not ready after %s: %w", readyTimeout, err)
		case <-time.After(pollInterval):
		}
	}
}

// readyz returns nil if lbproxy says that the kernel does what the manifests say.
func (a *agent) readyz() error {
	var conn net.Conn
	err := a.lab.Host(lab.Node).Do(func() (err error) { // net/http would dial on another thread
		conn, err = net.DialTimeout("tcp", healthAddr, time.Second)
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "GET /readyz HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		return fmt.Errorf("readyz: %s: %s", resp.Status, bytes.TrimSpace(body))
	}
	return nil
}

// kill ends lbproxy without warning, as a crash would.
func (a *agent) kill() error {
	if err := a.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill lbproxy: %w", err)
	}
	<-a.exited
	return nil
}

// logTail is the end of lbproxy's log.
func (a *agent) logTail() string {
	text, err := os.ReadFile(a.logPath())
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-15):], []byte("\n")))
}
