// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"cmp"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// claims says which Service has a frontend that several of them ask for: the
// oldest, then the first by name, whatever the order of arrival.
type claims struct {
	holder map[lb.FrontendKey]*entry
	losers map[lb.FrontendKey][]*entry // only where there are some
}

func newClaims() *claims {
	return &claims{holder: map[lb.FrontendKey]*entry{}, losers: map[lb.FrontendKey][]*entry{}}
}

// before tells whether a has precedence over b. Both have a Service.
func before(a, b *entry) bool {
	return cmp.Or(
		cmp.Compare(a.svc.created, b.svc.created),
		strings.Compare(a.obj.Namespace, b.obj.Namespace),
		strings.Compare(a.obj.Name, b.obj.Name),
	) < 0
}

// add claims k for e, which must not have claimed it. It returns every other
// entry whose outcome or problem may be another one now.
func (c *claims) add(k lb.FrontendKey, e *entry) (touched []*entry) {
	h := c.holder[k]
	switch {
	case h == nil:
		c.holder[k] = e
	case before(e, h):
		touched = append(slices.Clone(c.losers[k]), h)
		c.holder[k] = e
		c.losers[k] = append(c.losers[k], h)
	default:
		c.losers[k] = append(c.losers[k], e)
	}
	return touched
}

// remove takes back what add did; the next in line becomes the holder.
func (c *claims) remove(k lb.FrontendKey, e *entry) (touched []*entry) {
	rest := c.losers[k]
	if c.holder[k] != e {
		c.setLosers(k, slices.DeleteFunc(rest, func(l *entry) bool { return l == e }))
		return nil
	}
	if len(rest) == 0 {
		delete(c.holder, k)
		return nil
	}
	touched = slices.Clone(rest)
	next := rest[0]
	for _, l := range rest[1:] {
		if before(l, next) {
			next = l
		}
	}
	c.holder[k] = next
	c.setLosers(k, slices.DeleteFunc(rest, func(l *entry) bool { return l == next }))
	return touched
}

func (c *claims) setLosers(k lb.FrontendKey, rest []*entry) {
	if len(rest) == 0 {
		delete(c.losers, k)
		return
	}
	c.losers[k] = rest
}
