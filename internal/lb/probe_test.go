// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"strings"
	"testing"
	"time"
)

func TestParseProbeKind(t *testing.T) {
	for in, want := range map[string]ProbeKind{
		"none": ProbeNone, "tcp": ProbeTCP, "HTTP": ProbeHTTP, "https": ProbeHTTPS, "gRPC": ProbeGRPC, "exec": ProbeExec,
	} {
		if got, err := ParseProbeKind(in); got != want || err != nil {
			t.Errorf("ParseProbeKind(%q) = %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "default", "ping", " tcp", "probe-9"} {
		if got, err := ParseProbeKind(in); err == nil {
			t.Errorf("ParseProbeKind(%q) = %v, want an error", in, got)
		}
	}
}

func TestParseExpect(t *testing.T) {
	for _, tc := range []struct {
		in, want string
		has, not []int
	}{
		{"200-399", "200-399", []int{200, 302, 399}, []int{199, 400, 0, -200, 65736}},
		{"200,204", "200,204", []int{200, 204}, []int{201, 203, 205}},
		{" 200 - 204 , 301", "200-204,301", []int{200, 204, 301}, []int{300, 302}},
		{"100-599", "100-599", []int{100, 599}, []int{99, 600}},
		{"503-503", "503", []int{503}, []int{502}},
		{strings.Repeat("200,", MaxExpect-1) + "204", strings.Repeat("200,", MaxExpect-1) + "204", []int{204}, []int{201}},
	} {
		got, err := ParseExpect(tc.in)
		if err != nil || got.String() != tc.want {
			t.Errorf("ParseExpect(%q) = %v, %v, want %s", tc.in, got, err, tc.want)
		}
		for _, status := range tc.has {
			if !got.Has(status) {
				t.Errorf("%q does not have %d", tc.in, status)
			}
		}
		for _, status := range tc.not {
			if got.Has(status) {
				t.Errorf("%q has %d", tc.in, status)
			}
		}
	}
	if s, _ := ParseExpect("200-399,301"); !s.Names(301) || s.Names(302) || s.Names(200) {
		t.Error("200-399,301 names 301 only")
	}
}

func TestParseExpectErrors(t *testing.T) {
	for _, in := range []string{
		"", ",", "200,", "-", "200-", "-200", "99", "099", "600", "399-200", "2xx", "200-300-400", "0200", "+20", "200;204",
		"200\t", "１００", strings.Repeat("200,", MaxExpect) + "204", strings.Repeat(" ", 1<<20) + "200",
	} {
		if got, err := ParseExpect(in); err == nil {
			t.Errorf("ParseExpect(%.40q) = %v, want an error", in, got)
		} else if len(err.Error()) > 300 {
			t.Errorf("ParseExpect(%.40q): the error has %d bytes", in, len(err.Error()))
		}
	}
}

func FuzzParseExpect(f *testing.F) {
	f.Add("200-399")
	f.Add(" 200, 204 ,301-302")
	f.Add("-,")
	f.Fuzz(func(t *testing.T, in string) {
		s, err := ParseExpect(in)
		if err != nil {
			return
		}
		if len(s) == 0 || len(s) > MaxExpect {
			t.Errorf("%q has %d ranges", in, len(s))
		}
		for _, r := range s {
			if r.Low < 100 || r.High > 599 || r.Low > r.High || !s.Has(int(r.Low)) || !s.Has(int(r.High)) {
				t.Errorf("%q has the range %v", in, r)
			}
		}
		again, err := ParseExpect(s.String())
		if err != nil || again.String() != s.String() {
			t.Errorf("%q is %q, which is %q, %v", in, s, again, err)
		}
	})
}

func TestParseHeaders(t *testing.T) {
	for in, want := range map[string]string{
		"":                                  "",
		"\n\r\n":                            "",
		"X-A: b":                            "X-A: b\n",
		"X-A:b\r\n\nAccept :x":              "",
		"X-A:b\r\n\n  Accept: */*  \n":      "X-A: b\nAccept: */*\n",
		"X-Empty:":                          "X-Empty: \n",
		"User-Agent: a:b":                   "User-Agent: a:b\n",
		"Host: a":                           "",
		"hOST: a":                           "",
		"Connection: keep-alive":            "",
		"content-length: 3":                 "",
		"Transfer-Encoding: chunked":        "",
		"Proxy-Authorization: x":            "",
		"X A: b":                            "",
		": b":                               "",
		"b":                                 "",
		"X-A: b\rX-B: c":                    "",
		"X-A: b\x00":                        "",
		"X-A: \u00e9":                       "",
		strings.Repeat("A: b\n", 17):        "",
		"A: " + strings.Repeat("b", 1<<12):  "",
		strings.Repeat("\n", 1<<12) + "A:b": "",
	} {
		got, err := ParseHeaders(in)
		refused := want == "" && strings.TrimSpace(in) != ""
		if got != want || (err != nil) != refused {
			t.Errorf("ParseHeaders(%.40q) = %q, %v, want %q, error %t", in, got, err, want, refused)
		}
		if again, err := ParseHeaders(got); again != got || err != nil {
			t.Errorf("ParseHeaders(%.40q) = %q, %v, want the same", got, again, err)
		}
	}
}

func FuzzParseHeaders(f *testing.F) {
	f.Add("X-A: b\nAccept: */*")
	f.Add("Host: a")
	f.Fuzz(func(t *testing.T, in string) {
		got, err := ParseHeaders(in)
		if err != nil {
			return
		}
		if strings.ContainsAny(got, "\r\x00") {
			t.Errorf("%q becomes %q", in, got)
		}
		if again, err := ParseHeaders(got); again != got || err != nil {
			t.Errorf("%q becomes %q, which becomes %q, %v", in, got, again, err)
		}
	})
}

func TestCheckProbeFields(t *testing.T) {
	for _, tc := range []struct {
		name      string
		check     func(string) error
		good, bad []string
	}{
		{"path", CheckPath, []string{"/", "/healthz", "/a/../b?x=1&y=%20", "/%2e", "/" + strings.Repeat("a", MaxPath-1)},
			[]string{"", "healthz", "//other.example", "http://a/", "/a b", "/a\r\nHost: b", "/#a", "/%zz", "/é", "/" + strings.Repeat("a", MaxPath)}},
		{"host", CheckHost, []string{"a", "example.com", "a-b.c_d.9", "10.0.0.1", "fd00::1", "A.Example"},
			[]string{"", ".", "a.", "a..b", "-a", "a-", "a:80", "10.0.0.1:80", "[fd00::1]", "fe80::1%eth0", "a b", "a/b", "a\r\nb", "é.example", strings.Repeat("a", 64), strings.Repeat("a.", 127)}},
		{"body", CheckBody, []string{"", "ok", "schön\n", strings.Repeat("a", MaxBody)},
			[]string{"\xff", strings.Repeat("a", MaxBody+1)}},
		{"gRPC service", CheckGRPCService, []string{"", "shop.Cart", strings.Repeat("a", MaxGRPCService)},
			[]string{"a b", "a\n", "é", strings.Repeat("a", MaxGRPCService+1)}},
		{"script", CheckScript, []string{"check", "check.sh", "Check_2-b.py", "a..b", strings.Repeat("a", MaxScript)},
			[]string{"", ".", "..", ".hidden", "-rf", "../sh", "a/b", "/bin/sh", "a\\b", "a b", "a\x00", "a\n", "a;b", "$(a)", "é", "~", "a%2fb", strings.Repeat("a", MaxScript+1)}},
	} {
		for _, text := range tc.good {
			if err := tc.check(text); err != nil {
				t.Errorf("%s %.40q: %v", tc.name, text, err)
			}
		}
		for _, text := range tc.bad {
			if err := tc.check(text); err == nil {
				t.Errorf("%s %.40q: want an error", tc.name, text)
			} else if len(err.Error()) > 400 {
				t.Errorf("%s %.40q: the error has %d bytes", tc.name, text, len(err.Error()))
			}
		}
	}
}

func TestProbeCheck(t *testing.T) {
	web := Probe{Kind: ProbeHTTP, Timeout: time.Second, Path: "/", Expect: "200-399"}
	with := func(change func(*Probe)) Probe {
		p := web
		change(&p)
		return p
	}
	for _, tc := range []struct {
		p    Probe
		want string // in the error; empty: none
	}{
		{web, ""},
		{with(func(p *Probe) { p.Script = "../unused" }), ""},
		{with(func(p *Probe) { p.Kind, p.Script = ProbeExec, "check.sh" }), ""},
		{Probe{Kind: ProbeTCP, Timeout: time.Second}, ""},
		{Probe{Kind: ProbeGRPC, Timeout: time.Second, Host: "a.example", GRPCService: "a.B"}, ""},
		{with(func(p *Probe) { p.Timeout = 0 }), "timeout"},
		{with(func(p *Probe) { p.Timeout = -1 }), "timeout"},
		{with(func(p *Probe) { p.Path = "x" }), "path"},
		{with(func(p *Probe) { p.Host = "a:1" }), "host"},
		{with(func(p *Probe) { p.Headers = "Host: a" }), "headers"},
		{with(func(p *Probe) { p.Expect = "" }), "expect"},
		{with(func(p *Probe) { p.Body = "\xff" }), "body"},
		{with(func(p *Probe) { p.Kind, p.GRPCService = ProbeGRPC, "a b" }), "gRPC service"},
		{with(func(p *Probe) { p.Kind, p.Host = ProbeGRPC, "a b" }), "host"},
		{with(func(p *Probe) { p.Kind = ProbeExec }), "script"},
		{with(func(p *Probe) { p.Kind = ProbeDefault }), "default"},
		{with(func(p *Probe) { p.Kind = ProbeNone }), "none"},
		{with(func(p *Probe) { p.Kind = 99 }), "probe-99"},
	} {
		err := tc.p.Check()
		if (err == nil) != (tc.want == "") || err != nil && !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("Check of %+v: %v, want %q", tc.p, err, tc.want)
		}
	}
}
