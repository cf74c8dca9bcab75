// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cyclonedx "github.com/CycloneDX/cyclonedx-go"

	"github.com/lbproxy/lbproxy/deploy/internal/oci"
)

// cacheDir keeps what was fetched between runs.
var cacheDir = filepath.Join("..", "..", ".cache", "deb")

// buildArchive builds an image of this test's own program, which is a Go program as good as
// any, and returns the archive's path and bytes.
func buildArchive(t *testing.T, args ...string) (path string, text []byte) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "image.oci.tar")
	args = append([]string{"-lock-file=debian.lock", "-cache=" + cacheDir, "-o=" + path, "-version=1.2.3", "-epoch=1700000000"}, args...)
	for i, a := range args {
		args[i] = strings.ReplaceAll(a, "SELF", self)
	}
	if err := run(args, io.Discard); err != nil {
		t.Fatal(err)
	}
	if text, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	return path, text
}

// The same program and lock file are the same bytes; another time is another image.
func TestReproducible(t *testing.T) {
	_, first := buildArchive(t, "amd64=SELF", "arm64=SELF")
	_, second := buildArchive(t, "arm64=SELF", "amd64=SELF")
	if !bytes.Equal(first, second) {
		t.Error("the same image, built twice, differs")
	}
	if _, other := buildArchive(t, "-epoch=1", "amd64=SELF", "arm64=SELF"); bytes.Equal(first, other) {
		t.Error("an image of another time is the same")
	}
}

// layout is an archive's files by their names.
type layout map[string][]byte

func readLayout(t *testing.T, text []byte) layout {
	t.Helper()
	files := layout{}
	for tr := tar.NewReader(bytes.NewReader(text)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		} else if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
}

