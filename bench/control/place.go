// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"

	"github.com/lbproxy/lbproxy/bench/internal/node"
	"github.com/lbproxy/lbproxy/internal/lab"
)

// place is a node whose API server has a world.
type place struct {
	*node.Node
	world *world
}

func newPlace(w *world) (_ *place, err error) {
	l, err := lab.New(lab.Options{Name: "control", Pods: w.pods()})
	if err != nil {
		return nil, err
	}
	p := &place{world: w}
	if p.Node, err = node.New(l, w.api); err != nil {
		return nil, err
	}
	if w.served {
		if err := p.serve(); err != nil {
			return nil, errors.Join(err, p.Close())
		}
	}
	return p, nil
}
