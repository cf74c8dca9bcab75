// SPDX-License-Identifier: Apache-2.0

package endpoints

import "github.com/lbproxy/lbproxy/internal/lb"

// Settings are the options that may change while a Store is fed.
type Settings struct {
	MasqueradeAll     bool
	DenyExternalIPs   bool
	DefaultAlgorithm  string
	DefaultHealth     lb.Health
	IgnoreNodeWeights bool
}

// Settings returns those of o.
func (o Options) Settings() Settings {
	return Settings{o.MasqueradeAll, o.DenyExternalIPs, o.DefaultAlgorithm, o.DefaultHealth, o.IgnoreNodeWeights}
}

// with returns o with other settings.
func (o Options) with(set Settings) Options {
	o.MasqueradeAll, o.DenyExternalIPs, o.IgnoreNodeWeights = set.MasqueradeAll, set.DenyExternalIPs, set.IgnoreNodeWeights
	o.DefaultAlgorithm, o.DefaultHealth = set.DefaultAlgorithm, set.DefaultHealth
	return o
}

// options returns the present options. They do not change.
func (s *Store) options() *Options { return s.current.Load() }

// Settings returns those that are in force.
func (s *Store) Settings() Settings { return s.options().Settings() }

// SetSettings changes what objects mean. What has no effect on connections is noted at
// once; where objects must be read again for it, as they are not kept, RunKubernetes and
// RunManifests do so.
func (s *Store) SetSettings(set Settings) {
	s.locked(func() {
		before := s.options()
		next := before.with(set)
		s.current.Store(&next)
		if next.IgnoreNodeWeights && !before.IgnoreNodeWeights {
			s.replaceNodeWeights(nil)
		}
		if needsObjects(before, &next) {
			select {
			case s.relist <- struct{}{}:
			default: // nobody has begun to
			}
			return
		}
		if next.DefaultAlgorithm != before.DefaultAlgorithm || next.DefaultHealth != before.DefaultHealth {
			s.settleAll()
		}
	})
}

// needsObjects tells whether what is kept of objects is not enough to go from one to the
// other. Which script exec probes run decides whether a Service's probe can be.
func needsObjects(a, b *Options) bool {
	return a.MasqueradeAll != b.MasqueradeAll || a.DenyExternalIPs != b.DenyExternalIPs || a.IgnoreNodeWeights != b.IgnoreNodeWeights ||
		a.DefaultHealth.Probe.Kind != b.DefaultHealth.Probe.Kind || a.DefaultHealth.Probe.Script != b.DefaultHealth.Probe.Script
}

// settleAll notes anew which annotations have no effect. s.mu is held.
func (s *Store) settleAll() {
	for _, e := range s.entries {
		if e.svc == nil {
			continue
		}
		again := *e.svc
		again.settle(e.svc, s.options())
		if !again.equal(e.svc) {
			e.svc = &again
			s.touch(e)
		}
	}
}
