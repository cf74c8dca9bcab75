// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"fmt"
	"net/netip"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The bounds of what a Probe says.
const (
	MaxExpect      = 16   // ranges of statuses
	MaxPath        = 1024 // bytes
	MaxHeaders     = 16   // lines
	MaxHeaderBytes = 4096 // of all lines
	MaxBody        = 256  // bytes
	MaxHost        = 253  // bytes
	MaxScript      = 64   // bytes
	MaxGRPCService = 253  // bytes
)

// ParseProbeKind reads none, tcp, http, https, grpc or exec, in any case of letters.
func ParseProbeKind(text string) (ProbeKind, error) {
	for k := ProbeNone; k <= ProbeExec; k++ {
		if strings.EqualFold(text, k.String()) {
			return k, nil
		}
	}
	return ProbeDefault, fmt.Errorf("%s: want none, tcp, http, https, grpc or exec", Quote(text))
}

// StatusRange is the HTTP statuses from Low to High, 100 <= Low <= High <= 599.
type StatusRange struct{ Low, High uint16 }

// Statuses is what Probe.Expect says, in its order.
type Statuses []StatusRange

// ParseExpect reads statuses and ranges of them, such as "200-399" or "200,204": 1 to
// MaxExpect, with commas between. Spaces around each do not count.
func ParseExpect(text string) (Statuses, error) {
	if len(text) > MaxExpect*len("200 - 399 , ") {
		return nil, fmt.Errorf("%s: longer than %d ranges of statuses", Quote(text), MaxExpect)
	}
	var list Statuses
	for item := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(item, "-")
		if !isRange {
			last = first
		}
		low, ok := parseStatus(first)
		high, alsoOK := parseStatus(last)
		if !ok || !alsoOK || low > high {
			return nil, fmt.Errorf("%s: %s is no status from 100 to 599, nor a range such as 200-399", Quote(text), Quote(item))
		}
		list = append(list, StatusRange{low, high})
	}
	if len(list) > MaxExpect {
		return nil, fmt.Errorf("%s: %d ranges of statuses, at most %d", Quote(text), len(list), MaxExpect)
	}
	return list, nil
}

func parseStatus(text string) (uint16, bool) {
	text = strings.Trim(text, " ")
	if len(text) != 3 || text[0] < '1' || text[0] > '5' {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 16)
	return uint16(n), err == nil
}

// Has tells whether a status is among s.
func (s Statuses) Has(status int) bool {
	for _, r := range s {
		if int(r.Low) <= status && status <= int(r.High) {
			return true
		}
	}
	return false
}

// Names tells whether s has a status by itself, not only in a range.
func (s Statuses) Names(status int) bool {
	for _, r := range s {
		if int(r.Low) == status && r.High == r.Low {
			return true
		}
	}
	return false
}

// String returns what ParseExpect reads, without spaces.
func (s Statuses) String() string {
	var b strings.Builder
	for i, r := range s {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%d", r.Low)
		if r.High != r.Low {
			fmt.Fprintf(&b, "-%d", r.High)
		}
	}
	return b.String()
}

// CheckPath returns an error if text cannot be Probe.Path: it begins with one slash, may
// have a query, and has at most MaxPath bytes, which are visible ASCII; others are written
// as %xx.
func CheckPath(text string) error {
	switch {
	case !strings.HasPrefix(text, "/") || strings.HasPrefix(text, "//"):
		return fmt.Errorf("%s: want a path that begins with one slash", Quote(text))
	case len(text) > MaxPath:
		return fmt.Errorf("%s: %d bytes, at most %d", Quote(text), len(text), MaxPath)
	case !visible(text) || strings.Contains(text, "#"):
		return fmt.Errorf("%s: want visible ASCII without #, other bytes as %%xx", Quote(text))
	}
	if _, err := url.ParseRequestURI(text); err != nil {
		return fmt.Errorf("%s: not the path of a URL", Quote(text)) // the error would quote it whole
	}
	return nil
}

// CheckHost returns an error if text cannot be Probe.Host: a DNS name or an IP address,
// without a port and without brackets.
func CheckHost(text string) error {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		return nil
	}
	bad := fmt.Errorf("%s: want a DNS name or an IP address, without port", Quote(text))
	if len(text) > MaxHost {
		return bad
	}
	for label := range strings.SplitSeq(text, ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || !only(label, "-_") {
			return bad
		}
	}
	return nil
}

