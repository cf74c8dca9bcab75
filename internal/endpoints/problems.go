// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"cmp"
	"errors"
	"slices"
	"strings"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// The kinds of object a Problem is about.
const (
	KindService       = "Service"
	KindEndpointSlice = "EndpointSlice"
	KindNode          = "Node"
	KindPod           = "Pod"
	KindManifest      = "Manifest" // a file or the directory; Object.Name is its path
)

// The reasons of Problems, as Events spell them.
const (
	ReasonConflict           = "FrontendConflict"
	ReasonDuplicateObject    = "DuplicateObject"
	ReasonDuplicatePort      = "DuplicatePort"
	ReasonExternalIPsDenied  = "ExternalIPsDenied"
	ReasonFamilyMismatch     = "FamilyMismatch"
	ReasonInvalidAddress     = "InvalidAddress"
	ReasonInvalidAffinity    = "InvalidSessionAffinity"
	ReasonInvalidAlgorithm   = "InvalidAlgorithm"
	ReasonInvalidAnnotation  = "InvalidAnnotation"
	ReasonInvalidPort        = "InvalidPort"
	ReasonInvalidRange       = "InvalidSourceRange"
	ReasonInvalidWeight      = "InvalidWeight"
	ReasonMalformed          = "MalformedManifest"
	ReasonNoClusterIP        = "NoClusterIP"
	ReasonNoEffect           = "NoEffect"
	ReasonNoService          = "NoService"
	ReasonNotListed          = "NotListed"
	ReasonNoWeight           = "NoWeight"
	ReasonSCTPFromNode       = "SCTPFromNode"
	ReasonTooMany            = "TooManyProblems"
	ReasonUnknownAnnotation  = "UnknownAnnotation"
	ReasonUnknownField       = "UnknownField"
	ReasonUnknownPolicy      = "UnknownPolicy"
	ReasonUnreadable         = "UnreadableManifest"
	ReasonUnsupportedAddress = "UnsupportedAddressType"
	ReasonUnsupportedProto   = "UnsupportedProtocol"
)

// Problem is something an object asks for that is not served, and why.
// It costs only the field it names.
type Problem struct {
	Kind   string // one of the Kind constants
	Object lb.Object
	Field  string // the path of the field, or a document's number in a file
	Reason string // one of the Reason constants
	Err    error

	// Quiet is whether Events would be too much: every node would write the same ones,
	// or each node its own, of what is nobody's mistake.
	Quiet bool
}

// Error returns kind, object, field and cause.
func (p Problem) Error() string {
	name := p.Object.String()
	if p.Object.Namespace == "" {
		name = p.Object.Name
	}
	return p.Kind + " " + name + ": " + p.Message()
}

// Unwrap returns the cause.
func (p Problem) Unwrap() error { return p.Err }

// Message returns field and cause: the text of an Event on the object.
func (p Problem) Message() string {
	if p.Field == "" {
		return p.Err.Error()
	}
	return p.Field + ": " + p.Err.Error()
}

// same tells whether p and q say the same.
func (p Problem) same(q Problem) bool {
	return p.Kind == q.Kind && p.Object == q.Object && p.Reason == q.Reason && p.Message() == q.Message()
}

func compareProblems(a, b Problem) int {
	return cmp.Or(
		strings.Compare(a.Kind, b.Kind),
		strings.Compare(a.Object.Namespace, b.Object.Namespace),
		strings.Compare(a.Object.Name, b.Object.Name),
		strings.Compare(a.Message(), b.Message()),
	)
}

// maxProblems bounds what one parsed object may report, so that a slice of 1000
// malformed endpoints is a dozen lines and not a flood.
const maxProblems = 12

// problems collects what is wrong with one object.
type problems struct {
	kind   string
	object lb.Object
	prefix string // put before every field
	all    []Problem
	more   bool // some were left out
}

func (p *problems) add(field, reason string, err error) {
	if len(p.all) >= maxProblems {
		p.more = true
		return
	}
	p.all = append(p.all, p.problem(field, reason, err))
}

// addQuiet is add of a Problem that is no Event.
func (p *problems) addQuiet(field, reason string, err error) {
	n := len(p.all)
	if p.add(field, reason, err); len(p.all) > n {
		p.all[n].Quiet = true
	}
}

// problem returns a Problem of the object.
func (p *problems) problem(field, reason string, err error) Problem {
	return Problem{Kind: p.kind, Object: p.object, Field: p.prefix + field, Reason: reason, Err: err}
}

// list returns what was collected.
func (p *problems) list() []Problem {
	if !p.more {
		return p.all
	}
	// Without the number: each would be another problem, and another Event.
	rest := errors.New("and more problems")
	last := p.problem("", ReasonTooMany, rest)
	last.Field = strings.TrimSuffix(p.prefix, ".")
	return append(p.all, last)
}

// owner is what a set of Problems belongs to.
type owner struct {
	kind   string
	object lb.Object
}

// tracker remembers which Problems exist now, so that each is reported once.
type tracker map[owner][]Problem

// set makes now the Problems of o and returns those that it did not have.
func (t tracker) set(o owner, now []Problem) []Problem {
	before := t[o]
	if len(now) == 0 {
		if before != nil {
			delete(t, o)
		}
		return nil
	}
	var fresh []Problem
	for _, p := range now {
		if !slices.ContainsFunc(before, p.same) && !slices.ContainsFunc(fresh, p.same) {
			fresh = append(fresh, p)
		}
	}
	t[o] = now
	return fresh
}

// all returns every Problem there is, sorted.
func (t tracker) all() []Problem {
	var all []Problem
	for _, ps := range t {
		all = append(all, ps...)
	}
	slices.SortFunc(all, compareProblems)
	return slices.CompactFunc(all, Problem.same)
}
