// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Conntrack is what the connection tracking of this network namespace is set to. Zero
// values leave what is there.
type Conntrack struct {
	MaxPerCore uint32 // connections by CPU that can be tracked; never lowered
	Min        uint32 // and at least as many in all, if MaxPerCore is set

	TCPEstablished time.Duration // how long an idle connection is remembered
	TCPCloseWait   time.Duration // and one that a backend has not closed
	UDP            time.Duration
	UDPStream      time.Duration

	TCPLiberal bool // packets outside of the TCP window are let pass
}

// maxTracked is how many connections lbproxy sets at most, however many CPUs there are.
const maxTracked = 1 << 20

// DefaultConntrack returns what kube-proxy sets.
func DefaultConntrack() Conntrack {
	return Conntrack{MaxPerCore: 32 << 10, Min: 128 << 10, TCPEstablished: 24 * time.Hour, TCPCloseWait: time.Hour}
}

// limit returns how many connections are to be tracked by a node with so many CPUs.
func (c Conntrack) limit(cpus int) uint64 {
	if c.MaxPerCore == 0 {
		return 0
	}
	return min(maxTracked, max(uint64(c.MaxPerCore)*uint64(cpus), uint64(c.Min)))
}

// sysctls are the kernel's settings, as files below a directory: /proc/sys, whose part
// net shows the network namespace of the calling thread.
type sysctls struct {
	root     string
	hashsize string // the file with the size of conntrack's hash table, one for all namespaces
	log      *slog.Logger
}

func systemSettings(log *slog.Logger) sysctls {
	return sysctls{"/proc/sys", "/sys/module/nf_conntrack/parameters/hashsize", log}
}

// Apply sets the connection tracking of this network namespace, for whoever uses it
// besides a dataplane. Where there is none, there is nothing to set.
func (c Conntrack) Apply(log *slog.Logger) { c.applyIfThere(systemSettings(log)) }

func (c Conntrack) applyIfThere(s sysctls) {
	if _, err := os.Stat(s.file("net/netfilter/nf_conntrack_max")); err != nil {
		s.log.Debug("there is no connection tracking to set", "error", err)
		return
	}
	c.apply(s)
}

// apply sets conntrack. What cannot be set, as in a network namespace that is not the
// first one, is logged.
func (c Conntrack) apply(s sysctls) {
	if limit := c.limit(runtime.NumCPU()); limit > 0 {
		s.raise(s.file("net/netfilter/nf_conntrack_max"), limit)
		s.raise(s.hashsize, limit/4)
	}
	for _, t := range []struct {
		name string
		d    time.Duration
	}{
		{"nf_conntrack_tcp_timeout_established", c.TCPEstablished},
		{"nf_conntrack_tcp_timeout_close_wait", c.TCPCloseWait},
		{"nf_conntrack_udp_timeout", c.UDP},
		{"nf_conntrack_udp_timeout_stream", c.UDPStream},
	} {
		if t.d > 0 {
			s.set(s.file("net/netfilter/"+t.name), uint64(max(1, t.d/time.Second)))
		}
	}
	if c.TCPLiberal {
		s.set(s.file("net/netfilter/nf_conntrack_tcp_be_liberal"), 1)
	}
}

// liberal tells whether packets outside of the TCP window are let pass.
func (s sysctls) liberal() bool {
	n, err := readSetting(s.file("net/netfilter/nf_conntrack_tcp_be_liberal"))
	return err == nil && n != 0
}

// routeLocalnet lets translated packets go to 127.0.0.0/8, so that node ports can be
// served there. It tells whether that is so now.
func (s sysctls) routeLocalnet() bool {
	return s.set(s.file("net/ipv4/conf/all/route_localnet"), 1)
}

// localnet tells whether it does.
func (s sysctls) localnet() bool {
	n, err := readSetting(s.file("net/ipv4/conf/all/route_localnet"))
	return err == nil && n != 0
}

// localnetMark is the file that tells that lbproxy has set route_localnet, beside the
// lock file.
func localnetMark(o Options) string { return o.LockFile + ".route_localnet" }

// OpenLocalnet sets route_localnet for a dataplane that comes later and may not, if it is to
// serve node ports at 127.0.0.1. What cannot be set is logged.
func OpenLocalnet(opts Options) {
	opts = opts.orDefault()
	if opts.LocalhostNodePorts {
		openLocalnet(opts, systemSettings(opts.Log))
	}
}

// openLocalnet sets route_localnet, and notes it if it was not set before.
func openLocalnet(o Options, s sysctls) {
	if s.localnet() {
		return
	}
	mark := localnetMark(o)
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		s.log.Warn("cleanup will not reset route_localnet", "error", err)
	}
	if !s.routeLocalnet() {
		_ = os.Remove(mark) // it is no harm
	}
}

// closeLocalnet resets route_localnet if lbproxy has set it. It says whether it did.
func closeLocalnet(o Options, s sysctls) bool {
	mark := localnetMark(o)
	if _, err := os.Stat(mark); err != nil {
		return false
	}
	return s.set(s.file("net/ipv4/conf/all/route_localnet"), 0) && os.Remove(mark) == nil
}

// GiveLocalnet makes route_localnet stay for a kube-proxy that serves from now on, which
// has found it set and does not set it again: nothing here resets it any more.
func GiveLocalnet(opts Options) error {
	if err := os.Remove(localnetMark(opts.orDefault())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keep route_localnet: %w", err)
	}
	return nil
}

func (s sysctls) file(name string) string { return filepath.Join(s.root, name) }

// raise sets a value unless it is as high already.
func (s sysctls) raise(file string, n uint64) {
	old, err := readSetting(file)
	if err != nil {
		s.warn(file, n, err)
		return
	}
	if old < n {
		s.set(file, n)
	}
}

// set sets a value and tells whether it is that now.
func (s sysctls) set(file string, n uint64) bool {
	if old, err := readSetting(file); err == nil && old == n {
		return true
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0) // never made
	if err == nil {
		_, err = f.WriteString(strconv.FormatUint(n, 10))
		f.Close()
	}
	if err != nil {
		s.warn(file, n, err)
		return false
	}
	s.log.Info("kernel setting changed", "file", file, "value", n)
	return true
}

func (s sysctls) warn(file string, n uint64, err error) {
	s.log.Warn("a kernel setting cannot be changed", "file", file, "wanted", n, "error", err)
}

func readSetting(file string) (uint64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return n, nil
}
