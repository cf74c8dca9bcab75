// SPDX-License-Identifier: Apache-2.0

// Package launch runs lbproxy on nodes of labs, on manifests.
package launch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lbproxy/lbproxy/bench/internal/observe"
	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	healthAddr  = "127.0.0.1:10256"
	metricsAddr = "127.0.0.1:10249"
	poll        = 5 * time.Millisecond
	readyLimit  = 2 * time.Minute
)

// Agent is an lbproxy run that has not been waited for.
type Agent struct {
	Began time.Time // when it was started

	host *lab.Host
	cmd  *exec.Cmd
	log  string // where it writes
}

// Start starts a program on a node, with flags more than are needed to keep it inside of
// the lab. What it writes goes to the end of a file.
func Start(ctx context.Context, l *lab.Lab, node, program, manifests string, flags ...string) (*Agent, error) {
	path, err := filepath.Abs(program)
	if err != nil {
		return nil, fmt.Errorf("lbproxy: %w", err)
	}
	h := l.Host(node)
	a := &Agent{host: h, log: filepath.Join(l.Dir(), node+".log")}
	log, err := os.OpenFile(a.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lbproxy: %w", err)
	}
	defer log.Close()
	a.cmd = h.Command(ctx, path, append([]string{"run",
		"--manifests=" + manifests, "--node-name=" + node, "--cgroup-root=" + h.CgroupRoot(), "--bpffs=" + h.BPFFS(),
		"--state-dir=" + filepath.Join(l.Dir(), node+"-state"),
		"--cluster-cidr=" + lab.ClusterPods4.String() + "," + lab.ClusterPods6.String(),
		"--healthz-bind-address=" + healthAddr, "--metrics-bind-address=" + metricsAddr}, flags...)...)
	a.cmd.Stdout, a.cmd.Stderr = log, log
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the bench, which then cleans up
	a.Began = time.Now()
	if err := h.Start(a.cmd); err != nil {
		return nil, err
	}
	return a, nil
}

// Await polls /readyz until it is OK. It returns when there was a first answer.
func (a *Agent) Await(ctx context.Context) (first time.Duration, err error) {
	for time.Since(a.Began) < readyLimit {
		status, _, err := observe.Get(a.host, healthAddr, "/readyz")
		if err == nil && first == 0 {
			first = time.Since(a.Began)
		}
		if err == nil && status == http.StatusOK {
			return first, nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(poll):
		}
	}
	return 0, errors.New("not ready after 2 minutes")
}

// PID is that of the process.
func (a *Agent) PID() int { return a.cmd.Process.Pid }

// Metrics scrapes it.
func (a *Agent) Metrics() (map[string]float64, error) {
	_, text, err := observe.Get(a.host, metricsAddr, "/metrics")
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return observe.Metrics(text), nil
}

// Kill ends it without warning.
func (a *Agent) Kill() {
	_ = a.cmd.Process.Kill() // an error says that it has ended already
	_ = a.cmd.Wait()         // killed: there is no other way for it to end
}

// Log is what was written by all agents of the node.
func (a *Agent) Log() string {
	text, err := os.ReadFile(a.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Explain adds what it last said to err.
func (a *Agent) Explain(err error) error {
	if err == nil {
		return nil
	}
	lines := strings.SplitAfter(a.Log(), "\n")
	return fmt.Errorf("lbproxy on %s: %w; its log ends with\n%s", a.host.Name, err, strings.Join(lines[max(0, len(lines)-10):], ""))
}
