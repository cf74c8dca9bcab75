// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The functions of this file turn the text of a field into its value and back.

func text(s string) (string, error) { return s, nil }

func format[T any](v T) string { return fmt.Sprint(v) }

// nodeName does what kube-proxy does with a host name.
func nodeName(s string) (string, error) {
	name := strings.ToLower(strings.TrimSpace(s))
	if strings.ContainsAny(name, " /") {
		return "", fmt.Errorf("%q is not a node's name", s)
	}
	return name, nil
}

func dataplane(s string) (string, error) {
	switch s {
	case "":
		return Auto, nil
	case Auto, EBPF:
		return s, nil
	case "iptables":
		return "", errors.New("the iptables dataplane is not in this version: want auto or ebpf")
	}
	return "", fmt.Errorf("%q: want auto or ebpf", s)
}

func oneOf(names ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		if !slices.Contains(names, s) {
			return "", fmt.Errorf("%q: want %s", s, strings.Join(names, " or "))
		}
		return s, nil
	}
}

func checked(check func(string) error) func(string) (string, error) {
	return func(s string) (string, error) {
		if check == nil {
			return s, nil
		}
		return s, check(s)
	}
}

func absolute(s string) (string, error) {
	if s != "" && !filepath.IsAbs(s) {
		return "", fmt.Errorf("%q: want an absolute path", s)
	}
	return s, nil
}

// list splits s at commas; empty items are left out.
func list(s string) []string {
	var items []string
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

// devices returns nil for all.
func devices(s string) ([]string, error) {
	names := list(s)
	if len(names) == 1 && names[0] == Auto {
		return nil, nil
	}
	for _, name := range names {
		if _, err := filepath.Match(name, ""); err != nil || strings.Contains(name, "/") || name == Auto {
			return nil, fmt.Errorf("%q is not a device's name or glob", name)
		}
	}
	return names, nil
}

func formatDevices(names []string) string {
	if names == nil {
		return Auto
	}
	return strings.Join(names, ",")
}

func prefixes(s string) ([]netip.Prefix, error) {
	var ps []netip.Prefix
	for _, item := range list(s) {
		p, err := netip.ParsePrefix(item)
		if err != nil {
			return nil, fmt.Errorf("%q: want a range such as 10.0.0.0/8 or fd00::/8", item)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%q has bits beyond its length: did you mean %s?", item, p.Masked())
		}
		ps = append(ps, p)
	}
	return ps, nil
}

func formatPrefixes(ps []netip.Prefix) string {
	items := make([]string, len(ps))
	for i, p := range ps {
		items[i] = p.String()
	}
	return strings.Join(items, ",")
}

// bindAddress reads ip:port, an ip alone, or :port for all IPv4 addresses.
func bindAddress(port uint16) func(string) (netip.AddrPort, error) {
	return func(s string) (netip.AddrPort, error) {
		if s == "" {
			return netip.AddrPort{}, nil
		}
		if addr, err := netip.ParseAddr(s); err == nil {
			return netip.AddrPortFrom(addr, port), nil
		}
		full := s
		if strings.HasPrefix(s, ":") {
			full = "0.0.0.0" + s
		}
		ap, err := netip.ParseAddrPort(full)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("%q: want ip:port", s)
		}
		return ap, nil
	}
}

func formatAddrPort(ap netip.AddrPort) string {
	if !ap.IsValid() {
		return ""
	}
	return ap.String()
}

func logLevel(s string) (slog.Level, error) {
	switch s {
	case "debug", "info", "warn", "error":
		var l slog.Level
		return l, l.UnmarshalText([]byte(s))
	}
	return 0, fmt.Errorf("%q: want debug, info, warn or error", s)
}

func formatLevel(l slog.Level) string { return strings.ToLower(l.String()) }

// maxCount keeps entries times their size within what one kernel map may have.
const maxCount = 1 << 26

func count(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n > maxCount {
		return 0, fmt.Errorf("%q: want a number from 0 to %d", s, maxCount)
	}
	return uint32(n), nil
}

// seed reads a 64-bit number, decimal or hexadecimal.
func seed(s string) (uint64, error) {
	digits, base := s, 10
	if hex, ok := strings.CutPrefix(strings.ToLower(s), "0x"); ok {
		digits, base = hex, 16
	}
	n, err := strconv.ParseUint(digits, base, 64)
	if err != nil {
		return 0, fmt.Errorf("%q: want a number of 64 bits, such as 12345 or 0x1f2e3d4c5b6a7988", s)
	}
	return n, nil
}

func period(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q: want a duration such as 30s", s)
	}
	if d < time.Second {
		return 0, fmt.Errorf("%s: want 1s or more", d)
	}
	return d, nil
}

func boolean(s string) (bool, error) {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return false, fmt.Errorf("%q: want true or false", s)
	}
	return b, nil
}