// ParseHeaders reads lines of "Name: value" and returns them as Probe.Headers has them:
// trimmed, each with a line feed at its end. Empty lines do not count. At most MaxHeaders
// lines, and MaxHeaderBytes bytes in text and in what is returned. What concerns the connection or the length of the
// message is refused, and so is Host, which has a field of its own.
func ParseHeaders(text string) (string, error) {
	if len(text) > MaxHeaderBytes {
		return "", fmt.Errorf("%d bytes of headers, at most %d", len(text), MaxHeaderBytes)
	}
	var b strings.Builder
	lines := 0
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if lines++; lines > MaxHeaders {
			return "", fmt.Errorf("more than %d headers", MaxHeaders)
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return "", fmt.Errorf("header %s: want \"Name: value\"", Quote(line))
		}
		value = strings.TrimSpace(value)
		if err := checkHeader(name, value); err != nil {
			return "", fmt.Errorf("header %s: %w", Quote(name), err)
		}
		fmt.Fprintf(&b, "%s: %s\n", name, value)
	}
	if b.Len() > MaxHeaderBytes {
		return "", fmt.Errorf("%d bytes of headers, at most %d", b.Len(), MaxHeaderBytes)
	}
	return b.String(), nil
}

func checkHeader(name, value string) error {
	if name == "" || !only(name, "!#$%&'*+-.^_`|~") { // RFC 9110, section 5.6.2
		return errors.New("not the name of a header")
	}
	switch canonical := textproto.CanonicalMIMEHeaderKey(name); canonical {
	case "Host":
		return errors.New("the host has a field of its own")
	case "Connection", "Content-Length", "Expect", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return errors.New("a probe does not send it")
	default:
		if strings.HasPrefix(canonical, "Proxy-") {
			return errors.New("a probe does not send it")
		}
	}
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c >= 0x7f {
			return fmt.Errorf("value %s: want ASCII without control characters", Quote(value))
		}
	}
	return nil
}

// CheckBody returns an error if text cannot be Probe.Body: valid UTF-8, at most MaxBody
// bytes.
func CheckBody(text string) error {
	if len(text) > MaxBody {
		return fmt.Errorf("%s: %d bytes, at most %d", Quote(text), len(text), MaxBody)
	}
	if !utf8.ValidString(text) {
		return fmt.Errorf("%s: not UTF-8", Quote(text))
	}
	return nil
}

// CheckGRPCService returns an error if text cannot be Probe.GRPCService: visible ASCII, at
// most MaxGRPCService bytes.
func CheckGRPCService(text string) error {
	if len(text) > MaxGRPCService || !visible(text) {
		return fmt.Errorf("%s: want at most %d bytes of visible ASCII", Quote(text), MaxGRPCService)
	}
	return nil
}

// CheckScript returns an error if text cannot be Probe.Script: 1 to MaxScript ASCII letters,
// digits, dots, hyphens and underscores, the first of them no dot and no hyphen. So it
// names a file in one directory and nothing else.
func CheckScript(text string) error {
	if text == "" || len(text) > MaxScript || text[0] == '.' || text[0] == '-' || !only(text, "-._") {
		return fmt.Errorf("%s: want the name of a script in the directory of scripts: at most %d ASCII letters, digits, dots, "+
			"hyphens and underscores, the first no dot and no hyphen", Quote(text), MaxScript)
	}
	return nil
}

// only tells whether text consists of ASCII letters, digits and bytes of others.
func only(text, others string) bool {
	for i := range len(text) {
		c := text[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && strings.IndexByte(others, c) < 0 {
			return false
		}
	}
	return true
}

// visible tells whether text consists of ASCII from ! to ~.
func visible(text string) bool {
	for i := range len(text) {
		if text[i] <= ' ' || text[i] > '~' {
			return false
		}
	}
	return true
}

// Check returns an error that names the field if p cannot be probed as it is. Fields that
// its kind does not use are not looked at.
func (p Probe) Check() error {
	if p.Timeout <= 0 {
		return fmt.Errorf("timeout %s: want more than 0", p.Timeout)
	}
	switch p.Kind {
	case ProbeTCP:
		return nil
	case ProbeHTTP, ProbeHTTPS:
		return p.checkHTTP()
	case ProbeGRPC:
		if err := checkOptionalHost(p.Host); err != nil {
			return err
		}
		if err := CheckGRPCService(p.GRPCService); err != nil {
			return fmt.Errorf("gRPC service %w", err)
		}
		return nil
	case ProbeExec:
		if err := CheckScript(p.Script); err != nil {
			return fmt.Errorf("script %w", err)
		}
		return nil
	}
	return fmt.Errorf("%s: no kind of probe that can be run", p.Kind)
}

func (p Probe) checkHTTP() error {
	if err := CheckPath(p.Path); err != nil {
		return fmt.Errorf("path %w", err)
	}
	if err := checkOptionalHost(p.Host); err != nil {
		return err
	}
	if _, err := ParseHeaders(p.Headers); err != nil {
		return fmt.Errorf("headers: %w", err)
	}
	if _, err := ParseExpect(p.Expect); err != nil {
		return fmt.Errorf("expect %w", err)
	}
	if err := CheckBody(p.Body); err != nil {
		return fmt.Errorf("body %w", err)
	}
	return nil
}

func checkOptionalHost(text string) error {
	if text == "" {
		return nil
	}
	if err := CheckHost(text); err != nil {
		return fmt.Errorf("host %w", err)
	}
	return nil
}
