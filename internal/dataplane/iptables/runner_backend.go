// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// programs are those of one family and backend.
type programs struct {
	kind           string // "nft" or "legacy"
	version        string // "1.8.9"
	program        string // iptables
	restoreProgram string
	saveProgram    string
}

// families are both.
var families = []lb.Family{lb.IPv4, lb.IPv6}

// programName is the plain name of a family's program.
func programName(f lb.Family) string {
	if f == lb.IPv6 {
		return "ip6tables"
	}
	return "iptables"
}

// findPrograms finds the programs of a backend by their own names, like
// iptables-nft-restore, or by the plain ones if those are of that backend.
func findPrograms(f lb.Family, backend string) (programs, error) {
	plain := programName(f)
	var missing []error
	for _, base := range []string{plain + "-" + backend, plain} {
		p, err := lookPrograms(base)
		switch {
		case err != nil:
			missing = append(missing, err)
		case p.kind != backend:
			missing = append(missing, fmt.Errorf("%s is of the %s backend", p.program, p.kind))
		default:
			return p, nil
		}
	}
	return programs{}, fmt.Errorf("no %s programs of the %s backend for %s (package iptables): %w",
		plain, backend, f, errors.Join(missing...))
}

// lookPrograms finds base, base-restore and base-save, and asks for the version.
func lookPrograms(base string) (programs, error) {
	p := programs{}
	for _, l := range []struct {
		name string
		path *string
	}{{base, &p.program}, {base + "-restore", &p.restoreProgram}, {base + "-save", &p.saveProgram}} {
		path, err := exec.LookPath(l.name)
		if err != nil {
			return p, fmt.Errorf("%s is not installed", l.name)
		}
		*l.path = path
	}
	out, err := exec.Command(p.program, "--version").Output()
	if err != nil {
		return p, fmt.Errorf("%s --version: %w", p.program, err)
	}
	p.version, p.kind, err = parseVersion(string(out))
	return p, err
}

var versionText = regexp.MustCompile(`v(\d+\.\d+\.\d+)(?:\s+\((\w+)\))?`)

// parseVersion reads "iptables v1.8.9 (nf_tables)". Programs before 1.8 name no
// backend: there was only one.
func parseVersion(s string) (version, backend string, err error) {
	m := versionText.FindStringSubmatch(s)
	if m == nil {
		return "", "", fmt.Errorf("no iptables version in %q", s)
	}
	if m[2] == "nf_tables" {
		return m[1], nftBackend, nil
	}
	return m[1], legacyBackend, nil
}

// choice is a backend and the reason for it.
type choice struct{ backend, why string }

// use is what a backend has in this network namespace, in both families.
type use struct {
	installed bool
	hint      string // a chain of kubelet's that is there, or ""
	rules     int    // of table nat
}

// chooseBackend resolves "auto" by what is in use; every program on the node must use
// the same backend, as the other one's rules are looked at by the kernel as well.
func chooseBackend(backend string) (choice, error) {
	switch backend {
	case nftBackend, legacyBackend:
		return choice{backend, "chosen by the configuration"}, nil
	case autoBackend, "":
	default:
		return choice{}, fmt.Errorf("iptables backend %q: want auto, nft or legacy", backend)
	}
	plain := ""
	for _, f := range families {
		if p, err := lookPrograms(programName(f)); err == nil {
			plain = p.kind
			break
		}
	}
	return choose(usedBackend(nftBackend), usedBackend(legacyBackend), plain)
}

// choose is the decision of chooseBackend. plain is the backend of the program
// "iptables", or "".
func choose(nft, legacy use, plain string) (choice, error) {
	switch {
	case !nft.installed && !legacy.installed:
		return choice{}, errors.New("iptables is not installed (package iptables)")
	case nft.hint != "":
		return choice{nftBackend, "kubelet's chain " + nft.hint + " is there"}, nil
	case legacy.hint != "":
		return choice{legacyBackend, "kubelet's chain " + legacy.hint + " is there"}, nil
	case nft.rules > legacy.rules:
		return choice{nftBackend, fmt.Sprintf("it has %d rules in table nat, legacy has %d", nft.rules, legacy.rules)}, nil
	case legacy.rules > nft.rules:
		return choice{legacyBackend, fmt.Sprintf("it has %d rules in table nat, nft has %d", legacy.rules, nft.rules)}, nil
	case plain != "":
		return choice{plain, "the program iptables is of it"}, nil
	case nft.installed:
		return choice{nftBackend, "only its programs are installed"}, nil
	}
	return choice{legacyBackend, "only its programs are installed"}, nil
}

// usedBackend looks at what a backend has. Nothing is loaded or created by that.
func usedBackend(backend string) use {
	var u use
	for _, f := range families {
		p, err := findPrograms(f, backend)
		if err != nil {
			continue
		}
		u.installed = true
		have := haveTables(f, backend)
		ctx := context.Background()
		if have("mangle") && u.hint == "" {
			_ = saveLines(ctx, p.saveProgram, "mangle", func(line string) { // an error is nothing seen
				name, rules, ok := parseSaved(line)
				if ok && rules == nil && (name == "KUBE-IPTABLES-HINT" || name == "KUBE-KUBELET-CANARY") {
					u.hint = name
				}
			})
		}
		if have("nat") && u.hint == "" {
			_ = saveLines(ctx, p.saveProgram, natTable, func(line string) {
				if strings.HasPrefix(line, "-A ") {
					u.rules++
				}
			})
		}
	}
	return u
}

// haveTables tells which tables can be looked at without making them: the legacy
// programs load the kernel's part of a table when they are asked for it.
func haveTables(f lb.Family, backend string) func(table) bool {
	if backend == nftBackend {
		ok := nftAvailable()
		return func(table) bool { return ok }
	}
	names := map[table]bool{}
	file := "/proc/thread-self/net/ip_tables_names"
	if f == lb.IPv6 {
		file = "/proc/thread-self/net/ip6_tables_names"
	}
	list, err := os.Open(file)
	if err != nil {
		return func(table) bool { return false } // not loaded
	}
	defer list.Close()
	for s := bufio.NewScanner(list); s.Scan(); {
		names[table(s.Text())] = true
	}
	return func(t table) bool { return names[t] }
}

// nftAvailable tells whether the kernel has nftables.
func nftAvailable() bool {
	n, err := openNFT()
	if err != nil {
		return false
	}
	_, err = n.generation()
	return errors.Join(err, n.close()) == nil
}
