// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/bpf"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// option says how many values an option of a rule has and what they mean.
type option struct {
	values int
	read   func(p *parser, v []string) error
}

// options are those that parseRule knows, by name.
var options = map[string]option{
	"-s":               {1, func(p *parser, v []string) error { return p.prefix(0, "-s", v[0]) }},
	"-d":               {1, func(p *parser, v []string) error { return p.prefix(1, "-d", v[0]) }},
	"-i":               {1, (*parser).device},
	"-p":               {1, (*parser).protocol},
	"-m":               {1, func(*parser, []string) error { return nil }},
	"--dport":          {1, (*parser).port},
	"--src-type":       {1, func(p *parser, v []string) error { return p.addrType("--src-type", v[0]) }},
	"--dst-type":       {1, func(p *parser, v []string) error { return p.addrType("--dst-type", v[0]) }},
	"--mark":           {1, (*parser).hasMark},
	"--ctstate":        {1, (*parser).state},
	"--match-set":      {2, (*parser).member},
	"--bytecode":       {1, (*parser).bytecode},
	"--mode":           {1, (*parser).mode},
	"--probability":    {1, (*parser).probability},
	"--every":          {1, (*parser).every},
	"--packet":         {1, (*parser).packet},
	"--comment":        {1, (*parser).remark},
	"-j":               {1, (*parser).jump},
	"-g":               {1, (*parser).goTo},
	"--to-destination": {1, (*parser).destination},
	"--set-xmark":      {1, (*parser).setMark},
	"--or-mark":        {1, (*parser).orMark},
	"--add-set":        {2, func(p *parser, v []string) error { return p.changeSet("--add-set", v) }},
	"--del-set":        {2, func(p *parser, v []string) error { return p.changeSet("--del-set", v) }},
	"--exist":          {0, func(p *parser, _ []string) error { return p.note("--exist") }},
	"--timeout":        {1, func(p *parser, v []string) error { return p.note("--timeout " + v[0]) }},
	"--to-ports":       {1, func(p *parser, v []string) error { return p.note("--to-ports " + v[0]) }},
	"--random-fully":   {0, func(p *parser, _ []string) error { return p.note("--random-fully") }},
	"--reject-with":    {1, (*parser).rejectWith},
}

// numbers reads one or two numbers with a separator between them: both are the same if
// there is one.
func numbers(text, separator string, bits int) (a, b uint32, err error) {
	first, second, two := strings.Cut(text, separator)
	x, err := strconv.ParseUint(first, 0, bits)
	if err != nil || !two {
		return uint32(x), uint32(x), err
	}
	y, err := strconv.ParseUint(second, 0, bits)
	return uint32(x), uint32(y), err
}

func (p *parser) prefix(rank int, name, text string) error {
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		addr, errAddr := netip.ParseAddr(text)
		if errAddr != nil {
			return err
		}
		prefix = single(addr)
	}
	if prefix.Bits() == 0 && !p.not {
		return nil // iptables-save does not print it
	}
	p.condition(rank, name+" "+prefix.Masked().String(), func(_ *tracer, pk *packet, _ spotOfRule) bool {
		if rank == 0 {
			return prefix.Contains(pk.src.Addr())
		}
		return prefix.Contains(pk.dst.Addr())
	})
	return nil
}

func (p *parser) device(v []string) error {
	begin, wild := strings.CutSuffix(v[0], "+")
	p.condition(2, "-i "+v[0], func(_ *tracer, pk *packet, _ spotOfRule) bool {
		return pk.in == begin || wild && strings.HasPrefix(pk.in, begin)
	})
	return nil
}

func (p *parser) protocol(v []string) error {
	proto, err := lb.ParseProto(v[0])
	if err != nil {
		n, errNumber := strconv.ParseUint(v[0], 10, 8)
		if errNumber != nil {
			return err
		}
		proto = lb.Proto(n)
	}
	p.condition(3, "-p "+proto.String(), func(_ *tracer, pk *packet, _ spotOfRule) bool { return pk.proto == proto })
	return nil
}

func (p *parser) port(v []string) error {
	low, high, err := numbers(v[0], ":", 16)
	p.condition(4, fmt.Sprintf("--dport %d:%d", low, high), func(_ *tracer, pk *packet, _ spotOfRule) bool {
		port := uint32(pk.dst.Port())
		return low <= port && port <= high
	})
	return err
}

func (p *parser) addrType(name, kind string) error {
	if kind != "LOCAL" {
		return errUnknown
	}
	p.condition(4, name+" "+kind, func(t *tracer, pk *packet, _ spotOfRule) bool {
		at := pk.src
		if name == "--dst-type" {
			at = pk.dst
		}
		return t.local != nil && t.local(at.Addr())
	})
	return nil
}

func (p *parser) hasMark(v []string) error {
	value, mask, err := numbers(v[0], "/", 32)
	if !strings.Contains(v[0], "/") {
		mask = math.MaxUint32
	}
	p.condition(4, fmt.Sprintf("--mark %#x/%#x", value, mask), func(_ *tracer, pk *packet, _ spotOfRule) bool {
		return pk.mark&mask == value
	})
	return err
}

