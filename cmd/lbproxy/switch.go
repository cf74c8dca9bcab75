// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/lbproxy/lbproxy/internal/config"
	"github.com/lbproxy/lbproxy/internal/dataplane"
)

// leaveAgain is the time between two attempts to remove the other dataplane's things.
const leaveAgain = 30 * time.Second

// switchover removes what an earlier agent left that used the other dataplane, once this
// one does everything. Until then the other one goes on serving; where both serve, eBPF
// comes first. Nothing but the kernel says how far it is, so an agent that is killed at
// any point is followed by one that goes on, with either dataplane.
type switchover struct {
	cfg   config.Config
	dp    plane
	leave func(context.Context, config.Config, plane, *slog.Logger) error
	log   *slog.Logger
	again time.Duration // after a failure

	once  sync.Once
	ready chan struct{} // closed when this dataplane does everything
}

func newSwitchover(cfg config.Config, dp plane, other access, log *slog.Logger) *switchover {
	return &switchover{cfg: cfg, dp: dp, leave: other.leave, log: log, again: leaveAgain, ready: make(chan struct{})}
}

// synced takes note of what became of a Sync.
func (s *switchover) synced(d dataplane.Delta, err error) {
	var single *dataplane.SyncError
	if errors.As(err, &single) && single.Other == nil {
		err = nil // a Service that cannot be programmed costs only itself
	}
	if d.Full && err == nil {
		s.once.Do(func() { close(s.ready) })
	}
}

// run removes the other dataplane's things, or ends with ctx.
func (s *switchover) run(ctx context.Context) error {
	if s.leave == nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case <-s.ready:
	}
	for {
		err := s.leave(ctx, s.cfg, s.dp, s.log)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		s.log.Warn("what the other dataplane left is still there; trying again", "error", err, "after", s.again)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(s.again):
		}
	}
}
