// SPDX-License-Identifier: Apache-2.0

package debian

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
)

// keyring is that of the package debian-archive-keyring.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Resolve returns the packages of these names that a suite of the archive has for arch. The
// suite's signature is checked, by gpgv.
func (a Archive) Resolve(suite, arch string, names []string) ([]Package, error) {
	release, err := a.Get("dists/" + suite + "/InRelease")
	if err != nil {
		return nil, err
	}
	gpgv := exec.Command("gpgv", "--quiet", "--keyring", keyring, "--output", "-")
	gpgv.Stdin = bytes.NewReader(release)
	signed, err := gpgv.Output() // what is signed, and nothing around it
	if err != nil {
		return nil, fmt.Errorf("signature of %s: %w", suite, err)
	}
	index := "main/binary-" + arch + "/Packages.xz"
	packed, err := a.Get("dists/" + suite + "/" + index)
	if err != nil {
		return nil, err
	}
	_, sums, _ := strings.Cut(string(signed), "\nSHA256:\n")
	if !listed(sums, sum(packed), index) {
		return nil, fmt.Errorf("%s: its checksum is not in the signed list of %s", index, suite)
	}
	r, err := decompress(index, packed)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", index, err)
	}
	return pick(string(text), arch, names)
}

// listed tells whether a line of sums is SUM SIZE NAME.
func listed(sums, sum, name string) bool {
	for line := range strings.Lines(sums) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == sum && f[2] == name {
			return true
		}
	}
	return false
}

// pick finds names in the text of a Packages file.
func pick(text, arch string, names []string) ([]Package, error) {
	found := map[string]Package{}
	for entry := range strings.SplitSeq(text, "\n\n") {
		p := Package{Arch: arch}
		for line := range strings.Lines(entry) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			switch key {
			case "Package":
				p.Name = value
			case "Version":
				p.Version = value
			case "Filename":
				p.Path = value
			case "SHA256":
				p.SHA256 = value
			}
		}
		found[p.Name] = p
	}
	var ps []Package
	var errs []error
	for _, name := range names {
		p, ok := found[name]
		if !ok {
			errs = append(errs, fmt.Errorf("no package %s for %s", name, arch))
		}
		ps = append(ps, p)
	}
	return ps, errors.Join(errs...)
}
