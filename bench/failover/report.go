// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"

	"github.com/lbproxy/lbproxy/bench/internal/observe"
)

// report is everything of one run.
type report struct {
	Machine  observe.Machine `json:"machine"`
	Quick    bool            `json:"quick,omitempty"`
	Nodes    int             `json:"nodes"`
	Rate     int             `json:"rate"` // new connections a second of each node
	Outcomes []*outcome      `json:"outcomes,omitempty"`
}

func (r *report) print(w io.Writer) error { return nil }
