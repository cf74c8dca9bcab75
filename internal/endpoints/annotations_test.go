// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// annotated gives a Service annotations: name, value, name, value.
func annotated(pairs ...string) func(*v1.Service) {
	return func(s *v1.Service) {
		s.Annotations = map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			s.Annotations[annotationPrefix+pairs[i]] = pairs[i+1]
		}
	}
}

func resolveBalance(t *testing.T, o Options, pairs ...string) (lb.Balance, []Problem) {
	t.Helper()
	svcs, ps := Resolve(testService("web", annotated(pairs...)), nil, lb.Node{}, o)
	if len(svcs) != 1 {
		t.Fatalf("%d Services, want 1", len(svcs))
	}
	return svcs[0].Balance, ps
}

func TestAnnotationsSetTheBalance(t *testing.T) {
	for _, tc := range []struct {
		pairs []string
		want  func(*lb.Balance)
	}{
		{nil, func(*lb.Balance) {}},
		{[]string{"algorithm", ""}, func(*lb.Balance) {}},
		{[]string{"algorithm", "hash"}, func(b *lb.Balance) { b.Algorithm = "hash" }},
		{[]string{"hash-key", "source-ip"}, func(*lb.Balance) {}},
		{[]string{"hash-key", "source-ip-port"}, func(b *lb.Balance) { b.HashKey = lb.HashSourcePort }},
		{[]string{"hash-key", "5-tuple"}, func(b *lb.Balance) { b.HashKey = lb.HashTuple }},
		{[]string{"ip-hash-prefix", "24"}, func(b *lb.Balance) { b.Prefix4 = 24 }},
		{[]string{"ip-hash-prefix", "1,128"}, func(b *lb.Balance) { b.Prefix4, b.Prefix6 = 1, 128 }},
		{[]string{"ip-hash-prefix", "32,64"}, func(b *lb.Balance) { b.Prefix4, b.Prefix6 = 32, 64 }},
		{[]string{"least-time", "connect"}, func(b *lb.Balance) { b.Signal = lb.SignalConnect }},
		{[]string{"least-time", "first-byte"}, func(*lb.Balance) {}},
		{[]string{"least-time", "last-byte"}, func(b *lb.Balance) { b.Signal = lb.SignalLastByte }},
		{[]string{"slow-start", "0s"}, func(b *lb.Balance) { b.SlowStart = lb.NoSlowStart }},
		{[]string{"slow-start", "0"}, func(b *lb.Balance) { b.SlowStart = lb.NoSlowStart }},
		{[]string{"slow-start", "100ms"}, func(b *lb.Balance) { b.SlowStart = 100 * time.Millisecond }},
		{[]string{"slow-start", "1h"}, func(b *lb.Balance) { b.SlowStart = time.Hour }},
		{[]string{"algorithm", "least-time", "least-time", "connect", "slow-start", "1m30s"}, func(b *lb.Balance) {
			b.Algorithm, b.Signal, b.SlowStart = "least-time", lb.SignalConnect, 90*time.Second
		}},
	} {
		want := lb.Balance{Signal: lb.SignalFirstByte}
		tc.want(&want)
		got, ps := resolveBalance(t, testOptions(), tc.pairs...)
		if got != want || len(ps) != 0 && !slices.ContainsFunc(ps, func(p Problem) bool { return p.Reason == ReasonNoEffect }) {
			t.Errorf("%q: got %+v, problems %v; want %+v", tc.pairs, got, ps, want)
		}
	}
}

// badValues are what no annotation of the given name may say.
var badValues = map[string][]string{
	"algorithm":        {"magic", "Hash", "hash ", "hash,random", "NaN", "\x00"},
	"hash-key":         {"ip", "Source-IP", "source-ip ", "4-tuple", "0"},
	"ip-hash-prefix":   {"0", "33", "-1", "24,", ",64", "24,0", "24,129", "24, 64", "+24", "/24", "24.0", "24,64,1", "256", "280", "x", "99999999999999999999"},
	"least-time":       {"first_byte", "Connect", "1", "inflight"},
	"reset-on-removal": {"yes", "True", "1", "0", " true", "TRUE", "on"},
	"slow-start":       {"-1s", "99ms", "1h0m1s", "30", "NaN", "1e9s", "x", "999999h", "9999999999999h", "1ns"},

	"health-check":               {"icmp", "TCP", "tcp ", "default", "1"},
	"health-check-port":          {"0", "65536", "-1", "http", "80,81", "99999999999999999999"},
	"health-check-path":          {"ready", "//host/x", "/a b", "/a\r\nX: y", "/#x"},
	"health-check-host":          {"a b", "a:80", "[::1]", "a/b", "user@a", "a\n"},
	"health-check-headers":       {"X", "Host: a", "X: a\x00", "Transfer-Encoding: chunked", ": x"},
	"health-check-expect":        {"2xx", "600", "99", "300-200", "200,", "200-"},
	"health-check-body":          {"\xff"},
	"health-check-verify":        {"yes", "True", "1"},
	"health-check-service":       {"a b", "\u20ac"},
	"health-check-script":        {"../x", "/bin/sh", "a b", ".hidden", "-rf", "a;b", "a\x00"},
	"health-check-interval":      {"0", "0s", "-1s", "99ms", "1h0m1s", "5", "x", "9999999999999h"},
	"health-check-fast-interval": {"0", "0s", "-1s", "99ms", "1h0m1s", "5", "x"},
	"health-check-timeout":       {"0", "0s", "9ms", "1m1s", "-1s", "1", "x"},
	"health-check-rise":          {"0", "256", "-1", "x", "1.5"},
	"health-check-fall":          {"0", "256", "-1", "x", "1.5"},
	"health-check-grace":         {"-1s", "1h0m1s", "30", "x"},
	"health-passive":             {"yes", "True", "off"},
	"health-max-ejected":         {"-1", "101", "x", "1.5", "10%%"},
	"health-panic":               {"-1", "101", "x", "NaN"},
	"health-drain":               {"yes", "TRUE", "0"},
}

