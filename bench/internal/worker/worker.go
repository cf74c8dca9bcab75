// SPDX-License-Identifier: Apache-2.0

// Package worker runs this executable again as a process in a host of a lab, which carries
// out orders: lines of JSON, one answer to each.
package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lab"
)

const (
	envKind   = "LBPROXY_BENCH_WORKER"
	envRootNS = "LBPROXY_BENCH_ROOT_NETNS" // where a worker must not be
)

// Worker is such a process. One order at a time.
type Worker struct {
	host string
	cmd  *exec.Cmd
	in   *json.Encoder
	out  *json.Decoder
}

// answer is one line of a worker.
type answer struct {
	Err    string          `json:",omitempty"`
	Result json.RawMessage `json:",omitempty"`
}

// netnsID names the network namespace of this thread.
func netnsID() (string, error) {
	id, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return "", fmt.Errorf("network namespace: %w", err)
	}
	return id, nil
}

// Start starts a worker of a kind on a host.
func Start(ctx context.Context, h *lab.Host, kind string) (*Worker, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	root, err := netnsID()
	if err != nil {
		return nil, err
	}
	cmd := h.Command(ctx, exe)
	cmd.Env = append(os.Environ(), envKind+"="+kind, envRootNS+"="+root)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the bench, which then cleans up
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	if err := h.Start(cmd); err != nil {
		return nil, err
	}
	return &Worker{host: h.Name, cmd: cmd, in: json.NewEncoder(in), out: json.NewDecoder(out)}, nil
}

// Do has the worker carry out an order; result may be nil.
func (w *Worker) Do(order, result any) error {
	var a answer
	err := w.in.Encode(order)
	if err == nil {
		err = w.out.Decode(&a)
	}
	if err == nil && a.Err != "" {
		err = errors.New(a.Err)
	}
	if err == nil && result != nil {
		err = json.Unmarshal(a.Result, result)
	}
	if err != nil {
		return fmt.Errorf("worker on %s: %w", w.host, err)
	}
	return nil
}

// Stop ends the worker.
func (w *Worker) Stop() {
	_ = w.cmd.Process.Kill() // an error says that it has ended already
	_ = w.cmd.Wait()         // killed: there is no other way for it to end
}

// Main is this program's life as a worker of a kind, which makes what carries out its
// orders. It returns at once in a process that is none. A worker refuses to live
// anywhere but in a lab's network namespace.
func Main[Order any](kind string, make func() func(Order) (any, error)) {
	if os.Getenv(envKind) != kind {
		return
	}
	if err := work(make); err != nil {
		fmt.Fprintln(os.Stderr, "bench worker:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func work[Order any](make func() func(Order) (any, error)) error {
	if own, err := netnsID(); err != nil || own == os.Getenv(envRootNS) {
		return fmt.Errorf("refused: not in a lab's network namespace (%w)", err)
	}
	runtime.LockOSThread()
	carryOut := make()
	dec, enc := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o Order
		if err := dec.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read order: %w", err)
		}
		var a answer
		result, err := carryOut(o)
		if err == nil {
			a.Result, err = json.Marshal(result)
		}
		if err != nil {
			a = answer{Err: err.Error()}
		}
		if err := enc.Encode(a); err != nil {
			return fmt.Errorf("write result: %w", err)
		}
	}
}

// Pin moves every thread of this process to one processor.
func Pin(cpu int) error {
	cpus, err := allowed()
	if err != nil {
		return err
	}
	var set unix.CPUSet
	set.Set(cpus[cpu%len(cpus)])
	return affinity(&set)
}

// allowed are the processors that this process had when it began, which need not be the
// first ones.
var allowed = sync.OnceValues(func() (cpus []int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(os.Getpid(), &set); err != nil {
		return nil, fmt.Errorf("own processors: %w", err)
	}
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
})

// Unpin lets every thread of this process run everywhere.
func Unpin() error {
	cpus, err := allowed()
	if err != nil {
		return err
	}
	var set unix.CPUSet
	for _, cpu := range cpus {
		set.Set(cpu)
	}
	return affinity(&set)
}

func affinity(set *unix.CPUSet) error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return fmt.Errorf("pin: %w", err)
		}
		if err := unix.SchedSetaffinity(tid, set); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("pin thread %d: %w", tid, err)
		}
	}
	return nil
}

// Usage is the processor time of this process.
func Usage() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("usage: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}
