// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lab"
)

// countTimeout bounds the wait for the last FINs to be counted.
const countTimeout = 20 * time.Second

// counts are TCP connections: made by the demo's clients, or counted in the
// kernel. Of UDP nobody can tell how many: a client whose port comes again goes
// on with the flow that had it before.
type counts struct {
	opened, live uint64
	unserved     uint64 // refused, or dropped where silence is wanted
}

// note adds what the clients of a row did.
func (c *counts) note(r *row) {
	if r.svc.headless() || r.to.proto != lab.TCP {
		return
	}
	for _, n := range r.answers {
		c.opened += uint64(n)
	}
	if r.want.kind != lab.OK { // silence is shorter than TCP takes to try again
		c.unserved += uint64(r.other[r.want.kind])
	}
}

// count compares what the clients did with what the kernel has counted on both
// paths.
func (d *demo) count(ctx context.Context) error {
	d.screen.heading("What the kernel counted: lbproxy get services")
	d.checks++
	deadline := time.Now().Add(countTimeout)
	var got counts
	for {
		var err error
		if got, err = d.counted(ctx); err != nil {
			return err
		}
		if got == d.made || time.Now().After(deadline) {
			break
		}
		time.Sleep(pollInterval)
	}
	verdict := d.screen.paint(green, "ok", 0)
	if got != d.made {
		verdict = d.screen.paint(red, fmt.Sprintf("!! the clients made %d, %d were refused or dropped, %d are open",
			d.made.opened, d.made.unserved, d.made.live), 0)
		d.wrong++
	}
	d.screen.line("  %d TCP connections made, %d refused or dropped, %d still open  %s",
		got.opened, got.unserved, got.live, verdict)
	return nil
}

// counted asks lbproxy.
func (d *demo) counted(ctx context.Context) (counts, error) {
	views, err := d.views(ctx)
	if err != nil {
		return counts{}, err
	}
	var c counts
	for _, v := range views {
		if !strings.Contains(v.Name, "/TCP/") {
			continue
		}
		c.unserved += v.Rejected
		for _, b := range v.Backends {
			c.opened += b.Opened
			c.live += b.Live
		}
	}
	return c, nil
}

// views is what lbproxy says that the kernel has.
func (d *demo) views(ctx context.Context) ([]dataplane.ServiceView, error) {
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, d.program, append([]string{"get", "services", "-o", "json"}, d.agent.args()...)...)
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("lbproxy get services: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	var views []dataplane.ServiceView
	if err := json.Unmarshal(out.Bytes(), &views); err != nil {
		return nil, fmt.Errorf("lbproxy get services: %w", err)
	}
	return views, nil
}

// view is what the kernel has at a TCP frontend.
func (d *demo) view(ctx context.Context, f frontend) (dataplane.ServiceView, error) {
	views, err := d.views(ctx)
	if err != nil {
		return dataplane.ServiceView{}, err
	}
	for _, v := range views {
		for _, fe := range v.Frontends {
			if fe.Address == f.addr.String()+"/TCP" {
				return v, nil
			}
		}
	}
	return dataplane.ServiceView{}, fmt.Errorf("lbproxy get services: nothing at %s", f.addr)
}
