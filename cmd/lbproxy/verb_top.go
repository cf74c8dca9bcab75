// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lbproxy/lbproxy/internal/config"
)

// The times between two looks at the kernel.
const (
	topInterval    = 2 * time.Second
	topIntervalMin = 200 * time.Millisecond // a look reads all counters
)

func (a *app) topVerb() *cobra.Command {
	var (
		namespace string
		once      bool
		every     time.Duration
		out       output
	)
	cmd := a.verb(&cobra.Command{
		Use:   "top",
		Short: "Show live how Services and their backends fare on this node",
		Long: `Show live how Services and their backends fare on this node: new connections each second,
connections that are open, expected and measured shares, latency and health.

At a terminal it goes on until q. Otherwise, with --once, and with -o json or yaml, it looks
twice, --interval apart, and prints once.

` + topKeys + `
RATE is "-" with the iptables dataplane: rules do not count connections that have ended.
SHARE is of the connections of the last minute.`,
		Example: "  lbproxy top\n  lbproxy top --once -n shop\n  lbproxy top -o json",
	}, getFlags, func(cmd *cobra.Command, cfg config.Config, _ *config.Loader) error {
		if every < topIntervalMin {
			return usageError{fmt.Errorf("interval: %s: want at least %s", every, topIntervalMin)}
		}
		look := looker(func(ctx context.Context) (census, []string, error) {
			var notes strings.Builder
			c, err := a.takeCensus(ctx, cfg, namespace, &notes)
			return c, noteLines(notes.String()), err
		})
		screen := terminalOf(a.stdout)
		if once || screen == nil || out != outputTable {
			return a.topOnce(cmd.Context(), look, every, out)
		}
		return screen.top(cmd.Context(), look, every)
	})
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only this namespace; default: all")
	cmd.Flags().BoolVar(&once, "once", false, "print once, and end")
	cmd.Flags().DurationVar(&every, "interval", topInterval, "time between two looks")
	out.register(cmd)
	return cmd
}

// looker looks at the node: what there is, and what could not be found out.
type looker func(context.Context) (census, []string, error)

// topOnce looks twice and prints how Services fare in between.
func (a *app) topOnce(ctx context.Context, look looker, every time.Duration, out output) error {
	var h history
	c, _, err := look(ctx)
	if err != nil {
		return err
	}
	h.add(c, nil)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(every):
	}
	c, notes, err := look(ctx)
	if err != nil {
		return err
	}
	l := h.add(c, notes)
	for _, note := range notes {
		fmt.Fprintln(a.stderr, note)
	}
	return out.print(a, l, func(w io.Writer) error {
		m := topModel{live: l, every: true}
		for _, row := range m.table() {
			fmt.Fprintln(w, strings.TrimRight(row.text, " "))
		}
		return nil
	})
}

// terminalOf returns the terminal that w is, if somebody sits there: its keys are read, too.
func terminalOf(w io.Writer) *terminal {
	f, ok := w.(*os.File)
	if !ok {
		return nil
	}
	t := &terminal{in: os.Stdin, out: f}
	if _, err := t.size(); err != nil {
		return nil
	}
	if _, err := t.mode(); err != nil {
		return nil
	}
	return t
}

// top shows what look sees until somebody presses q, or ctx ends.
func (t *terminal) top(ctx context.Context, look looker, every time.Duration) (err error) {
	ctx, stop := stopSignals(ctx)
	defer stop()
	restore, err := t.raw()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, restore()) }()
	var h history
	m := topModel{sorted: byRate}
	next := time.Now()
	for ctx.Err() == nil {
		if wait := time.Until(next); wait <= 0 {
			c, notes, err := look(ctx)
			if err != nil {
				return err
			}
			m.live = h.add(c, notes)
			next = time.Now().Add(every)
			if len(h) == 1 {
				next = time.Now().Add(min(every, time.Second)) // the first rates, soon
			}
		}
		if err := t.draw(&m); err != nil {
			return err
		}
		keys, err := t.keys(min(time.Until(next), topPoll))
		if err != nil {
			return err
		}
		for _, k := range keys {
			if quit := m.key(k); quit {
				return nil
			}
		}
	}
	return nil
}