// state reads states of conntrack. Their order does not matter.
func (p *parser) state(v []string) error {
	list := strings.Split(v[0], ",")
	slices.Sort(list)
	p.condition(4, "--ctstate "+strings.Join(list, ","), func(_ *tracer, pk *packet, _ spotOfRule) bool {
		if len(pk.states) == 0 {
			return slices.Contains(list, "NEW")
		}
		return slices.ContainsFunc(pk.states, func(s string) bool { return slices.Contains(list, s) })
	})
	return nil
}

func (p *parser) member(v []string) error {
	p.condition(4, "--match-set "+v[0]+" "+v[1], func(t *tracer, pk *packet, _ spotOfRule) bool {
		return t.inSet != nil && t.inSet(v[0], pk, v[1])
	})
	return nil
}

// bytecode reads a program: the number of instructions, and the four numbers of each.
func (p *parser) bytecode(v []string) error {
	lines := strings.Split(strings.TrimSuffix(v[0], ","), ",")
	var code []bpf.Instruction
	for _, line := range lines[1:] {
		var raw bpf.RawInstruction
		if _, err := fmt.Sscan(line, &raw.Op, &raw.Jt, &raw.Jf, &raw.K); err != nil {
			return fmt.Errorf("instruction %q: %w", line, err)
		}
		code = append(code, raw.Disassemble())
	}
	if lines[0] != strconv.Itoa(len(code)) {
		return fmt.Errorf("%d instructions, not %s", len(code), lines[0])
	}
	vm, err := bpf.NewVM(code)
	p.condition(4, "--bytecode "+strings.Join(lines, ","), func(t *tracer, pk *packet, _ spotOfRule) bool {
		n, err := vm.Run(t.bytes(pk))
		return err == nil && n != 0
	})
	return err
}

// mode begins a statistic: what it matches follows.
func (p *parser) mode(v []string) error {
	if v[0] != "random" && v[0] != "nth" {
		return errUnknown
	}
	return nil
}

// probability reads a chance, which the kernel has in units of 2^-31.
func (p *parser) probability(v []string) error {
	chance, err := strconv.ParseFloat(v[0], 64)
	if chance < 0 || chance > 1 {
		return errors.New("not in 0..1")
	}
	below := uint32(math.Round(chance * (1 << 31)))
	p.condition(4, fmt.Sprintf("--probability %d", below), func(t *tracer, _ *packet, _ spotOfRule) bool {
		return t.draw(below)
	})
	return err
}

func (p *parser) every(v []string) error {
	n, err := strconv.ParseUint(v[0], 10, 32)
	if n == 0 {
		return errors.New("0 is none")
	}
	p.condition(4, fmt.Sprintf("--every %d", n), func(t *tracer, _ *packet, at spotOfRule) bool {
		return t.turn(at, uint32(n))
	})
	return err
}

// packet reads which of every so many packets has the turn: lbproxy renders the first.
func (p *parser) packet(v []string) error {
	if v[0] != "0" {
		return errUnknown
	}
	return nil
}

func (p *parser) remark(v []string) error {
	p.condition(5, "--comment "+strconv.Quote(v[0]), func(*tracer, *packet, spotOfRule) bool { return true })
	return nil
}

// jump reads a target, or a chain that the packet comes back from.
func (p *parser) jump(v []string) error {
	p.end = "-j " + v[0]
	switch v[0] {
	case "DNAT", "MASQUERADE", "MARK", "SET", "REJECT", "DROP", "ACCEPT", "RETURN":
		p.target = v[0]
	default:
		p.chain = v[0]
	}
	return nil
}

func (p *parser) goTo(v []string) error {
	p.end, p.chain, p.gone = "-g "+v[0], v[0], true
	return nil
}

// note takes an option of the target into the rule's form.
func (p *parser) note(form string) error {
	p.extra = append(p.extra, form)
	return nil
}

func (p *parser) destination(v []string) error {
	var err error
	p.to, err = netip.ParseAddrPort(v[0])
	_ = p.note("--to-destination " + p.to.String())
	return err
}

func (p *parser) setMark(v []string) error {
	var err error
	p.value, p.rule.mask, err = numbers(v[0], "/", 32)
	if !strings.Contains(v[0], "/") {
		p.mask = math.MaxUint32
	}
	_ = p.note(fmt.Sprintf("--set-xmark %#x/%#x", p.value, p.mask))
	return err
}

// orMark reads what iptables-save prints as --set-xmark.
func (p *parser) orMark(v []string) error { return p.setMark([]string{v[0] + "/" + v[0]}) }

func (p *parser) changeSet(name string, v []string) error {
	p.set, p.dirs, p.add = v[0], v[1], name == "--add-set"
	return p.note(name + " " + v[0] + " " + v[1])
}

// rejectWith reads an answer. iptables-save prints the one that needs not be said, too.
func (p *parser) rejectWith(v []string) error {
	if v[0] == "icmp-port-unreachable" || v[0] == "icmp6-port-unreachable" {
		return nil
	}
	return p.note("--reject-with " + v[0])
}
