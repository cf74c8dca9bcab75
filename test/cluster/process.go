// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// process is a server that this package started and has to stop.
type process struct {
	name  string
	cmd   *exec.Cmd
	log   string        // path of its output
	stdin io.Closer     // the server ends when this closes, as it does if we die
	done  chan struct{} // closed once the process is reaped
}

// spawn runs path with args through start, its output appended to
// dir/name.log.
func spawn(name, dir string, start func(*exec.Cmd) error, path string, args ...string) (*process, error) {
	logPath := filepath.Join(dir, name+".log")
	out, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("%s: log: %w", name, err)
	}
	defer out.Close() // the child has its own copy
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = []string{"HOME=" + dir, "TMPDIR=" + os.TempDir()} // above all no *_proxy
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("%s: stdin: %w", name, err)
	}
	if err := start(cmd); err != nil {
		_ = stdin.Close()
		return nil, fmt.Errorf("%s: start: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, log: logPath, stdin: stdin, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how a server ends is of no interest, only that it has
		close(p.done)
	}()
	return p, nil
}

// stop asks the process to end, kills it when grace is over, and returns once
// it is reaped. A process that has ended already is fine.
func (p *process) stop(grace time.Duration) error {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(grace):
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return fmt.Errorf("%s: did not end within %v, killed", p.name, grace)
}

// signal sends sig; os.Process knows when the pid is no longer ours.
func (p *process) signal(sig os.Signal) error {
	err := p.cmd.Process.Signal(sig)
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s: signal %v: %w", p.name, sig, err)
	}
	return nil
}

// died returns an error with the end of the log if the process has ended by
// itself. It is not an error if p is nil, a server that was stopped.
func (p *process) died() error {
	if p == nil {
		return nil
	}
	select {
	case <-p.done:
	default:
		return nil
	}
	log, err := os.ReadFile(p.log)
	if err != nil {
		return fmt.Errorf("%s: ended: %v: log: %w", p.name, p.cmd.ProcessState, err)
	}
	log = log[max(0, len(log)-4096):]
	return fmt.Errorf("%s: ended: %v, last output:\n%s", p.name, p.cmd.ProcessState, bytes.TrimSpace(log))
}
