// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/internal/lb"
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

// dataplane reads a dataplane's name. kube-proxy's modes that lbproxy has not are
// noted, and taken for Auto: what they do, every dataplane of lbproxy does.
func (l *Loader) dataplane(s string) (string, error) {
	l.foreignMode = ""
	switch s {
	case "":
		return Auto, nil
	case Auto, EBPF, IPTables:
		return s, nil
	case "nftables", "ipvs":
		l.foreignMode = s
		return Auto, nil
	}
	return "", fmt.Errorf("%q: want auto, ebpf or iptables", s)
}

func oneOf(names ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		if !slices.Contains(names, s) {
			return "", fmt.Errorf("%q: want %s", s, strings.Join(names, " or "))
		}
		return s, nil
	}
}

// known takes one of names, or anything if there are none.
func known(names []string) func(string) (string, error) {
	return func(s string) (string, error) {
		if len(names) > 0 && !slices.Contains(names, s) {
			return "", fmt.Errorf("unknown algorithm %q: want one of %s", s, strings.Join(names, ", "))
		}
		return s, nil
	}
}

// masterURL reads where an API server is: a URL, or host:port.
func masterURL(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	full := s
	if !strings.Contains(s, "://") {
		full = "https://" + s
	}
	u, err := url.Parse(full)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return "", fmt.Errorf("%q: want a URL such as https://192.0.2.1:6443", s)
	}
	return full, nil
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

// prefixes reads address ranges. Bits beyond a range's length say nothing, as
// kube-proxy has it.
func prefixes(s string) ([]netip.Prefix, error) {
	var ps []netip.Prefix
	for _, item := range list(s) {
		p, err := netip.ParsePrefix(item)
		if err != nil {
			return nil, fmt.Errorf("%q: want a range such as 10.0.0.0/8 or fd00::/8", item)
		}
		ps = append(ps, p.Masked())
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

// The keywords of nodeport-addresses.
const (
	addrsPrimary   = "primary"
	addrsLocalhost = "localhost"
	addrsAll       = "all"
)

// nodePortAddresses reads ranges and keywords. Only primary stays a word: what it
// stands for is known when the Node is.
func nodePortAddresses(s string) (a lb.NodePortAddresses, err error) {
	for _, item := range list(s) {
		switch item {
		case addrsPrimary:
			a.Primary = true
		case addrsLocalhost:
			a.Ranges = append(a.Ranges, netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"))
		case addrsAll:
			a.Ranges = append(a.Ranges, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
		default:
			ps, err := prefixes(item)
			if err != nil {
				return lb.NodePortAddresses{}, fmt.Errorf("%w; or %s, %s, %s", err, addrsPrimary, addrsLocalhost, addrsAll)
			}
			a.Ranges = append(a.Ranges, ps...)
		}
	}
	return a, nil
}

func formatNodePortAddresses(a lb.NodePortAddresses) string {
	s := formatPrefixes(a.Ranges)
	switch {
	case a.Primary && s != "":
		return addrsPrimary + "," + s
	case a.Primary:
		return addrsPrimary
	}
	return s
}

// localMode takes nothing for kube-proxy's default.
func localMode(s string) (lb.LocalMode, error) {
	if s == "" {
		return lb.LocalClusterCIDR, nil
	}
	mode, ok := lb.ParseLocalMode(s)
	if !ok {
		return 0, fmt.Errorf("%q: want ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix", s)
	}
	return mode, nil
}

// deviceName reads the name of a network device, or the beginning of one.
func deviceName(s string) (string, error) {
	if len(s) > maxDeviceName || strings.ContainsAny(s, "/: \t*") {
		return "", fmt.Errorf("%q is not a device's name: want at most %d bytes, without spaces and /:*", s, maxDeviceName)
	}
	return s, nil
}

// maxDeviceName is IFNAMSIZ without the byte that ends the name.
const maxDeviceName = 15

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

var logLevels = []string{"debug", "info", "warn", "error"}

func logLevel(s string) (slog.Level, error) {
	if slices.Contains(logLevels, s) {
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

// anyCount is count without a limit.
func anyCount(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%q: want a number from 0 to %d", s, math.MaxInt32)
	}
	return uint32(n), nil
}

// bit reads the number of a bit of 32.
func bit(s string) (uint8, error) {
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || n > 31 {
		return 0, fmt.Errorf("%q: want a number from 0 to 31", s)
	}
	return uint8(n), nil
}

// oomScoreAdj reads what /proc/self/oom_score_adj takes.
func oomScoreAdj(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < -1000 || n > 1000 {
		return 0, fmt.Errorf("%q: want a number from -1000 to 1000", s)
	}
	return n, nil
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

// periodOrNever is period, or 0 for never.
func periodOrNever(s string) (time.Duration, error) {
	if d, err := time.ParseDuration(s); err == nil && d == 0 {
		return 0, nil
	}
	d, err := period(s)
	if err != nil {
		return 0, fmt.Errorf("%w, or 0s for never", err)
	}
	return d, nil
}

// timeout reads a time of whole seconds, as netfilter has them; 0 stands for what it is.
func timeout(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q: want a duration such as 30s", s)
	}
	if d < 0 || d%time.Second != 0 || d > math.MaxInt32*time.Second {
		return 0, fmt.Errorf("%s: want whole seconds, or 0s to leave it as it is", d)
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

// nobody is the user, and the group, that owns nothing.
const nobody = 65534

// user reads uid:gid. Nothing that an annotation names runs as root.
func user(s string) (User, error) {
	uidText, gidText, _ := strings.Cut(s, ":")
	uid, errUID := strconv.ParseUint(uidText, 10, 32)
	gid, errGID := strconv.ParseUint(gidText, 10, 32)
	if errUID != nil || errGID != nil || uid == 0 || gid == 0 || uid == math.MaxUint32 || gid == math.MaxUint32 {
		return User{}, fmt.Errorf("%s: want uid:gid, numbers from 1 to %d", lb.Quote(s), uint32(math.MaxUint32-1))
	}
	return User{uint32(uid), uint32(gid)}, nil
}
