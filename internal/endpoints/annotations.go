// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// annotationPrefix begins the name of every annotation and label of ours.
const annotationPrefix = "lbproxy.io/"

// What a Service may say about its balancing. docs/ANNOTATIONS.md is the table
// for users.
const (
	annotationAlgorithm = annotationPrefix + "algorithm"
	annotationHashKey   = annotationPrefix + "hash-key"
	annotationPrefixLen = annotationPrefix + "ip-hash-prefix"
	annotationSignal    = annotationPrefix + "least-time"
	annotationSlowStart = annotationPrefix + "slow-start"
	annotationReset     = annotationPrefix + "reset-on-removal"
)

// keyWeight is a label of Pods, and an annotation of EndpointSlices and Nodes.
const keyWeight = annotationPrefix + "weight"

// defaultSignal is what least-time measures where nobody says it: the time to the
// first byte is that of the work, where a connection is established by the kernel
// however busy the process is, and a whole connection lasts as its client wants.
const defaultSignal = lb.SignalFirstByte

// asked is a set of annotations, by their index in serviceAnnotations.
type asked uint32

func (a asked) has(i int) bool { return a>>i&1 != 0 }

// said is what the annotations of a Service say. It is comparable.
type said struct {
	balance lb.Balance
	health  lb.Health
	reset   bool
}

// serviceAnnotation is one annotation of Services. An empty value is as none.
type serviceAnnotation struct {
	key    string
	reason string // of the Problem when a value is invalid
	// parse puts a value into s, unless it returns an error.
	parse func(s *said, value string, o *Options) error
	// keep takes over what the annotation said.
	keep func(s, from *said)
	// part is what of the balance it sets; 0: what matters to every algorithm.
	part lb.Part
	// health is what of the health it sets; nil: nothing.
	health *lb.HealthField
}

// serviceAnnotations are all of them, the algorithm first.
var serviceAnnotations = slices.Concat(balanceAnnotations, healthAnnotations())

// balanceAnnotations are those that say how connections are balanced.
var balanceAnnotations = []serviceAnnotation{
	{
		key: annotationAlgorithm, reason: ReasonInvalidAlgorithm, parse: parseAlgorithm,
		keep: func(s, from *said) { s.balance.Algorithm = from.balance.Algorithm },
	},
	{
		key: annotationHashKey, reason: ReasonInvalidAnnotation, parse: parseHashKey,
		keep: func(s, from *said) { s.balance.HashKey = from.balance.HashKey },
		part: lb.PartHashKey,
	},
	{
		key: annotationPrefixLen, reason: ReasonInvalidAnnotation, parse: parsePrefixLen,
		keep: func(s, from *said) {
			s.balance.Prefix4, s.balance.Prefix6 = from.balance.Prefix4, from.balance.Prefix6
		},
		part: lb.PartPrefix,
	},
	{
		key: annotationSignal, reason: ReasonInvalidAnnotation, parse: parseSignal,
		keep: func(s, from *said) { s.balance.Signal = from.balance.Signal },
		part: lb.PartSignal,
	},
	{
		key: annotationSlowStart, reason: ReasonInvalidAnnotation, parse: parseSlowStart,
		keep: func(s, from *said) { s.balance.SlowStart = from.balance.SlowStart },
		part: lb.PartSlowStart,
	},
	{
		key: annotationReset, reason: ReasonInvalidAnnotation, parse: parseReset,
		keep: func(s, from *said) { s.reset = from.reset },
	},
}

// healthAnnotations are those that say how backends are watched.
func healthAnnotations() []serviceAnnotation {
	var all []serviceAnnotation
	for _, f := range lb.HealthFields() {
		all = append(all, serviceAnnotation{
			key: annotationPrefix + f.Name, reason: ReasonInvalidAnnotation,
			parse:  func(s *said, value string, _ *Options) error { return f.Set(&s.health, value) },
			keep:   func(s, from *said) { f.Keep(&s.health, &from.health) },
			health: &f,
		})
	}
	return all
}

func annotationField(key string) string { return "metadata.annotations[" + key + "]" }