func TestInvalidAnnotationsKeepTheDefaultAndAreReported(t *testing.T) {
	if len(badValues) != len(serviceAnnotations) {
		t.Errorf("bad values of %d annotations, want %d", len(badValues), len(serviceAnnotations))
	}
	for name, values := range badValues {
		for _, value := range values {
			o := testOptions()
			o.DefaultAlgorithm = "random" // most would have no effect: that is not worth a word
			got, ps := resolveBalance(t, o, name, value)
			if want := (lb.Balance{Signal: lb.SignalFirstByte}); got != want {
				t.Errorf("%s %q: got %+v, want %+v", name, value, got, want)
			}
			reason := ReasonInvalidAnnotation
			if name == "algorithm" {
				reason = ReasonInvalidAlgorithm
			}
			if len(ps) != 1 || ps[0].Reason != reason || ps[0].Object != object("web") ||
				ps[0].Field != "metadata.annotations[lbproxy.io/"+name+"]" {
				t.Errorf("%s %q: got problems %v, want one of the annotation", name, value, ps)
			}
		}
	}
}

// TestInvalidAnnotationKeepsWhatWorked sets one annotation after the other to a
// valid value, and then each to an invalid one while the others change.
func TestInvalidAnnotationKeepsWhatWorked(t *testing.T) {
	s, ev := newStore(t)
	put := func(pairs ...string) lb.Balance {
		s.UpsertService(testService("web", annotated(pairs...)))
		s.Take()
		return s.entries[object("web")].published[0].Balance
	}
	good := []string{
		"algorithm", "least-time", "hash-key", "5-tuple", "ip-hash-prefix", "24,64", "least-time", "last-byte", "slow-start", "30s",
	}
	want := lb.Balance{
		Algorithm: "least-time", HashKey: lb.HashTuple, Prefix4: 24, Prefix6: 64, Signal: lb.SignalLastByte, SlowStart: 30 * time.Second,
	}
	if got := put(good...); got != want {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	for i := 0; i < len(good); i += 2 {
		broken := slices.Clone(good)
		broken[i+1] = "nonsense"
		for range 2 { // and again: the invalid value does not become what worked
			if got := put(broken...); got != want {
				t.Errorf("%s is invalid: got %+v, want %+v", good[i], got, want)
			}
			broken[i+1] = "more nonsense"
		}
	}
	ev.take()
	kept := want
	kept.HashKey, kept.Prefix4, kept.Prefix6, kept.Signal, kept.SlowStart = 0, 0, 0, lb.SignalFirstByte, lb.NoSlowStart
	if got := put("algorithm", "nonsense", "slow-start", "0"); got != kept {
		t.Errorf("one is invalid, one changes, the others go: got %+v, want %+v", got, kept)
	}
	if got := ev.take(); len(got) != 1 || !strings.Contains(got[0], "web InvalidAlgorithm metadata.annotations[lbproxy.io/algorithm]: ") {
		t.Errorf("events %q, want one of the algorithm", got)
	}
	s.UpsertService(testService("web", annotated("algorithm", "nonsense"), func(s *v1.Service) { s.UID = "another" }))
	s.Take()
	if got := s.entries[object("web")].published[0].Balance.Algorithm; got != "" {
		t.Errorf("another Service of the same name has algorithm %q of the one before", got)
	}
}

func TestAnnotationsWithoutEffectAreReported(t *testing.T) {
	for _, tc := range []struct {
		cluster string // the default algorithm
		pairs   []string
		want    []string // annotations without effect
	}{
		{"random", []string{"hash-key", "5-tuple"}, []string{"hash-key"}},
		{"hash", []string{"hash-key", "5-tuple"}, nil},
		{"", []string{"hash-key", "5-tuple"}, nil},
		{"hash", []string{"algorithm", "random", "hash-key", "5-tuple"}, []string{"hash-key"}},
		{"random", []string{"algorithm", "hash", "hash-key", "source-ip", "slow-start", "10s"}, []string{"slow-start"}},
		{"random", []string{"algorithm", "least-time", "least-time", "connect", "slow-start", "10s"}, nil},
		{"random", []string{"algorithm", "random", "least-time", "connect", "ip-hash-prefix", "8"}, []string{"ip-hash-prefix", "least-time"}},
		{"random", []string{"algorithm", "hash", "ip-hash-prefix", "8"}, []string{"ip-hash-prefix"}},
	} {
		o := testOptions()
		o.DefaultAlgorithm = tc.cluster
		_, ps := resolveBalance(t, o, tc.pairs...)
		var got []string
		for _, p := range ps {
			if p.Reason != ReasonNoEffect {
				t.Errorf("%q: problem %v", tc.pairs, p)
			}
			got = append(got, strings.TrimSuffix(strings.TrimPrefix(p.Field, "metadata.annotations[lbproxy.io/"), "]"))
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("default %s, %q: without effect %q, want %q", tc.cluster, tc.pairs, got, tc.want)
		}
	}
}

// TestEffectIsThatOfTheAlgorithmThatIsKept has an invalid algorithm.
func TestEffectIsThatOfTheAlgorithmThatIsKept(t *testing.T) {
	s, ev := newStore(t)
	s.UpsertService(testService("web", annotated("algorithm", "hash", "hash-key", "5-tuple")))
	s.Take()
	s.UpsertService(testService("web", annotated("algorithm", "magic", "hash-key", "5-tuple")))
	s.Take()
	if got := reasons(s.Problems()); !slices.Equal(got, []string{ReasonInvalidAlgorithm}) {
		t.Errorf("problems %q, want only %s: hash is kept", got, ReasonInvalidAlgorithm)
	}
	ev.take()
	s.UpsertService(testService("web", annotated("algorithm", "random", "hash-key", "5-tuple")))
	s.Take()
	want := "web NoEffect metadata.annotations[lbproxy.io/hash-key]: has no effect with algorithm random"
	if got := ev.take(); !slices.Equal(got, []string{want}) {
		t.Errorf("events %q, want %q", got, want)
	}
}

func TestUnknownAnnotationsOfOursAreReported(t *testing.T) {
	_, ps := resolveBalance(t, testOptions(), "algorythm", "hash", "weight", "7")
	if got := reasons(ps); !slices.Equal(got, []string{ReasonUnknownAnnotation, ReasonUnknownAnnotation}) {
		t.Errorf("problems %v, want two of unknown annotations", ps)
	}
}

func FuzzBalanceAnnotations(f *testing.F) {
	f.Add("hash", "5-tuple", "24,64", "connect", "30s", "true")
	for name, values := range badValues {
		for _, v := range values {
			as := map[string]string{name: v}
			f.Add(as["algorithm"], as["hash-key"], as["ip-hash-prefix"], as["least-time"], as["slow-start"], as["reset-on-removal"])
		}
	}
	o := testOptions()
	f.Fuzz(func(t *testing.T, algorithm, key, prefix, signal, slow, reset string) {
		as := map[string]string{
			annotationAlgorithm: algorithm, annotationHashKey: key, annotationPrefixLen: prefix,
			annotationSignal: signal, annotationSlowStart: slow, annotationReset: reset,
		}
		p := &problems{}
		s, given, bad := parseAnnotations(as, &o, p)
		b := s.balance
		if b.Algorithm != "" && o.CheckAlgorithm(b.Algorithm) != nil {
			t.Errorf("%q: algorithm %q", as, b.Algorithm)
		}
		if b.HashKey > lb.HashTuple || b.Signal > lb.SignalLastByte || b.Prefix4 > 32 || b.Prefix6 > 128 {
			t.Errorf("%q: out of bounds: %+v", as, b)
		}
		if d := b.SlowStart; d != 0 && d != lb.NoSlowStart && (d < lb.MinSlowStart || d > lb.MaxSlowStart) {
			t.Errorf("%q: slow start %s", as, d)
		}
		if s.reset != (reset == "true") {
			t.Errorf("%q: reset %t", as, s.reset)
		}
		n := 0
		for i, a := range serviceAnnotations {
			if bad.has(i) {
				n++
			}
			if given.has(i) != (as[a.key] != "") || bad.has(i) && !given.has(i) {
				t.Errorf("%q: %s: given %t, bad %t", as, a.key, given.has(i), bad.has(i))
			}
		}
		if n != len(p.list()) {
			t.Errorf("%q: %d invalid values, problems %v", as, n, p.list())
		}
	})
}

// TestTheTableOfAnnotationsIsComplete compares docs/ANNOTATIONS.md with what is
// parsed: each row of its tables begins with a name.
func TestTheTableOfAnnotationsIsComplete(t *testing.T) {
	text, err := os.ReadFile("../../docs/ANNOTATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)`").FindAllStringSubmatch(string(text), -1) {
		if got[m[1]] {
			t.Errorf("%s has two rows", m[1])
		}
		got[m[1]] = true
	}
	want := map[string]bool{keyWeight: true}
	for _, a := range serviceAnnotations {
		want[a.key] = true
	}
	if !maps.Equal(got, want) {
		t.Errorf("the table has %q\nthe parser knows %q", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}
