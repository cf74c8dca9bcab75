// SPDX-License-Identifier: Apache-2.0

package main

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

// place is a node in a lab with an API server on its loopback, which nothing else
// can reach, and at most one program.
type place struct {
	lab        *lab.Lab
	world      *world
	server     *http.Server
	url        string // of the API server
	kubeconfig string
	cmd        *exec.Cmd
	began      time.Time // when cmd was started
	log        string    // where cmd writes
}

func newPlace(w *world) (_ *place, err error) {
	p := &place{world: w, server: &http.Server{Handler: w.api}}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if p.lab, err = lab.New(lab.Options{Name: "control", Pods: w.pods()}); err != nil {
		return nil, err
	}
	if w.served {
		if err := p.serve(); err != nil {
			return nil, err
		}
	}
	var l net.Listener
	err = p.lab.Host(lab.Node).Do(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("fake API server: %w", err)
	}
	go func() { _ = p.server.Serve(l) }() // until Close
	p.url = "http://" + l.Addr().String()
	p.kubeconfig = filepath.Join(p.lab.Dir(), "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: fake, cluster: {server: %q}}]
users: [{name: nobody, user: {}}]
contexts: [{name: fake, context: {cluster: fake, user: nobody}}]
current-context: fake
`, p.url)
	return p, os.WriteFile(p.kubeconfig, []byte(text), 0o600)
}

// Close ends everything there.
func (p *place) Close() error {
	p.kill()
	err := p.server.Close()
	if p.lab != nil {
		err = errors.Join(err, p.lab.Close())
	}
	return err
}

// start starts a program on the node, with more in its environment.
func (p *place) start(ctx context.Context, env []string, path string, args ...string) error {
	p.log = filepath.Join(p.lab.Dir(), filepath.Base(path)+".log")
	log, err := os.Create(p.log)
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	defer log.Close()
	p.cmd = p.lab.Host(lab.Node).Command(ctx, path, args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(os.Environ(), env...)
	p.began = time.Now()
	if err := p.lab.Host(lab.Node).Start(p.cmd); err != nil {
		p.cmd = nil
		return err
	}
	return nil
}

// kill ends the program, if there is one.
func (p *place) kill() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill() // an error says that it has ended already
		_ = p.cmd.Wait()         // killed: there is no other way for it to end
		p.cmd = nil
	}
}

func (p *place) pid() int { return p.cmd.Process.Pid }

// explain adds what the program last said to err.
func (p *place) explain(err error) error {
	if err == nil || p.log == "" {
		return err
	}
	text, _ := os.ReadFile(p.log)
	var lines []string
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, "nfacct") { // which kube-proxy misses at each scrape
			lines = append(lines, line)
		}
	}
	return fmt.Errorf("%w; its log ends with\n%s", err, strings.Join(lines[max(0, len(lines)-5):], ""))
}

// metrics scrapes the program.
func (p *place) metrics() (map[string]float64, error) {
	_, text, err := observe.Get(p.lab.Host(lab.Node), metricsAddr, "/metrics")
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return observe.Metrics(text), nil
}

// await calls done until it returns true.
func await(ctx context.Context, limit, every time.Duration, done func() (bool, error)) error {
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if err := sleep(ctx, every); err != nil {
			return err
		}
	}
	return fmt.Errorf("not within %s", limit)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
