// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"context"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// Agent is what an agent runs: a dataplane.
type Agent interface {
	Run(ctx context.Context) error
	Close() error
}

// Start opens an Agent on a host and runs it. stop ends the agent's part, at the latest
// with t; the kernel's goes on.
func Start[A Agent](t *testing.T, host *lab.Host, open func() (A, error)) (a A, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done, opened := make(chan error, 1), make(chan error, 1)
	go func() {
		done <- host.Do(func() (err error) {
			a, err = open()
			opened <- err
			if err != nil {
				return nil
			}
			return a.Run(ctx)
		})
	}()
	if err := <-opened; err != nil {
		cancel()
		t.Fatalf("open: %+v", err)
	}
	running := true
	stop = func() {
		if !running {
			return
		}
		running = false
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return a, stop
}

// Within waits for a condition that another goroutine brings about.
func Within(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(d); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}
