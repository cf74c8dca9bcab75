package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"time"
)

// errHelperGone reports a call to a helper that was killed.
var errHelperGone = errors.New("the helper is not running")

// remote is the lab's end of one helper process.
type remote struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the helper has ended and was waited for

	sendMu sync.Mutex
	enc    *json.Encoder

	mu      sync.Mutex
	lastID  uint64
	pending map[uint64]chan<- reply // nil when the helper has ended
}

// newRemote connects to cmd and starts it with start.
func newRemote(cmd *exec.Cmd, start func(*exec.Cmd) error) (*remote, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("stdin: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("stdout: %w", err)
	}
	if err := start(cmd); err != nil {
		return nil, err
	}
	r := &remote{
		cmd:     cmd,
		done:    make(chan struct{}),
		enc:     json.NewEncoder(in),
		pending: map[uint64]chan<- reply{},
	}
	go r.receive(out)
	return r, nil
}

// receive hands replies to their callers until the helper ends.
func (r *remote) receive(out io.Reader) {
	defer close(r.done)
	for dec := json.NewDecoder(out); ; {
		var rep reply
		if dec.Decode(&rep) != nil {
			break
		}
		if to := r.take(rep.ID); to != nil {
			to <- rep
		}
	}
	r.mu.Lock()
	pending := r.pending
	r.pending = nil
	r.mu.Unlock()
	for _, to := range pending {
		close(to)
	}
	_ = r.cmd.Process.Kill() // it may only have closed its output
	_ = r.cmd.Wait()         // killed: there is no other way for it to end
}

func (r *remote) take(id uint64) chan<- reply {
	r.mu.Lock()
	defer r.mu.Unlock()
	to := r.pending[id]
	delete(r.pending, id)
	return to
}

// call sends c and waits for its reply; ctx's deadline becomes the helper's.
func (r *remote) call(ctx context.Context, c call) (reply, error) {
	if d, ok := ctx.Deadline(); ok {
		c.Budget = max(time.Until(d), time.Millisecond)
	}
	answer := make(chan reply, 1)
	if err := r.send(&c, answer); err != nil {
		return reply{}, err
	}
	if _, ok := ctx.Deadline(); ok {
		// The helper keeps the deadline; leave it the time to say what it saw.
		var cancel context.CancelFunc
		ctx, cancel = withGrace(ctx, c.Budget+callGrace)
		defer cancel()
	}
	select {
	case rep, ok := <-answer:
		if !ok {
			return reply{}, errHelperGone
		}
		if rep.Err != "" {
			return rep, errors.New(rep.Err)
		}
		return rep, nil
	case <-ctx.Done():
		r.take(c.ID)
		return reply{}, ctx.Err()
	}
}

// withGrace is ctx with a later deadline; cancelling ctx still cancels it.
func withGrace(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	out, cancel := context.WithTimeout(context.WithoutCancel(ctx), d)
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.Canceled) {
			cancel()
		}
	})
	return out, func() { stop(); cancel() }
}

func (r *remote) send(c *call, answer chan<- reply) error {
	r.mu.Lock()
	if r.pending == nil {
		r.mu.Unlock()
		return errHelperGone
	}
	r.lastID++
	c.ID = r.lastID
	r.pending[c.ID] = answer
	r.mu.Unlock()

	r.sendMu.Lock()
	defer r.sendMu.Unlock()
	if err := r.enc.Encode(c); err != nil {
		r.take(c.ID)
		return fmt.Errorf("send to helper: %w", err)
	}
	return nil
}

// kill returns when the process is gone and its sockets are closed.
func (r *remote) kill() {
	_ = r.cmd.Process.Kill() // an error says that it has ended already
	<-r.done
}
