// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	healthAddr  = "127.0.0.1:10256"
	metricsAddr = "127.0.0.1:10249"
)

// result is what a command that has ended said.
type result struct {
	args           []string
	stdout, stderr string
	code           int
}

// command prepares a run of lbproxy on the node. Its output is the caller's.
func (r *rig) command(args ...string) *exec.Cmd {
	cmd := r.lab.Host(lab.Node).Command(r.bounded(), program, args...)
	cmd.Dir, cmd.Env = r.home, r.env()
	return cmd
}

// lbproxy runs a verb on the node until it ends.
func (r *rig) lbproxy(args ...string) result {
	r.t.Helper()
	return r.finish(r.command(args...))
}

// finish starts cmd on the node and waits for its end.
func (r *rig) finish(cmd *exec.Cmd) result {
	r.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := r.lab.Host(lab.Node).Start(cmd); err != nil {
		r.t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		r.t.Fatalf("%v: %v", cmd.Args, err)
	}
	return result{cmd.Args, stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// want checks the exit code, and that the output has every text.
func (res result) want(t *testing.T, code int, texts ...string) {
	t.Helper()
	if res.code != code {
		t.Errorf("%q: exit code %d, want %d\nstdout: %s\nstderr: %s", res.args, res.code, code, res.stdout, res.stderr)
	}
	for _, text := range texts {
		if !strings.Contains(res.stdout+res.stderr, text) {
			t.Errorf("%q: does not say %q\nstdout: %s\nstderr: %s", res.args, text, res.stdout, res.stderr)
		}
	}
}

// wantOneLine checks that an error is one line that a user can read.
func (res result) wantOneLine(t *testing.T) {
	t.Helper()
	if strings.Count(res.stderr, "\n") != 1 || !strings.HasPrefix(res.stderr, "lbproxy: ") {
		t.Errorf("%q: stderr %q, want one line that starts with lbproxy:", res.args, res.stderr)
	}
}

// log is a process's output, which grows.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write adds to the log.
func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// line returns the first line that has every text, or nothing.
func (l *log) line(texts ...string) string {
	for line := range strings.Lines(l.String()) {
		has := true
		for _, text := range texts {
			has = has && strings.Contains(line, text)
		}
		if has {
			return line
		}
	}
	return ""
}

// agent is an lbproxy run that has not been waited for.
type agent struct {
	r     *rig
	cmd   *exec.Cmd
	log   log
	ended chan struct{} // closed when cmd has ended
}

// launch starts cmd, which is a run of lbproxy, in the background.
func (r *rig) launch(cmd *exec.Cmd) *agent {
	r.t.Helper()
	a := &agent{r: r, cmd: cmd, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &a.log, &a.log
	if err := r.lab.Host(lab.Node).Start(cmd); err != nil {
		r.t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait() // its state tells
		close(a.ended)
	}()
	r.t.Cleanup(func() {
		_ = cmd.Process.Kill() // an error says that it has ended already
		<-a.ended
		if r.t.Failed() {
			r.t.Logf("log of %q:\n%s", cmd.Args, a.log.String())
		}
	})
	return a
}

// run starts lbproxy on the rig's manifests and waits until it is ready.
func (r *rig) run(flags ...string) *agent {
	r.t.Helper()
	a := r.start(flags...)
	a.awaitReady()
	return a
}

// start does not wait.
func (r *rig) start(flags ...string) *agent {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), program, r.runArgs(flags...)...)
	cmd.Dir, cmd.Env = r.home, r.env()
	return r.launch(cmd)
}

// runArgs are the arguments of a run on the rig's manifests.
func (r *rig) runArgs(flags ...string) []string {
	return append([]string{
		"run", "--manifests=" + r.dir, "--node-name=" + lab.Node,
		"--cluster-cidr=" + lab.ClusterPods4.String() + "," + lab.ClusterPods6.String(),
	}, flags...)
}

// awaitReady waits until the agent says that the kernel does what the manifests
// say.
func (a *agent) awaitReady() {
	a.r.t.Helper()
	eventually(a.r.t, "readyz says 200", func() bool {
		select {
		case <-a.ended:
			a.r.t.Fatalf("lbproxy run ended: %s\n%s", a.cmd.ProcessState, a.log.String())
		default:
		}
		code, _, err := a.r.get(healthAddr, "/readyz")
		return err == nil && code == http.StatusOK
	})
}

// awaitLog waits for a line with every text.
func (a *agent) awaitLog(texts ...string) {
	a.r.t.Helper()
	eventually(a.r.t, "the log has "+strings.Join(texts, " and "), func() bool { return a.log.line(texts...) != "" })
}

// end sends a signal and returns the exit code; -1 means killed.
func (a *agent) end(sig syscall.Signal) int {
	a.r.t.Helper()
	if err := a.cmd.Process.Signal(sig); err != nil {
		a.r.t.Fatal(err)
	}
	select {
	case <-a.ended:
	case <-time.After(patience):
		a.r.t.Fatalf("lbproxy run goes on after %s", sig)
	}
	return a.cmd.ProcessState.ExitCode()
}

// alive tells whether the agent runs.
func (a *agent) alive() bool {
	select {
	case <-a.ended:
		return false
	default:
		return true
	}
}

// get fetches a page on the node.
func (r *rig) get(address, path string) (code int, body string, err error) {
	var conn net.Conn
	err = r.lab.Host(lab.Node).Do(func() (err error) { // net/http would dial on another thread
		conn, err = net.DialTimeout("tcp", address, time.Second)
		return err
	})
	if err != nil {
		return 0, "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return 0, "", err
	}
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.0\r\n\r\n"); err != nil {
		return 0, "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// metric returns a sample's value as text, or nothing.
func (r *rig) metric(sample string) string {
	_, body, err := r.get(metricsAddr, "/metrics")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, sample+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// mountsOf lists where file systems of a type are mounted, inner ones first.
func mountsOf(fstype string) ([]string, error) {
	text, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return nil, err
	}
	var dirs []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == fstype {
			dirs = append([]string{f[1]}, dirs...)
		}
	}
	return dirs, nil
}