// parseAnnotations reads what the annotations of a Service say. What is not said is
// the default. given are those that say something, bad those of them that say
// nothing valid.
func parseAnnotations(as map[string]string, o *Options, p *problems) (s said, given, bad asked) {
	s.balance.Signal = defaultSignal
	for i := range serviceAnnotations {
		a := &serviceAnnotations[i]
		value := as[a.key]
		if value == "" {
			continue
		}
		given |= 1 << i
		if err := a.parse(&s, value, o); err != nil {
			p.add(annotationField(a.key), a.reason, err)
			bad |= 1 << i
		}
	}
	for _, key := range slices.Sorted(maps.Keys(as)) {
		known := slices.ContainsFunc(serviceAnnotations, func(a serviceAnnotation) bool { return a.key == key })
		if strings.HasPrefix(key, annotationPrefix) && !known {
			p.add(annotationField(key), ReasonUnknownAnnotation, errors.New("is no annotation of Services: it is ignored"))
		}
	}
	return s, given, bad
}

// settle completes a parsed Service with what before, the same Service until now
// or nil, said where s says nothing valid. It notes which annotations have no
// effect.
func (s *service) settle(before *service, o *Options) {
	var kept said
	if before != nil && before.uid == s.uid {
		kept = before.said
		for i := range serviceAnnotations {
			if s.bad.has(i) {
				serviceAnnotations[i].keep(&s.said, &kept)
			}
		}
	}
	p := problems{kind: KindService, object: s.obj}
	s.settleBalance(o, &p)
	s.settleHealth(&kept.health, o, &p)
	s.effects = p.list()
}

// works tells whether annotation i says something valid.
func (s *service) works(i int) bool { return s.given.has(i) && !s.bad.has(i) }

func (s *service) settleBalance(o *Options, p *problems) {
	algorithm := cmp.Or(s.said.balance.Algorithm, o.DefaultAlgorithm)
	for i := range serviceAnnotations {
		a := &serviceAnnotations[i]
		if algorithm != "" && s.works(i) && !a.part.Matters(algorithm) {
			p.add(annotationField(a.key), ReasonNoEffect, fmt.Errorf("has no effect with algorithm %s", algorithm))
		}
	}
}

func parseAlgorithm(s *said, value string, o *Options) error {
	if o.CheckAlgorithm != nil {
		if err := o.CheckAlgorithm(lb.Brief(value)); err != nil { // which says it; no name is long
			return err
		}
	}
	s.balance.Algorithm = value
	return nil
}

func parseHashKey(s *said, value string, _ *Options) (err error) {
	s.balance.HashKey, err = choice(value, lb.HashSource, lb.HashSourcePort, lb.HashTuple)
	return err
}

func parseSignal(s *said, value string, _ *Options) error {
	signal, err := choice(value, lb.SignalConnect, lb.SignalFirstByte, lb.SignalLastByte)
	if err == nil {
		s.balance.Signal = signal
	}
	return err
}

// choice returns the one of values that is spelled like text, or the zero value.
func choice[T fmt.Stringer](text string, values ...T) (v T, err error) {
	names := make([]string, len(values))
	for i, v := range values {
		if names[i] = v.String(); names[i] == text {
			return v, nil
		}
	}
	return v, fmt.Errorf("%s: want one of %s", lb.Quote(text), strings.Join(names, ", "))
}

// parsePrefixLen reads "24", for IPv4, or "24,64", for IPv4 and IPv6.
func parsePrefixLen(s *said, value string, _ *Options) error {
	text4, text6, both := strings.Cut(value, ",")
	len4, ok := bits(text4, 32)
	len6 := uint8(0)
	if both && ok {
		len6, ok = bits(text6, 128)
	}
	if !ok {
		return fmt.Errorf("%s: want a prefix length from 1 to 32 for IPv4, or that, a comma and one from 1 to 128 for IPv6", lb.Quote(value))
	}
	s.balance.Prefix4, s.balance.Prefix6 = len4, len6
	return nil
}

func bits(text string, limit uint64) (uint8, bool) {
	n, err := strconv.ParseUint(text, 10, 8)
	return uint8(n), err == nil && n >= 1 && n <= limit
}

// parseSlowStart reads a duration; 0 is no slow start, whatever the cluster's
// default is.
func parseSlowStart(s *said, value string, _ *Options) error {
	d, err := lb.ParseSlowStart(value)
	if err != nil {
		return err
	}
	if s.balance.SlowStart = d; d == 0 {
		s.balance.SlowStart = lb.NoSlowStart
	}
	return nil
}

// parseReset reads whether connections to a backend that is gone are reset.
func parseReset(s *said, value string, _ *Options) error {
	switch value {
	case "true", "false":
		s.reset = value == "true"
		return nil
	}
	return fmt.Errorf("%s: want true or false", lb.Quote(value))
}

// parseWeight reads a weight.
func parseWeight(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%s: want a whole number from 0 to 65535", lb.Quote(text))
	}
	return uint16(n), nil
}
