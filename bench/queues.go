// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// portQueue is the first port of the queues; each has its own.
const portQueue = 7100

// queues are backends that serve one connection at a time, first come first
// served, and sleep while they do. A connection starts with the time that it needs,
// 4 bytes in µs, and ends with one byte.
type queues struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// start replaces what was there by a queue for each of slowdown, which multiplies
// the time that a connection needs.
func (q *queues) start(slowdown []float64) error {
	q.stop()
	ctx, cancel := context.WithCancel(context.Background())
	q.cancel = cancel
	for i, s := range slowdown {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{Port: portQueue + i})
		if err != nil {
			cancel()
			return fmt.Errorf("queue %d: %w", i, err)
		}
		waiting := make(chan net.Conn, 1<<16)
		q.done.Go(func() {
			<-ctx.Done()
			l.Close()
		})
		q.done.Go(func() {
			defer close(waiting)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				waiting <- c
			}
		})
		q.done.Go(func() {
			for c := range waiting {
				serveOne(ctx, c, s)
			}
		})
	}
	return nil
}

// stop ends all queues; who waits is turned away.
func (q *queues) stop() {
	if q.cancel != nil {
		q.cancel()
		q.done.Wait()
	}
}

// serveOne serves c, if it is still there. An error is the client's to notice.
func serveOne(ctx context.Context, c net.Conn, slowdown float64) {
	defer c.Close()
	if ctx.Err() != nil {
		return
	}
	var need [4]byte
	if _, err := io.ReadFull(c, need[:]); err != nil {
		return
	}
	us := float64(binary.BigEndian.Uint32(need[:])) * slowdown
	if sleep(ctx, time.Duration(us)*time.Microsecond) != nil {
		return
	}
	_, _ = c.Write([]byte{1})
}
