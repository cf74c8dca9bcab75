// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"errors"
	"fmt"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// The annotations of health that are named in the Problems of others; docs/HEALTH.md
// explains all.
const (
	annotationCheck       = annotationPrefix + "health-check"
	annotationCheckPort   = annotationCheck + "-port"
	annotationCheckScript = annotationCheck + "-script"
	annotationPassive     = annotationPrefix + "health-passive"
)

// defaultHealth returns how backends are watched where a Service does not say it.
func (o *Options) defaultHealth() lb.Health {
	if o.DefaultHealth == (lb.Health{}) {
		return lb.DefaultHealth()
	}
	return o.DefaultHealth
}

// settleHealth puts what was said until now, or nothing, in the place of a probe that
// cannot be made of what the annotations say together, and notes which of them have no
// effect.
func (s *service) settleHealth(kept *lb.Health, o *Options, p *problems) {
	h := s.said.health.Or(o.defaultHealth())
	if h.Probe.Kind == lb.ProbeExec && h.Probe.Script == "" {
		p.add(annotationField(annotationCheck), ReasonInvalidAnnotation, errors.New("exec needs "+annotationCheckScript))
		s.said.health.Probe.Kind = lb.ProbeDefault
		if kept.Probe.Kind != lb.ProbeDefault {
			s.said.health.Probe = kept.Probe
		}
		return
	}
	probed, seen := len(s.units) == 0, len(s.units) == 0 // ports for which the annotation holds
	for _, u := range s.units {
		on := h.On(u.name.Proto)
		probed = probed || on.Probe.Kind == h.Probe.Kind
		seen = seen || on.Passive == h.Passive
	}
	for i := range serviceAnnotations {
		a := &serviceAnnotations[i]
		if a.health == nil || !s.works(i) {
			continue
		}
		err := a.health.Idle(h)
		switch {
		case err != nil:
		case a.key == annotationCheck && !probed:
			err = fmt.Errorf("has no effect: the Service has no TCP port, and others are probed only by exec or at %s", annotationCheckPort)
		case a.key == annotationPassive && !seen:
			err = errors.New("has no effect without a TCP port")
		}
		if err != nil {
			p.add(annotationField(a.key), ReasonNoEffect, err)
		}
	}
}
