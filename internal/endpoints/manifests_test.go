// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lbproxy/lbproxy/internal/lb"
)

func serviceDoc(name, ip string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec:\n  clusterIP: %s\n  ports: [{name: http, port: 80}]\n", name, ip)
}

func sliceDoc(service, name, ip string) string {
	return fmt.Sprintf(`apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %s, labels: {kubernetes.io/service-name: %s}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [%s]}]
`, name, service, ip)
}

func docs(d ...string) string { return strings.Join(d, "---\n") }

// folder is a directory of manifests that is scanned by hand.
type folder struct {
	t   *testing.T
	dir string
	m   *manifests
	s   *Store
	v   view
	log *logged
}

func newFolder(t *testing.T) *folder {
	t.Helper()
	o := testOptions()
	o.Sources = []Source{Manifests}
	f := &folder{t: t, dir: t.TempDir(), v: view{}, log: newLogged()}
	f.s = New(o, logger(f.log), nil)
	f.m = newManifests(f.dir, f.s, logger(f.log))
	f.s.MarkSynced(Manifests)
	return f
}

// put writes a file as careful programs do: all at once.
func (f *folder) put(name, text string) {
	f.t.Helper()
	tmp := filepath.Join(f.dir, "."+name+".tmp")
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(f.dir, name)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *folder) remove(name string) {
	f.t.Helper()
	if err := os.Remove(filepath.Join(f.dir, name)); err != nil {
		f.t.Fatal(err)
	}
}

// check scans and compares what is published and what is wrong.
func (f *folder) check(what string, want, problems []string) {
	f.t.Helper()
	if err := f.m.scan(); err != nil {
		f.t.Fatal(err)
	}
	f.v.take(f.s)
	if d := cmp.Diff(want, f.v.lines()); d != "" {
		f.t.Errorf("%s: -want +got:\n%s", what, d)
	}
	var got []string
	for _, p := range f.s.Problems() {
		got = append(got, p.Error())
	}
	if !slices.EqualFunc(got, problems, strings.Contains) {
		f.t.Errorf("%s: problems\ngot  %q\nwant %q", what, got, problems)
	}
}

const (
	lineA = "a 10.96.0.1:80/TCP -> reject"
	lineB = "b 10.96.0.2:80/TCP -> reject"
	lineC = "c 10.96.0.3:80/TCP -> reject"
)

