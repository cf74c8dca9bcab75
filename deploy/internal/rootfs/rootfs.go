// SPDX-License-Identifier: Apache-2.0

// Package rootfs makes the file system of lbproxy's image from Debian packages: the
// iptables programs of both backends and nft with what these load, the certificates of
// authorities, and the files by which scanners know what is in it. There is no shell.
package rootfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/deploy/internal/debian"
)

// Packages are those of the image. Their names are the same on every architecture.
var Packages = []string{
	"base-files", "ca-certificates", "iptables", "libc6", "libip4tc2", "libip6tc2", "libmnl0",
	"libnetfilter-conntrack3", "libnfnetlink0", "libnftnl11", "libxtables12", "netbase",
	"libbsd0", "libedit2", "libgmp10", "libjansson4", "libmd0", "libnftables1", "libtinfo6", "nftables", // nft
}

// wanted are the paths that are taken; a link's target has to be wanted, too.
var wanted = regexp.MustCompile(`^(` + strings.Join([]string{
	`usr/lib/os-release|etc/debian_version|etc/protocols|etc/services`,
	`usr/sbin/(nft|xtables-(nft|legacy)-multi|ip6?tables-(nft|legacy)(-save|-restore)?)`,
	`usr/lib/[a-z0-9_]+-linux-gnu/xtables/lib[A-Za-z0-9_]+\.so`,
	`usr/lib/[a-z0-9_]+-linux-gnu/(ld-linux-[a-z0-9-]+|lib(bsd|c|m|dl|edit|gmp|jansson|md|pthread|resolv|tinfo|ip[46]tc|mnl|netfilter_conntrack|nfnetlink|nftables|nftnl|xtables))\.so\.[0-9.]+`,
	`usr/lib(64)?/ld-linux-[a-z0-9-]+\.so\.[0-9]`,
	`usr/share/doc/[a-z0-9.+-]+/copyright`,
}, "|") + `)$`)

var authority = regexp.MustCompile(`^usr/share/ca-certificates/mozilla/.*\.crt$`)

// File is one entry of the image.
type File struct {
	Mode   int64  // permissions
	Dir    bool   // a directory
	Target string // of a symbolic link
	Data   []byte
}

// Tree is a file system by paths without a leading slash.
type Tree map[string]File

// Base returns the tree of packages, and what each calls itself: its control file.
func Base(archive debian.Archive, packages []debian.Package) (Tree, error) {
	t := Tree{}
	certificates := map[string][]byte{}
	for _, p := range packages {
		deb, err := archive.Fetch(p)
		if err != nil {
			return nil, err
		}
		control, err := debian.Walk(deb, func(h *tar.Header, r io.Reader) error {
			if authority.MatchString(h.Name) {
				text, err := io.ReadAll(r)
				certificates[h.Name] = text
				return err
			}
			return t.take(h, r)
		})
		if err != nil {
			return nil, fmt.Errorf("package %s: %w", p.Name, err)
		}
		t["var/lib/dpkg/status.d/"+p.Name] = File{Mode: 0o644, Data: control} // where scanners look
	}
	if len(certificates) == 0 {
		return nil, errors.New("the packages have no certificates of authorities")
	}
	t["etc/ssl/certs/ca-certificates.crt"] = File{Mode: 0o644, Data: bundle(certificates)}
	t.own()
	return t, errors.Join(t.check(), t.checkLibraries())
}

// bundle joins certificates in the order of their names.
func bundle(certificates map[string][]byte) []byte {
	var all bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(certificates)) {
		all.Write(bytes.TrimSpace(certificates[name]))
		all.WriteByte('\n')
	}
	return all.Bytes()
}

// merged is a path as it is where /bin, /lib and /sbin are links into /usr.
func merged(name string) string {
	for _, dir := range []string{"bin/", "sbin/", "lib/", "lib64/"} {
		if strings.HasPrefix(name, dir) {
			return "usr/" + name
		}
	}
	return name
}

