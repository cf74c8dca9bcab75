// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// setType is what the members of an ipset consist of, as the kernel names it.
type setType string

// The types in use.
const (
	hashIP        setType = "hash:ip"
	hashIPPort    setType = "hash:ip,port"
	hashNetPort   setType = "hash:net,port"
	hashIPPortNet setType = "hash:ip,port,net"
)

// setSpec is what an ipset is.
type setSpec struct {
	name    string
	typ     setType
	family  lb.Family
	timeout uint32 // seconds that a member stays; 0: until it is deleted
}

// maxMembers returns how many members the set may have; the kernel divides them among
// the parts of its table, so that it is full a little sooner or later.
func (s setSpec) maxMembers() uint32 {
	if s.timeout > 0 {
		return 1 << 16
	}
	return 1 << 20
}

// member is one entry of an ipset; what its type does not have is zero.
type member struct {
	addr  netip.Prefix // one address, except in hashNetPort
	proto lb.Proto
	port  uint16
	from  netip.Prefix
}

// String returns it as the program ipset writes it.
func (m member) String() string {
	s := prefixString(m.addr)
	if m.proto != 0 {
		s += fmt.Sprintf(",%s:%d", strings.ToLower(m.proto.String()), m.port)
	}
	if m.from.IsValid() {
		s += "," + prefixString(m.from)
	}
	return s
}

func prefixString(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// valid tells whether a set of this kind can hold m.
func (s setSpec) valid(m member) error {
	var err error
	for _, p := range []struct {
		prefix netip.Prefix
		want   bool // the type has it
		net    bool // it may be more than one address
	}{{m.addr, true, s.typ == hashNetPort}, {m.from, s.typ == hashIPPortNet, true}} {
		switch {
		case p.prefix.IsValid() != p.want:
			err = errors.New("a part is missing, or one too many")
		case !p.want:
		case lb.FamilyOf(p.prefix.Addr()) != s.family || p.prefix.Addr().Is4In6():
			err = errors.New("its family is another one")
		case p.prefix.Bits() == 0:
			err = errors.New("the kernel cannot hold a prefix of length 0")
		case !p.net && !p.prefix.IsSingleIP():
			err = errors.New("only single addresses can be held")
		case p.prefix != p.prefix.Masked():
			err = errors.New("the prefix has bits set behind its length")
		}
	}
	if err == nil && (m.proto != 0) != (s.typ != hashIP) {
		err = errors.New("a port is missing, or one too many")
	}
	return err
}

// sets are the ipsets of this network namespace that are lbproxy's own, of both
// families. It remembers what the kernel has, so that what is there already costs no
// write. It may be used from any goroutine and thread.
type sets struct {
	kernel *ipsets

	mu    sync.Mutex
	known map[string]*knownSet
	wrote uint64
}

// knownSet is what the kernel has.
type knownSet struct {
	spec    setSpec
	members map[member]bool // nil for sets with a timeout
}

// openSets reads all sets whose names begin with LBP-, in the network namespace of the
// calling thread.
func openSets() (*sets, error) {
	k, err := openIPSets()
	if err != nil {
		return nil, err
	}
	s := &sets{kernel: k, known: map[string]*knownSet{}}
	if s.known, err = s.read(); err != nil {
		k.close()
		return nil, fmt.Errorf("read ipsets: %w", err)
	}
	return s, nil
}

func (s *sets) close() { s.kernel.close() }

// read returns what the kernel has. Members of sets with a timeout are the kernel's
// business, and not read.
func (s *sets) read() (map[string]*knownSet, error) {
	heads, err := s.kernel.heads()
	if err != nil {
		return nil, err
	}
	known := map[string]*knownSet{}
	for _, h := range heads {
		if !strings.HasPrefix(h.name, prefix) {
			continue
		}
		k := &knownSet{spec: h.setSpec}
		if k.spec.timeout == 0 {
			k.members = make(map[member]bool, h.members)
			err := s.kernel.list(h.name, func(m member, _ uint32) { k.members[m] = true })
			if errors.Is(err, unix.ENOENT) {
				continue // it went between
			}
			if err != nil {
				return nil, fmt.Errorf("ipset %s: list: %w", h.name, err)
			}
		}
		known[h.name] = k
	}
	return known, nil
}

// create makes a set, unless it is there and the same. One with another timeout is
// replaced, and the new one has its members; one of another type or family must be
// destroyed, which the kernel refuses while a rule refers to it.
func (s *sets) create(spec setSpec) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !strings.HasPrefix(spec.name, prefix) || len(spec.name) > 31 {
		return fmt.Errorf("ipset %q is not lbproxy's to create", spec.name)
	}
	old := s.known[spec.name]
	switch {
	case old == nil:
	case old.spec == spec:
		return nil
	case old.spec.typ == spec.typ && old.spec.family == spec.family && spec.timeout > 0 && old.spec.timeout > 0:
		if err := s.replace(spec, startSize(spec)); err != nil {
			return fmt.Errorf("ipset %s: change its timeout: %w", spec.name, err)
		}
		old.spec = spec
		return nil
	default:
		if err := s.remove(spec.name); err != nil {
			return err
		}
	}
	s.wrote++
	if err := s.kernel.create(spec, startSize(spec)); err != nil {
		return fmt.Errorf("ipset %s: create: %w", spec.name, err)
	}
	k := &knownSet{spec: spec}
	if spec.timeout == 0 {
		k.members = map[member]bool{}
	}
	s.known[spec.name] = k
	return nil
}

// destroy removes a set; one that is not there is no error.
func (s *sets) destroy(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[name] == nil {
		return nil
	}
	return s.remove(name)
}

// remove is destroy with s.mu held.
func (s *sets) remove(name string) error {
	s.wrote++
	if err := s.kernel.destroy(name); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("ipset %s: destroy: %w", name, err)
	}
	delete(s.known, name)
	return nil
}

// add puts a member into a set. The error wraps dataplane.ErrFull when there is no room.
func (s *sets) add(name string, m member) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.checked(name, m)
	if err != nil || k.members[m] {
		return err
	}
	s.wrote++
	err = s.kernel.add(k.spec, m, 0)
	switch {
	case errors.Is(err, errSetFull):
		return fmt.Errorf("ipset %s: add %s: %w: it holds about %d members", name, m, dataplane.ErrFull, k.spec.maxMembers())
	case err != nil:
		return fmt.Errorf("ipset %s: add %s: %w", name, m, err)
	}
	if k.members != nil {
		k.members[m] = true
	}
	return nil
}

// del removes a member; one that is not there is no error.
func (s *sets) del(name string, m member) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.checked(name, m)
	if err != nil || k.members != nil && !k.members[m] {
		return err
	}
	s.wrote++
	if err := s.kernel.del(k.spec, m); err != nil {
		return fmt.Errorf("ipset %s: delete %s: %w", name, m, err)
	}
	delete(k.members, m)
	return nil
}

func (s *sets) checked(name string, m member) (*knownSet, error) {
	k := s.known[name]
	if k == nil {
		return nil, fmt.Errorf("ipset %s: it is not there", name)
	}
	if err := k.spec.valid(m); err != nil {
		return nil, fmt.Errorf("ipset %s: member %s: %w", name, m, err)
	}
	return k, nil
}

// members returns a copy of what a set has; nothing of one with a timeout.
func (s *sets) members(name string) map[member]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.known[name]
	if k == nil {
		return nil
	}
	return maps.Clone(k.members)
}

// names returns the names of all sets in order.
func (s *sets) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.known))
}

// writes counts the changes that the kernel was asked for.
func (s *sets) writes() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wrote
}