func TestManifestsOfEveryForm(t *testing.T) {
	for _, tc := range []struct{ name, file, text string }{
		{"yaml", "x.yaml", docs(serviceDoc("a", "10.96.0.1"), serviceDoc("b", "10.96.0.2"))},
		{"yml", "x.yml", "# comment\n---\n" + docs(serviceDoc("a", "10.96.0.1"), "# nothing\n", serviceDoc("b", "10.96.0.2")) + "---\n"},
		{"markers", "x.yaml", "%YAML 1.1\n--- # first\n" + serviceDoc("a", "10.96.0.1") + "...\n" + serviceDoc("b", "10.96.0.2")},
		{"windows", "x.yaml", strings.ReplaceAll(docs(serviceDoc("a", "10.96.0.1"), serviceDoc("b", "10.96.0.2")), "\n", "\r\n")},
		{"list", "x.yaml", `{apiVersion: v1, kind: List, items: [
{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}},
{apiVersion: v1, kind: Service, metadata: {name: b}, spec: {clusterIPs: [10.96.0.2], ports: [{port: 80}]}}]}`},
		{"typed list", "x.json", `{"apiVersion": "v1", "kind": "ServiceList", "items": [
{"metadata": {"name": "a"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}},
{"metadata": {"name": "b"}, "spec": {"clusterIP": "10.96.0.2", "ports": [{"port": 80}]}}]}`},
		{"json stream", "x.json", `{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}
{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "b", "namespace": "default"}, "spec": {"clusterIP": "10.96.0.2", "ports": [{"port": 80}]}}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFolder(t)
			f.put(tc.file, tc.text)
			f.put("README.md", serviceDoc("c", "10.96.0.3"))
			f.put(".hidden.yaml", serviceDoc("c", "10.96.0.3"))
			if err := os.Mkdir(filepath.Join(f.dir, "dir.yaml"), 0o700); err != nil {
				t.Fatal(err)
			}
			f.check("read", []string{lineA, lineB}, nil)
		})
	}
}

func TestManifestsSetDefaults(t *testing.T) {
	f := newFolder(t)
	f.put("a.yaml", docs(
		"apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIPs: [10.96.0.1, fd00::1], ports: [{port: 80, targetPort: http}]}\n",
		"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a-1, labels: {kubernetes.io/service-name: a}}\n"+
			"addressType: IPv4\nports: [{port: 8080}]\nendpoints: [{addresses: [10.0.0.1], nodeName: node-a, hints: {forZones: [{name: z}]}}, {addresses: [10.0.0.2]}]\n",
		"apiVersion: v1\nkind: Node\nmetadata: {name: node-a, labels: {topology.kubernetes.io/zone: z}}\n"))
	f.check("defaults", []string{"a 10.96.0.1:80/TCP -> 1! 2", "a [fd00::1]:80/TCP -> reject"}, nil)
	if f.s.node.Zone != "z" {
		t.Errorf("got zone %q, want z", f.s.node.Zone)
	}
	f.remove("a.yaml")
	f.check("deleted", nil, nil)
	if f.s.node.Known || f.s.node.Zone != "z" {
		t.Errorf("got %+v of a deleted Node, want the last zone", f.s.node)
	}
}

func TestManifestsFollowFiles(t *testing.T) {
	f := newFolder(t)
	f.check("empty", nil, nil)
	f.put("a.yaml", docs(serviceDoc("a", "10.96.0.1"), sliceDoc("a", "a-1", "10.0.0.1")))
	f.put("b.yaml", serviceDoc("b", "10.96.0.2"))
	f.check("two files", []string{"a 10.96.0.1:80/TCP -> 1", lineB}, nil)
	f.put("a.yaml", serviceDoc("a", "10.96.0.1"))
	f.check("a document goes", []string{lineA, lineB}, nil)
	f.put("b.yaml", "# switched off\n")
	f.check("only comments", []string{lineA}, nil)
	f.remove("a.yaml")
	f.check("a file goes", nil, nil)
	if len(f.m.defined)+len(f.m.applied)+len(f.s.entries) != 0 {
		t.Errorf("something is left: %v %v %v", f.m.defined, f.m.applied, f.s.entries)
	}
}

func TestMalformedManifestsKeepWhatTheySaid(t *testing.T) {
	a, b, c := serviceDoc("a", "10.96.0.1"), serviceDoc("b", "10.96.0.2"), serviceDoc("c", "10.96.0.3")
	for _, tc := range []struct {
		name, file, before, after string
		want                      []string
		problem                   string
	}{
		{"syntax: others change, nothing is forgotten", "x.yaml", docs(a, b), docs("kind: [\n", c), []string{lineA, lineB, lineC},
			"Manifest x.yaml: document 1: "},
		{"wrong type: only that object keeps", "x.yaml", docs(a, b), docs(strings.Replace(a, "port: 80", "port: eighty", 1)), []string{lineA},
			"Manifest x.yaml: document 1, Service default/a: json: cannot unmarshal string into Go struct field ServicePort.spec.ports.port of type int32"},
		{"wrong type: new object", "x.yaml", b, docs(strings.Replace(a, "port: 80", "port: eighty", 1), b), []string{lineB},
			"document 1, Service default/a: json: "},
		{"wrong version", "x.yaml", a, strings.Replace(a, "v1", "v2", 1), []string{lineA},
			`document 1, Service default/a: apiVersion "v2": want v1`},
		{"no name", "x.yaml", a, docs(b, strings.Replace(a, "name: a", "labels: {}", 1)), []string{lineA, lineB},
			"document 2: Service: metadata.name: is not set"},
		{"slice without name", "x.yaml", a, docs(a, strings.Replace(sliceDoc("a", "", ""), "name: ,", "", 1)), []string{lineA},
			"document 2: EndpointSlice: metadata.name: is not set"},
		{"bad name", "x.yaml", a, strings.Replace(a, "name: a", "name: a/b", 1), []string{lineA},
			`document 1: Service: metadata.name: "a/b" is not a DNS name`},
		{"bad namespace", "x.yaml", a, strings.Replace(a, "name: a", "name: a, namespace: x.y", 1), []string{lineA},
			`document 1: Service a: metadata.namespace: "x.y" is not a DNS label`},
		{"no kind", "x.yaml", a, docs("a: b\n", b), []string{lineA, lineB}, "document 1: kind: is not set"},
		{"not an object", "x.yaml", a, "just text\n", []string{lineA}, "document 1: json: cannot unmarshal string"},
		{"empty", "x.yaml", a, "", []string{lineA}, "Manifest x.yaml: is empty; delete it to delete its objects: the file keeps what it last contained"},
		{"binary", "x.yaml", a, "a: \x00", []string{lineA}, "is not text: the file keeps"},
		{"torn json", "x.json", `{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}`,
			`{"apiVersion": "v1", "ki`, []string{lineA}, "document 1: unexpected EOF: the file keeps what it last contained"},
		{"item of a list", "x.yaml", docs(a, b), `{kind: List, items: [{kind: Service, apiVersion: v1, metadata: {name: a}, spec: 7}]}`, []string{lineA},
			"document 1, items[0], Service default/a: json: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFolder(t)
			f.put(tc.file, tc.before)
			if err := f.m.scan(); err != nil || len(f.s.Problems()) > 0 {
				t.Fatalf("before: %v, problems %v", err, f.s.Problems())
			}
			f.put(tc.file, tc.after)
			f.check("malformed", tc.want, []string{tc.problem})
			f.log.await(t, "WARN not served as asked", "object=/"+tc.file)
			f.check("scanned again", tc.want, []string{tc.problem})
			f.put(tc.file, tc.before)
			if err := f.m.scan(); err != nil || len(f.s.Problems()) > 0 {
				t.Errorf("repaired: %v, problems %v", err, f.s.Problems())
			}
		})
	}
}

// TestImpossibleValuesKeepWhatTheySaid has values that an API server would refuse:
// the Service stays what it was, and the problem is its own.
func TestImpossibleValuesKeepWhatTheySaid(t *testing.T) {
	a, b := serviceDoc("a", "10.96.0.1"), serviceDoc("b", "10.96.0.2")
	for _, tc := range []struct {
		name, after string
		problems    []string
	}{
		{"port", strings.Replace(a, "port: 80", "port: 99999", 1),
			[]string{"Service default/a: spec.ports[0].port: 99999 is outside 1..65535"}},
		{"no address", strings.Replace(a, "clusterIP", "clusterIp", 1),
			[]string{`unknown field "spec.clusterIp"`, "Service default/a: spec.clusterIP: is empty"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFolder(t)
			f.put("x.yaml", docs(a, b))
			f.check("before", []string{lineA, lineB}, nil)
			f.put("x.yaml", docs(tc.after, b))
			f.check("impossible", []string{lineA, lineB}, tc.problems)
			f.put("x.yaml", docs(a, b))
			f.check("repaired", []string{lineA, lineB}, nil)
		})
	}
}

func TestMalformedManifestAtTheStart(t *testing.T) {
	f := newFolder(t)
	f.put("a.yaml", docs("kind: [\n", serviceDoc("b", "10.96.0.2")))
	f.put("c.yaml", serviceDoc("c", "10.96.0.3"))
	f.check("start", []string{lineB, lineC}, []string{"Manifest a.yaml: document 1: "})
}

func TestUnknownFieldsAndKindsAreTold(t *testing.T) {
	f := newFolder(t)
	other := "apiVersion: v1\nkind: Secret\nmetadata: {name: p}\n"
	f.put("a.yaml", docs(serviceDoc("a", "10.96.0.1")+"  colour: red\n", other, other))
	f.put("b.yaml", docs("kind: ConfigMapList\napiVersion: v1\nitems: [{}]\n", other,
		strings.Replace(serviceDoc("b", "10.96.0.2"), "spec:", "spec:\n  type: ClusterIP\n  type: ClusterIP", 1)))
	f.check("told", []string{lineA, lineB}, []string{
		`Manifest a.yaml: document 1, Service default/a: unknown field "spec.colour"`,
		`Manifest b.yaml: document 3: `,
	})
	f.log.await(t, "INFO kind ignored in manifests", "kind=Secret", "file=a.yaml")
	f.log.await(t, "INFO kind ignored in manifests", "kind=ConfigMapList")
	f.put("c.yaml", other)
	f.check("told once", []string{lineA, lineB}, []string{"", ""})
	for len(f.log.records) > 0 {
		if r := <-f.log.records; strings.Contains(r, "kind=Secret") {
			t.Errorf("told twice: %s", r)
		}
	}
}

func TestSameObjectInTwoFiles(t *testing.T) {
	f := newFolder(t)
	f.put("2.yaml", serviceDoc("a", "10.96.0.1"))
	f.check("alone", []string{lineA}, nil)
	f.put("3.yaml", docs(serviceDoc("a", "10.96.0.9"), serviceDoc("b", "10.96.0.2")))
	f.check("a later file", []string{lineA, lineB}, []string{
		"Manifest 3.yaml: Service default/a: is defined by 2.yaml already: this one is ignored"})
	f.put("1.yaml", serviceDoc("a", "10.96.0.7"))
	f.check("an earlier file", []string{"a 10.96.0.7:80/TCP -> reject", lineB}, []string{
		"Manifest 2.yaml: Service default/a: is defined by 1.yaml already: this one is ignored",
		"Manifest 3.yaml: Service default/a: is defined by 1.yaml already: this one is ignored"})
	f.remove("1.yaml")
	f.check("the earlier one goes", []string{lineA, lineB}, []string{"Manifest 3.yaml: Service default/a: is defined by 2.yaml"})
	f.remove("2.yaml")
	f.check("the last is right", []string{"a 10.96.0.9:80/TCP -> reject", lineB}, nil)
	f.put("3.yaml", docs(serviceDoc("a", "10.96.0.1"), serviceDoc("a", "10.96.0.9")))
	f.check("twice in one file", []string{lineA}, []string{
		"Manifest 3.yaml: document 2, Service default/a: is defined by an earlier document of this file"})
}

func TestUnreadableManifestKeepsWhatItSaid(t *testing.T) {
	f := newFolder(t)
	f.put("a.yaml", serviceDoc("a", "10.96.0.1"))
	f.check("file", []string{lineA}, nil)
	f.remove("a.yaml")
	if err := os.Symlink("a.yaml", filepath.Join(f.dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	f.check("a link to itself", []string{lineA}, []string{"Manifest a.yaml: stat "})
	f.remove("a.yaml")
	if err := os.Symlink("nowhere", filepath.Join(f.dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	f.check("a dangling link is no file", nil, nil)
}

// start runs RunManifests on a directory and waits until it is synced.
func start(t *testing.T, dir string) (*Store, *logged) {
	t.Helper()
	o := testOptions()
	o.Sources = []Source{Manifests}
	l := newLogged()
	s := New(o, logger(l), nil)
	run(t, func(ctx context.Context) error { return RunManifests(ctx, dir, s, logger(l)) })
	select {
	case <-s.Dirty():
	case <-time.After(2 * time.Minute):
		t.Fatal("not synced")
	}
	s.Nudge()
	return s, l
}

func TestRunManifestsFollowsRenamesAndWrites(t *testing.T) {
	f := newFolder(t)
	f.put("a.yaml", serviceDoc("a", "10.96.0.1"))
	s, _ := start(t, f.dir)
	v := view{}
	v.await(t, s, lineA)
	f.put("b.yaml", serviceDoc("b", "10.96.0.2")) // atomic rename
	v.await(t, s, lineA, lineB)
	if err := os.WriteFile(filepath.Join(f.dir, "c.yaml"), []byte(serviceDoc("c", "10.96.0.3")), 0o600); err != nil {
		t.Fatal(err)
	}
	v.await(t, s, lineA, lineB, lineC)
	f.remove("b.yaml")
	v.await(t, s, lineA, lineC)
	if err := os.Rename(filepath.Join(f.dir, "c.yaml"), filepath.Join(f.dir, "c.off")); err != nil {
		t.Fatal(err)
	}
	v.await(t, s, lineA)
}

// TestRunManifestsSeesEverySmallChange writes files of one size in quick
// succession: their times may be equal, the notifications count.
func TestRunManifestsSeesEverySmallChange(t *testing.T) {
	f := newFolder(t)
	path := filepath.Join(f.dir, "a.yaml")
	write := func(n int) string {
		ip := fmt.Sprint("10.96.0.", 1+n%9)
		if err := os.WriteFile(path, []byte(serviceDoc("a", ip)), 0o600); err != nil {
			t.Fatal(err)
		}
		return "a " + ip + ":80/TCP -> reject"
	}
	first := write(0)
	s, _ := start(t, f.dir)
	v := view{}
	v.await(t, s, first)
	for n := range 50 {
		v.await(t, s, write(n))
	}
}

// TestRunManifestsFollowsConfigMaps does what the kubelet does: files are links
// into a directory that is a link, which is replaced.
func TestRunManifestsFollowsConfigMaps(t *testing.T) {
	dir := t.TempDir()
	publish := func(version, text string) {
		t.Helper()
		real := filepath.Join(dir, ".."+version)
		for _, err := range []error{
			os.Mkdir(real, 0o700),
			os.WriteFile(filepath.Join(real, "a.yaml"), []byte(text), 0o600),
			os.Symlink(".."+version, filepath.Join(dir, "..data_tmp")),
			os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	publish("1", serviceDoc("a", "10.96.0.1"))
	if err := os.Symlink("..data/a.yaml", filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	s, _ := start(t, dir)
	v := view{}
	v.await(t, s, lineA)
	publish("2", serviceDoc("b", "10.96.0.2"))
	v.await(t, s, lineB)
}

func TestRunManifestsNeedsADirectory(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{filepath.Join(dir, "missing"): "no such file or directory", file: "is not a directory"} {
		err := RunManifests(t.Context(), path, New(Options{}, discard(), nil), discard())
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "manifest directory "+path) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
}

func TestDirectoryThatGoesAwayTakesNothingWithIt(t *testing.T) {
	parent := t.TempDir()
	dir, away := filepath.Join(parent, "dir"), filepath.Join(parent, "away")
	fill := func(name, ip string) {
		t.Helper()
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "x.yaml"), []byte(serviceDoc(name, ip)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fill("a", "10.96.0.1")
	s, l := start(t, dir)
	v := view{}
	v.await(t, s, lineA)
	if err := os.Rename(dir, away); err != nil {
		t.Fatal(err)
	}
	l.await(t, "WARN", "object=/"+dir, "everything stays as it was")
	if v.take(s); !slices.Equal(v.lines(), []string{lineA}) {
		t.Errorf("got %q, want %q kept", v.lines(), lineA)
	}
	if ps := s.Problems(); len(ps) != 1 || ps[0].Object != (lb.Object{Name: dir}) {
		t.Errorf("got problems %v, want one about the directory", ps)
	}
	fill("b", "10.96.0.2")
	v.await(t, s, lineB)
	if ps := s.Problems(); len(ps) != 0 {
		t.Errorf("the directory is back; problems left: %v", ps)
	}
	if err := os.WriteFile(filepath.Join(dir, "c.yaml"), []byte(serviceDoc("c", "10.96.0.3")), 0o600); err != nil {
		t.Fatal(err)
	}
	v.await(t, s, lineB, lineC) // the new directory is watched
}

func FuzzManifests(f *testing.F) {
	both := docs(serviceDoc("a", "10.96.0.1"), sliceDoc("a", "a-1", "10.0.0.1"))
	for _, seed := range []string{both, "kind: [", "---\n...\n", "{}", "null", "- a", `{"kind":"List","items":[{"kind":"List","items":[]}]}`,
		"a: &a [*a]", "kind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 99999999999}]}", `{"Kind":"Service","kind":"Node"}`,
		"kind: Service\napiVersion: v1\nmetadata: {name: a, creationTimestamp: 2026-01-01T00:00:00Z}\nspec: {sessionAffinity: ClientIP, clusterIP: fd00::1, ports: [{port: 1, protocol: SCTP}]}"} {
		f.Add([]byte(seed), []byte(both), false)
		f.Add([]byte(seed), []byte(seed), true)
	}
	f.Fuzz(func(t *testing.T, first, second []byte, isJSON bool) {
		name := "x.yaml"
		if isJSON {
			name = "x.json"
		}
		o := testOptions()
		o.Sources = []Source{Manifests}
		s := New(o, discard(), nil)
		s.MarkSynced(Manifests)
		m := newManifests("", s, discard())
		v := view{}
		var before *contents
		for _, data := range [][]byte{first, second} {
			c := decode(name, data, before, &s.opts)
			touched := map[objectKey]bool{}
			m.set(name, &manifest{contents: *c}, touched)
			m.apply(touched)
			v.take(s)
			before = c
		}
		for obj, svcs := range v {
			for _, svc := range svcs {
				if svc.Name.Object != obj || len(svc.Frontends) == 0 {
					t.Errorf("%s: published %v", obj, svc)
				}
			}
		}
		m.set(name, nil, map[objectKey]bool{})
		touched := map[objectKey]bool{}
		for k := range before.objects {
			touched[k] = true
		}
		m.apply(touched)
		if v.take(s); len(v) != 0 {
			t.Errorf("the file is gone, still published: %q", v.lines())
		}
	})
}
