// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

const (
	dialTimeout   = 3 * time.Second
	answerTimeout = 5 * time.Second // a datagram without one so long is lost
	summaryPeriod = 2 * time.Second // an hour of them is less than the kubelet keeps
)

// load is a client of several targets.
type load struct {
	name           string
	held           int
	every, between time.Duration

	mu     sync.Mutex
	counts map[string]*counts // by target
	steady int                // held connections that had an answer
	out    *json.Encoder
}

// counts are what a client saw of one target. A held connection that ends is broken and
// made anew; of UDP, where nothing breaks, a datagram without an answer is.
type counts struct {
	Exchanges int     `json:"exchanges"` // of connections that are held
	Broken    int     `json:"broken"`
	Opened    int     `json:"opened"` // new ones that had an answer
	Failed    int     `json:"failed"`
	LongestMS float64 `json:"longestMS"` // that was waited for an answer
}

// line is what a client writes: a failure when it happens, and all counts so far now and
// then.
type line struct {
	Time   time.Time          `json:"time"`
	Client string             `json:"client"`
	Steady bool               `json:"steady,omitempty"` // all that shall be held is
	Counts map[string]*counts `json:"counts,omitempty"`
	Target string             `json:"target,omitempty"`
	Kind   string             `json:"kind,omitempty"` // broken or failed
	Error  string             `json:"error,omitempty"`
	Local  string             `json:"local,omitempty"` // the address that the connection had here
}

func (l *load) run(ctx context.Context, targets []string, out io.Writer) error {
	l.counts, l.out = map[string]*counts{}, json.NewEncoder(out)
	var all sync.WaitGroup
	for _, target := range targets {
		network, addr, ok := strings.Cut(target, "://")
		if !ok {
			return fmt.Errorf("target %q is not NETWORK://HOST:PORT", target)
		}
		l.counts[target] = &counts{}
		for range l.held {
			all.Go(func() { l.hold(ctx, target, network, addr) })
		}
		all.Go(func() { l.open(ctx, target, network, addr) })
	}
	ticker := time.NewTicker(summaryPeriod)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			l.summary(len(targets) * l.held)
		case <-ctx.Done():
			all.Wait()
			l.summary(len(targets) * l.held)
			return nil
		}
	}
}

// hold keeps one connection to target and uses it.
func (l *load) hold(ctx context.Context, target, network, addr string) {
	for answered := false; ctx.Err() == nil; {
		conn, err := dial(ctx, network, addr)
		for err == nil && ctx.Err() == nil {
			start := time.Now()
			if err = exchange(conn); err == nil {
				l.answered(target, time.Since(start), func(c *counts) {
					c.Exchanges++
					if !answered {
						l.steady++
					}
				})
				answered = true
			} else if network == "udp" {
				l.note(ctx, target, "broken", conn, err)
				err = nil // the socket is as good as before
			}
			wait(ctx, l.every)
		}
		if err != nil {
			l.note(ctx, target, "broken", conn, err)
			wait(ctx, l.every)
		}
		if conn != nil {
			_ = conn.Close()
		}
	}
}

// open makes one connection after the other, each for one exchange.
func (l *load) open(ctx context.Context, target, network, addr string) {
	for ctx.Err() == nil {
		conn, err := dial(ctx, network, addr)
		start := time.Now()
		if err == nil {
			err = exchange(conn)
		}
		if err != nil {
			l.note(ctx, target, "failed", conn, err)
		} else {
			l.answered(target, time.Since(start), func(c *counts) { c.Opened++ })
		}
		if conn != nil {
			_ = conn.Close()
		}
		wait(ctx, l.between)
	}
}

func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	return d.DialContext(ctx, network, addr)
}

// exchange sends a message and waits for the same one; others were late.
func exchange(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	message := fmt.Appendf(nil, "%020d\n", time.Now().UnixNano())
	if _, err := conn.Write(message); err != nil {
		return err
	}
	answer := make([]byte, len(message))
	for {
		if _, err := io.ReadFull(conn, answer); err != nil {
			return err
		}
		if bytes.Equal(answer, message) {
			return nil
		}
	}
}

// answered counts an answer that took so long.
func (l *load) answered(target string, took time.Duration, count func(*counts)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.counts[target]
	c.LongestMS = max(c.LongestMS, float64(took.Microseconds())/1000)
	count(c)
}

// note writes a failure, unless it is ours: everything ends when ctx does.
func (l *load) note(ctx context.Context, target, kind string, conn net.Conn, err error) {
	if ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.counts[target]
	if kind == "broken" {
		c.Broken++
	} else {
		c.Failed++
	}
	failure := line{Time: time.Now(), Client: l.name, Target: target, Kind: kind, Error: err.Error()}
	if conn != nil {
		failure.Local = conn.LocalAddr().String()
	}
	_ = l.out.Encode(failure)
}

func (l *load) summary(held int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.out.Encode(line{Time: time.Now(), Client: l.name, Steady: l.steady == held, Counts: l.counts})
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
