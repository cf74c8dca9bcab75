// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/lbproxy/lbproxy/internal/server"
)

// webEvery is the least time between two looks for the web page, however many ask.
const webEvery = time.Second

// webPage is what the web page shows.
type webPage struct {
	Node      string `json:"node"`
	Dataplane string `json:"dataplane"`
	Version   string `json:"version"`
	Live      live   `json:"live"`
}

// webData returns what looks at the node for the web page, as top does. It may be called
// from any goroutine; those who ask within webEvery get the same.
func (a *app) webData(n *node) func(context.Context) (any, error) {
	asking := *a // the agent need not ask itself by its socket
	asking.ask = func(context.Context, string) ([]server.Verdict, error) { return n.tell(), nil }
	asking.askResting = func(context.Context, string) ([]server.Resting, error) { return n.resting(), nil }
	var (
		mu   sync.Mutex
		seen history
		page webPage
	)
	return func(ctx context.Context) (any, error) {
		mu.Lock()
		defer mu.Unlock()
		now := asking.now()
		if !page.Live.At.IsZero() && now.Sub(page.Live.At) < webEvery {
			return page, nil
		}
		if now.Sub(page.Live.At) > recent {
			seen = nil // nobody has looked for long: rates begin anew
		}
		var notes strings.Builder
		c, err := asking.takeCensus(ctx, n.cfg, "", &notes)
		if err != nil {
			return nil, err
		}
		page = webPage{n.cfg.NodeName, n.chosen.dataplane, version, seen.add(c, noteLines(notes.String()))}
		return page, nil
	}
}