// take adds what is wanted of a package.
func (t Tree) take(h *tar.Header, r io.Reader) error {
	name := merged(h.Name)
	if h.Typeflag == tar.TypeDir || !wanted.MatchString(name) {
		return nil
	}
	switch h.Typeflag {
	case tar.TypeReg:
		text, err := io.ReadAll(r)
		t[name] = File{Mode: h.Mode & 0o755, Data: text}
		return err
	case tar.TypeSymlink:
		t[name] = File{Mode: 0o777, Target: h.Linkname}
		return nil
	}
	return fmt.Errorf("a file of type %c", h.Typeflag)
}

// own adds what no package has: the plain names of the nft programs, as Debian's
// alternatives have them, the users, and places to mount at.
func (t Tree) own() {
	for _, v := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			t["usr/sbin/"+v+suffix] = File{Mode: 0o777, Target: v + "-nft" + suffix}
		}
	}
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		t[dir] = File{Mode: 0o777, Target: "usr/" + dir}
	}
	for _, dir := range []string{"usr/bin", "usr/lib64", "proc", "sys", "dev", "run", "etc/lbproxy"} {
		t[dir] = File{Mode: 0o755, Dir: true}
	}
	t["tmp"] = File{Mode: 0o1777, Dir: true}
	t["var/run"] = File{Mode: 0o777, Target: "/run"}
	t["etc/os-release"] = File{Mode: 0o777, Target: "../usr/lib/os-release"}
	t["etc/passwd"] = File{Mode: 0o644, Data: []byte("root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n")}
	t["etc/group"] = File{Mode: 0o644, Data: []byte("root:x:0:\nnogroup:x:65534:\n")}
	t["etc/nsswitch.conf"] = File{Mode: 0o644, Data: []byte("passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n")}
}

// check returns an error if a link leads nowhere: something is wanted that its package
// has elsewhere by now.
func (t Tree) check() error {
	var errs []error
	for name, f := range t {
		if f.Target == "" {
			continue
		}
		target := f.Target
		if !path.IsAbs(target) {
			target = path.Join("/", path.Dir(name), target)
		}
		target = merged(strings.TrimPrefix(target, "/"))
		if _, ok := t[target]; !ok && !t.isDir(target) {
			errs = append(errs, fmt.Errorf("%s: is a link to %s, which is not there", name, f.Target))
		}
	}
	return errors.Join(errs...)
}

// isDir tells whether name is a directory because something is in it.
func (t Tree) isDir(name string) bool {
	for other := range t {
		if strings.HasPrefix(other, name+"/") {
			return true
		}
	}
	return false
}

// Tar writes t, and the directories above its files, in the order of paths and with one
// time for all: the same tree is the same bytes.
func (t Tree) Tar(w io.Writer, at time.Time) error {
	all := maps.Clone(t)
	for name := range t {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, has := all[dir]; !has {
				all[dir] = File{Mode: 0o755, Dir: true}
			}
		}
	}
	tw := tar.NewWriter(w)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		f := all[name]
		h := &tar.Header{Name: name, Mode: f.Mode, ModTime: at, Size: int64(len(f.Data)), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		switch {
		case f.Dir:
			h.Typeflag, h.Name = tar.TypeDir, name+"/"
		case f.Target != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.Target
		}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if _, err := tw.Write(f.Data); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return tw.Close()
}

// Unpack writes t below the directory dir, which has no links that lead out of it.
func (t Tree) Unpack(dir string) error {
	for _, name := range slices.Sorted(maps.Keys(t)) {
		f, p := t[name], filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		var err error
		switch {
		case f.Dir:
			err = os.MkdirAll(p, 0o755)
		case f.Target != "":
			err = os.Symlink(f.Target, p)
		default:
			err = os.WriteFile(p, f.Data, 0o644)
		}
		if err == nil && f.Target == "" {
			err = os.Chmod(p, fs.FileMode(f.Mode&0o777)|sticky(f.Mode)) // whatever the umask
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func sticky(mode int64) fs.FileMode {
	if mode&0o1000 != 0 {
		return fs.ModeSticky
	}
	return 0
}
