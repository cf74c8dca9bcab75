// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// rule is one rule, parsed.
type rule struct {
	text    string // as it was given
	form    string // the same for equal rules
	matches []match
	target  string         // a word in capitals; "" none
	chain   string         // that it leads to
	gone    bool           // and does not come back from: -g
	to      netip.AddrPort // of DNAT
	value   uint32         // of MARK
	mask    uint32         // of MARK
	set     string         // of SET
	dirs    string         // of SET
	add     bool           // of SET
}

// match is one condition of a rule.
type match struct {
	rank int    // iptables-save prints conditions of lower rank first
	form string // the same for equal conditions
	not  bool
	test test
}

// test tells whether a packet fulfils a condition of the rule at a place.
type test func(t *tracer, p *packet, at spotOfRule) bool

// equal tells whether the rules do the same.
func (r rule) equal(o rule) bool { return r.form == o.form }

// parseRule reads the text of a rule: all forms that lbproxy renders, and what
// iptables-save prints for them, which is equal to what was rendered. It fails for
// options that it does not know.
func parseRule(text string) (rule, error) {
	p := parser{rule: rule{text: text}, words: splitRule(text)}
	for len(p.words) > 0 {
		if err := p.option(); err != nil {
			return rule{}, fmt.Errorf("rule %q: %w", text, err)
		}
	}
	slices.SortStableFunc(p.matches, func(a, b match) int { return cmp.Compare(a.rank, b.rank) })
	var form []string
	for _, m := range p.matches {
		if m.not {
			form = append(form, "!")
		}
		form = append(form, m.form)
	}
	slices.Sort(p.extra)
	p.form = strings.Join(slices.Concat(form, []string{p.end}, p.extra), " ")
	return p.rule, nil
}

// splitRule splits a rule into words as iptables-restore does.
func splitRule(text string) []string {
	var words []string
	var word []byte
	var quote byte
	inWord := false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && quote != 0 && i+1 < len(text):
			i++
			word = append(word, text[i])
		case c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, inWord = c, true
		case quote == 0 && c == ' ':
			if inWord {
				words = append(words, string(word))
			}
			word, inWord = nil, false
		default:
			word, inWord = append(word, c), true
		}
	}
	if inWord {
		words = append(words, string(word))
	}
	return words
}

// parser is a rule of which the words are still to be read.
type parser struct {
	rule
	words []string
	not   bool     // of the next condition
	end   string   // form of the target
	extra []string // forms of its options
}

var (
	errUnknown = errors.New("unknown option")
	errShort   = errors.New("the value is missing")
)

// next returns the next word.
func (p *parser) next() (string, error) {
	if len(p.words) == 0 {
		return "", errShort
	}
	w := p.words[0]
	p.words = p.words[1:]
	return w, nil
}

// option reads one option.
func (p *parser) option() error {
	name, err := p.next()
	if err != nil {
		return err
	}
	if name == "!" {
		p.not = true
		return nil
	}
	o, ok := options[name]
	if !ok {
		return fmt.Errorf("%s: %w", name, errUnknown)
	}
	values := make([]string, o.values)
	for i := range values {
		if values[i], err = p.next(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := o.read(p, values); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// condition adds a condition.
func (p *parser) condition(rank int, form string, do test) {
	p.matches = append(p.matches, match{rank, form, p.not, do})
	p.not = false
}
