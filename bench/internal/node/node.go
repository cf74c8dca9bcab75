// SPDX-License-Identifier: Apache-2.0

// Package node is a node of a lab with an API server on its loopback, on which one proxy
// runs at a time: lbproxy or a real kube-proxy.
package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/observe"
	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	healthAddr  = "127.0.0.1:10256"
	metricsAddr = "127.0.0.1:10249"
	poll        = 2 * time.Millisecond
)

// Node is a lab's node. Nothing else can reach its API server.
type Node struct {
	Lab        *lab.Lab
	URL        string // of the API server
	Kubeconfig string
	Cmd        *exec.Cmd // nil: nothing runs
	Began      time.Time // when Cmd was started

	server *http.Server
	log    string // where Cmd writes
}

// New takes a lab over, which Close closes.
func New(l *lab.Lab, api http.Handler) (_ *Node, err error) {
	n := &Node{Lab: l, server: &http.Server{Handler: api}}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	var listener net.Listener
	err = l.Host(lab.Node).Do(func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("fake API server: %w", err)
	}
	go func() { _ = n.server.Serve(listener) }() // until Close
	n.URL = "http://" + listener.Addr().String()
	n.Kubeconfig = filepath.Join(l.Dir(), "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: fake, cluster: {server: %q}}]
users: [{name: nobody, user: {}}]
contexts: [{name: fake, context: {cluster: fake, user: nobody}}]
current-context: fake
`, n.URL)
	return n, os.WriteFile(n.Kubeconfig, []byte(text), 0o600)
}

// Close ends everything there.
func (n *Node) Close() error {
	n.Kill()
	return errors.Join(n.server.Close(), n.Lab.Close())
}

// Start starts a program on the node, with more in its environment.
func (n *Node) Start(ctx context.Context, env []string, path string, args ...string) error {
	n.log = filepath.Join(n.Lab.Dir(), filepath.Base(path)+".log")
	log, err := os.Create(n.log)
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	defer log.Close()
	n.Cmd = n.Lab.Host(lab.Node).Command(ctx, path, args...)
	n.Cmd.Stdout, n.Cmd.Stderr = log, log
	n.Cmd.Env = append(os.Environ(), env...)
	n.Began = time.Now()
	if err := n.Lab.Host(lab.Node).Start(n.Cmd); err != nil {
		n.Cmd = nil
		return err
	}
	return nil
}

// Kill ends the program, if there is one.
func (n *Node) Kill() {
	if n.Cmd != nil {
		_ = n.Cmd.Process.Kill() // an error says that it has ended already
		_ = n.Cmd.Wait()         // killed: there is no other way for it to end
		n.Cmd = nil
	}
}

// PID is that of the program.
func (n *Node) PID() int { return n.Cmd.Process.Pid }

// Explain adds what the program last said to err.
func (n *Node) Explain(err error) error {
	if err == nil || n.log == "" {
		return err
	}
	text, _ := os.ReadFile(n.log)
	var lines []string
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, "nfacct") { // which kube-proxy misses at each scrape
			lines = append(lines, line)
		}
	}
	return fmt.Errorf("%w; its log ends with\n%s", err, strings.Join(lines[max(0, len(lines)-5):], ""))
}

// Metrics scrapes the program.
func (n *Node) Metrics() (map[string]float64, error) {
	_, text, err := observe.Get(n.Lab.Host(lab.Node), metricsAddr, "/metrics")
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return observe.Metrics(text), nil
}

// Await calls done until it returns true.
func Await(ctx context.Context, limit, every time.Duration, done func() (bool, error)) error {
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if err := Sleep(ctx, every); err != nil {
			return err
		}
	}
	return fmt.Errorf("not within %s", limit)
}

// Sleep sleeps, unless ctx ends.
func Sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