// blob returns what d refers to, whose size and digest are right.
func (l layout) blob(t *testing.T, d oci.Descriptor, into any) []byte {
	t.Helper()
	text := l["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
	if int64(len(text)) != d.Size || digestOf(text) != d.Digest {
		t.Fatalf("%s: got %d bytes with digest %s, want %d", d.Digest, len(text), digestOf(text), d.Size)
	}
	if into != nil {
		if err := json.Unmarshal(text, into); err != nil {
			t.Fatal(err)
		}
	}
	return text
}

func digestOf(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

// TestLayout follows the archive of two architectures from its index to the files.
func TestLayout(t *testing.T) {
	_, text := buildArchive(t, "amd64=SELF", "arm64=SELF")
	l := readLayout(t, text)
	if got := string(l["oci-layout"]); got != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout is %s", got)
	}
	type index struct{ Manifests []oci.Descriptor }
	var top, all index
	if err := json.Unmarshal(l["index.json"], &top); err != nil || len(top.Manifests) != 1 {
		t.Fatalf("index.json: %v, %s", err, l["index.json"])
	}
	if name := top.Manifests[0].Annotations["io.containerd.image.name"]; name != "docker.io/library/lbproxy:1.2.3" {
		t.Errorf("the image is named %q", name)
	}
	l.blob(t, top.Manifests[0], &all)
	archs := []string{}
	for _, d := range all.Manifests {
		archs = append(archs, d.Platform.Architecture)
		checkImage(t, l, d)
	}
	if !slices.Equal(archs, []string{"amd64", "arm64"}) {
		t.Errorf("got images for %v", archs)
	}
}

// checkImage checks one image's manifest, configuration and layers.
func checkImage(t *testing.T, l layout, d oci.Descriptor) {
	t.Helper()
	var m struct {
		Config oci.Descriptor
		Layers []oci.Descriptor
	}
	var c struct {
		Architecture, OS string
		Config           struct{ Entrypoint []string }
		RootFS           struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	l.blob(t, d, &m)
	l.blob(t, m.Config, &c)
	if c.Architecture != d.Platform.Architecture || c.OS != "linux" || !slices.Equal(c.Config.Entrypoint, []string{"/" + programPath}) {
		t.Errorf("got configuration %+v for %s", c, d.Platform.Architecture)
	}
	files := map[string]*tar.Header{}
	for i, layer := range m.Layers {
		z, err := gzip.NewReader(bytes.NewReader(l.blob(t, layer, nil)))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		if got := digestOf(plain); got != c.RootFS.DiffIDs[i] {
			t.Errorf("layer %d: diff id %s, want %s", i, got, c.RootFS.DiffIDs[i])
		}
		readHeaders(t, plain, files)
	}
	lib := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[c.Architecture]
	for _, name := range []string{
		programPath, "usr/sbin/xtables-nft-multi", "usr/sbin/xtables-legacy-multi", "usr/sbin/nft", "usr/sbin/iptables-restore", "usr/sbin/ip6tables-legacy-save",
		"usr/lib/" + lib + "/libc.so.6", "usr/lib/" + lib + "/xtables/libxt_statistic.so", "usr/lib/" + lib + "/libnftnl.so.11",
		"etc/ssl/certs/ca-certificates.crt", "etc/os-release", "usr/share/doc/iptables/copyright", "var/lib/dpkg/status.d/iptables",
	} {
		if files[name] == nil {
			t.Errorf("%s: the image has no %s", c.Architecture, name)
		}
	}
}

// readHeaders adds a layer's files, which are root's and of one time, in order.
func readHeaders(t *testing.T, layer []byte, into map[string]*tar.Header) {
	t.Helper()
	last := ""
	for tr := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(h.Name, "/")
		if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != 1700000000 || h.Mode&0o6022 != 0 && name != "tmp" && h.Typeflag != tar.TypeSymlink || name <= last {
			t.Errorf("%s: owner %d:%d, time %s, mode %o, after %s", name, h.Uid, h.Gid, h.ModTime, h.Mode, last)
		}
		into[name], last = h, name
	}
}

// TestBill reads what was written with the libraries that others use.
func TestBill(t *testing.T) {
	path, _ := buildArchive(t, "amd64=SELF")
	stem := strings.TrimSuffix(path, ".oci.tar")
	text, err := os.ReadFile(stem + ".cdx.json")
	if err != nil {
		t.Fatal(err)
	}
	var bom cyclonedx.BOM
	if err := cyclonedx.NewBOMDecoder(bytes.NewReader(text), cyclonedx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	purls := map[string]bool{}
	for _, c := range *bom.Components {
		if purls[c.PackageURL] || c.Version == "" {
			t.Errorf("component %+v is there twice, or has no version", c)
		}
		purls[c.PackageURL] = true
	}
	lock, err := os.ReadFile("debian.lock")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"pkg:golang/github.com/ulikunitz/xz@", "pkg:golang/stdlib@"} // this program has them
	for line := range strings.Lines(string(lock)) {
		if f := strings.Fields(line); f[0] == "amd64" {
			want = append(want, "pkg:deb/debian/"+f[1]+"@")
		}
	}
	var spdx struct {
		Version  string `json:"spdxVersion"`
		Packages []struct{ SPDXID, Name, VersionInfo, DownloadLocation string }
	}
	text, err = os.ReadFile(stem + ".spdx.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &spdx); err != nil || spdx.Version != "SPDX-2.3" || len(spdx.Packages) != len(purls)+1 {
		t.Errorf("SPDX: %v, version %q, %d packages, want %d and lbproxy", err, spdx.Version, len(spdx.Packages), len(purls))
	}
	for _, prefix := range want {
		found := false
		for purl := range purls {
			found = found || strings.HasPrefix(purl, prefix)
		}
		if !found {
			t.Errorf("no component %s...", prefix)
		}
	}
}

// TestWrongPackage: nothing comes into the image that the lock file does not know.
func TestWrongPackage(t *testing.T) {
	lock, err := os.ReadFile("debian.lock")
	if err != nil {
		t.Fatal(err)
	}
	var first string
	for line := range strings.Lines(string(lock)) {
		if strings.HasPrefix(line, "amd64 netbase ") {
			first = strings.TrimSpace(line)
		}
	}
	f := strings.Fields(first)
	for name, tc := range map[string]struct{ lock, want string }{
		"another checksum": {strings.Replace(first, f[4], strings.Repeat("0", 64), 1), "SHA-256 is " + f[4]},
		"gone":             {strings.Replace(strings.Replace(first, f[4], strings.Repeat("1", 64), 1), f[3], "pool/gone.deb", 1), "make image-lock"},
		"malformed":        {"amd64 netbase 6.4", "want ARCH NAME"},
		"no package":       {"arm64" + strings.TrimPrefix(first, "amd64"), "no package for amd64"},
	} {
		file := filepath.Join(t.TempDir(), "lock")
		if err := os.WriteFile(file, []byte(tc.lock+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := run([]string{"-lock-file=" + file, "-cache=" + t.TempDir(), "-o=" + file + ".tar", "amd64=" + os.Args[0]}, io.Discard)
		if err == nil || !strings.Contains(fmt.Sprint(err), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}
