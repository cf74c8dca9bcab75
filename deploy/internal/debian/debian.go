// SPDX-License-Identifier: Apache-2.0

// Package debian reads Debian packages from an archive: a closed list, each at one
// version and with one checksum. It needs no program of Debian.
package debian

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ulikunitz/xz"
)

// Package is one line of a lock file.
type Package struct {
	Arch    string // the image's: amd64 or arm64
	Name    string
	Version string
	Path    string // below the archive's root
	SHA256  string // of the file, hexadecimal
}

// String returns the line.
func (p Package) String() string {
	return strings.Join([]string{p.Arch, p.Name, p.Version, p.Path, p.SHA256}, " ")
}

// ReadLock returns the packages that the lock file at path lists for arch.
func ReadLock(path, arch string) ([]Package, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var ps []Package
	for n, line := range strings.Split(string(text), "\n") {
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || strings.HasPrefix(line, "#"):
		case len(f) != 5 || len(f[4]) != 2*sha256.Size:
			return nil, fmt.Errorf("%s:%d: want ARCH NAME VERSION PATH SHA256", path, n+1)
		case f[0] == arch:
			ps = append(ps, Package{f[0], f[1], f[2], f[3], f[4]})
		}
	}
	if len(ps) == 0 {
		return nil, fmt.Errorf("%s: has no package for %s", path, arch)
	}
	return ps, nil
}

// Archive is where packages come from, and where they are kept once they were fetched.
type Archive struct {
	URL   string        // http://deb.debian.org/debian
	Cache string        // directory, made if it is missing
	Pause time.Duration // before a file is asked for again, which it is tries times
}

const (
	maxPackage = 64 << 20 // bytes that a package may have
	tries      = 4        // of a server that does not answer, or says that it cannot
)

// Fetch returns the file of p, whose checksum is right.
func (a Archive) Fetch(p Package) ([]byte, error) {
	kept := filepath.Join(a.Cache, p.SHA256+".deb")
	if text, err := os.ReadFile(kept); err == nil && sum(text) == p.SHA256 {
		return text, nil
	}
	text, err := a.Get(p.Path)
	if err != nil {
		return nil, fmt.Errorf("package %s %s: %w; if Debian has replaced it, run make image-lock", p.Name, p.Version, err)
	}
	if got := sum(text); got != p.SHA256 {
		return nil, fmt.Errorf("package %s %s: SHA-256 is %s, want %s", p.Name, p.Version, got, p.SHA256)
	}
	if err := os.MkdirAll(a.Cache, 0o755); err != nil {
		return nil, err
	}
	part := kept + ".part" + strconv.Itoa(os.Getpid())
	if err := os.WriteFile(part, text, 0o644); err != nil {
		return nil, err
	}
	return text, os.Rename(part, kept)
}

// Get returns a file of the archive by its path.
func (a Archive) Get(name string) (text []byte, err error) {
	again := true
	for i := 0; i < tries && again; i++ {
		if i > 0 {
			time.Sleep(a.Pause)
		}
		text, again, err = get(a.URL + "/" + name)
	}
	return text, err
}

// get asks once. again says that it may be different the next time.
func get(url string) (text []byte, again bool, err error) {
	resp, err := http.Get(url)
	if err != nil {
		return nil, true, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		again = resp.StatusCode >= http.StatusInternalServerError || resp.StatusCode == http.StatusTooManyRequests
		return nil, again, fmt.Errorf("%s: %s", url, resp.Status)
	}
	text, err = io.ReadAll(io.LimitReader(resp.Body, maxPackage+1))
	if err != nil {
		return nil, true, fmt.Errorf("%s: %w", url, err)
	}
	if len(text) > maxPackage {
		return nil, false, fmt.Errorf("%s: too long", url)
	}
	return text, false, nil
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// Walk calls visit with each file of a package, whose path begins with no slash, and returns
// the package's control file.
func Walk(deb []byte, visit func(*tar.Header, io.Reader) error) (control []byte, err error) {
	for name, text := range members(deb) {
		base, _, _ := strings.Cut(name, ".")
		if base != "control" && base != "data" {
			continue
		}
		r, err := decompress(name, text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			h.Name = strings.TrimPrefix(path.Clean("/"+h.Name), "/")
			switch {
			case base == "data" && h.Name != "":
				err = visit(h, tr)
			case base == "control" && h.Name == "control":
				control, err = io.ReadAll(tr)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", name, h.Name, err)
			}
		}
	}
	if control == nil {
		return nil, errors.New("not a Debian package: it has no control file")
	}
	return control, nil
}

// members iterates over an ar archive, and stops where it is not one.
func members(deb []byte) func(func(string, []byte) bool) {
	const magic, header = "!<arch>\n", 60
	return func(yield func(string, []byte) bool) {
		rest, ok := bytes.CutPrefix(deb, []byte(magic))
		for ok && len(rest) >= header {
			name := strings.TrimRight(string(rest[:16]), " /")
			size, err := strconv.Atoi(strings.TrimSpace(string(rest[48:58])))
			if err != nil || size < 0 || size > len(rest)-header {
				return
			}
			if !yield(name, rest[header:header+size]) {
				return
			}
			rest = rest[min(len(rest), header+size+size%2):]
		}
	}
}

func decompress(name string, text []byte) (io.Reader, error) {
	r := bufio.NewReader(bytes.NewReader(text))
	switch path.Ext(name) {
	case ".tar":
		return r, nil
	case ".gz":
		return gzip.NewReader(r)
	case ".xz":
		return xz.NewReader(r)
	}
	return nil, errors.New("unknown compression")
}
