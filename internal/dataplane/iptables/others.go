// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/lbproxy/lbproxy/internal/dataplane"
	"github.com/lbproxy/lbproxy/internal/lb"
)

// KubeProxyTable is the name of kube-proxy's tables of nftables, and kubeProxyChain that
// of a chain which every kube-proxy with iptables rules has in table nat.
const (
	KubeProxyTable = "kube-proxy"
	kubeProxyChain = "KUBE-SERVICES"
)

// ErrNoNFT says that the program nft is not installed.
var ErrNoNFT = errors.New("the program nft is not installed (package nftables)")

// Saved is one table of one family and backend, whoever's the rules are.
type Saved struct {
	Family  lb.Family
	Backend string   // nft or legacy
	Table   string   // nat, filter or mangle
	Lines   []string // as iptables-save prints them, without comments
}

// String names the table for people.
func (s Saved) String() string {
	return fmt.Sprintf("table %s of %s (%s, %s)", s.Table, programName(s.Family), s.Family, s.Backend)
}

// SaveAll returns the tables nat, filter and mangle of both families and backends, as far
// as they are there, in the network namespace of the calling thread. Nothing is loaded or
// made by that.
func SaveAll(ctx context.Context) ([]Saved, error) {
	var all []Saved
	for _, backend := range []string{nftBackend, legacyBackend} {
		for _, f := range families {
			have := haveTables(f, backend)
			p, err := findPrograms(f, backend)
			if err != nil {
				continue // it is not installed
			}
			for _, t := range []table{natTable, filterTable, "mangle"} {
				if !have(t) {
					continue
				}
				s := Saved{Family: f, Backend: backend, Table: string(t)}
				err := saveLines(ctx, p.saveProgram, t, func(line string) {
					if !strings.HasPrefix(line, "#") {
						s.Lines = append(s.Lines, line)
					}
				})
				if err != nil {
					return nil, err
				}
				all = append(all, s)
			}
		}
	}
	return all, nil
}

// Restore feeds text to iptables-restore --noflush: each table in it is changed wholly, or
// not at all.
func Restore(ctx context.Context, f lb.Family, backend, text string) error {
	r, err := openRunner(f, backend, runnerOptions{})
	if err != nil {
		return err
	}
	return r.feed(ctx, func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	})
}

// ListNFT returns a table of nftables as nft prints it in JSON, with numbers for names of
// ports. The error wraps ErrNoNFT if there is no such program.
func ListNFT(ctx context.Context, f lb.Family, name string) ([]byte, error) {
	program, err := exec.LookPath("nft")
	if err != nil {
		return nil, ErrNoNFT
	}
	cmd := exec.CommandContext(ctx, program, "-j", "-n", "list", "table", nftFamily(f), name)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr tail
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("nft list table %s %s: %w: %s", nftFamily(f), name, err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

// nftFamily is what nft calls a family.
func nftFamily(f lb.Family) string {
	if f == lb.IPv6 {
		return "ip6"
	}
	return "ip"
}

// keepBeside makes keepChain for families that kube-proxy serves with nftables.
func keepBeside(ctx context.Context) error {
	has, err := HasTables(KubeProxyTable)
	if err != nil { // the kernel has no nftables
		return nil
	}
	for i, f := range families {
		if !has[i] {
			continue
		}
		c, err := chooseBackend(autoBackend)
		if err != nil {
			return err
		}
		r, err := openRunner(f, c.backend, runnerOptions{})
		if err != nil {
			return err
		}
		if err := r.keep(ctx); err != nil {
			return err
		}
	}
	return nil
}

// translates tells whether table nat has chains of lbproxy's own, or kube-proxy's.
func (r *runner) translates(ctx context.Context) (found bool, err error) {
	err = r.save(ctx, natTable, func(line string) {
		found = found || strings.HasPrefix(line, ":"+prefix) || strings.HasPrefix(line, ":"+kubeProxyChain+" ")
	})
	return found, err
}

// Leaving returns the TCP and SCTP connections that netfilter sends elsewhere, on whoever's
// behalf, as they leave: with the source that the backend sees. masked are those with
// another source than the client's own.
func Leaving() (masked, plain []dataplane.Flow, err error) {
	c, err := openConntrack()
	if err != nil {
		return nil, nil, err
	}
	defer c.close()
	for _, f := range families {
		for _, proto := range []lb.Proto{lb.TCP, lb.SCTP} {
			err := c.dump(query{family: f, proto: proto, status: statusDNAT}, func(e *entry) error {
				leaves := dataplane.Flow{Proto: e.proto, Client: e.source, Backend: e.backend}
				switch {
				case e.ended():
				case e.masked:
					masked = append(masked, leaves)
				default:
					plain = append(plain, leaves)
				}
				return nil
			})
			if err != nil {
				return nil, nil, err
			}
		}
	}
	return masked, plain, nil
}
