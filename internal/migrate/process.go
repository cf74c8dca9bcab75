// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// processName is what a kube-proxy's name begins with.
const processName = "kube-proxy"

// embedders are beginnings of names of programs that may have a kube-proxy in them, those
// of k3s and of MicroK8s. It can be switched off there, and no argument is left to tell.
var embedders = []string{"k3s", "kubelite"}

// proxyPorts are those that kube-proxy listens at: metrics and health.
var proxyPorts = []uint64{10249, 10256}

// initialPIDs is the process id namespace of the host, which has the same number in every
// kernel: PROC_PID_INIT_INO of include/uapi/linux/nsfs.h.
const initialPIDs = "pid:[4026531836]"

// procfs is where processes are seen.
type procfs struct {
	root     string
	readlink func(name string) (string, error)
}

// process is one of them.
type process struct {
	id   int
	name string // the first 15 bytes
}

// is tells whether the name begins with one of starts.
func (p process) is(starts ...string) bool {
	return slices.ContainsFunc(starts, func(s string) bool { return strings.HasPrefix(p.name, s) })
}

// processes returns the ids of the processes of kube-proxy in the network namespace of the
// calling thread. blind says that not all of the node's are seen: neither is the process
// id namespace the host's, nor is a kubelet in it, as in that of a node that is a
// container itself.
func (f procfs) processes() (pids []int, blind bool, err error) {
	own, err := f.readlink(filepath.Join(f.root, "thread-self/ns/net"))
	if err != nil {
		return nil, false, fmt.Errorf("own network namespace: %w", err)
	}
	ids, err := f.readlink(filepath.Join(f.root, "thread-self/ns/pid"))
	if err != nil {
		return nil, false, fmt.Errorf("own process id namespace: %w", err)
	}
	all, err := f.all()
	if err != nil {
		return nil, false, err
	}
	sockets := f.listening()
	for _, p := range all {
		if !p.is(processName) && !p.is(embedders...) {
			continue
		}
		ns, err := f.readlink(f.of(p, "ns/net"))
		switch {
		case err != nil && !errors.Is(err, fs.ErrPermission): // it has ended
		case err == nil && ns != own:
		case p.is(processName) || f.holds(p, sockets):
			pids = append(pids, p.id)
		}
	}
	blind = ids != initialPIDs && !slices.ContainsFunc(all, func(p process) bool { return p.is("kubelet") || p.is(embedders...) })
	return pids, blind, nil
}

// all returns all that are seen.
func (f procfs) all() (ps []process, err error) {
	dirs, err := os.ReadDir(f.root)
	if err != nil {
		return nil, fmt.Errorf("processes: %w", err)
	}
	for _, d := range dirs {
		id, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		name, err := os.ReadFile(filepath.Join(f.root, d.Name(), "comm"))
		if err == nil { // else it has ended
			ps = append(ps, process{id, strings.TrimSpace(string(name))})
		}
	}
	return ps, nil
}

func (f procfs) of(p process, file string) string {
	return filepath.Join(f.root, strconv.Itoa(p.id), file)
}

// listening returns the sockets that listen at proxyPorts, as links to them read.
func (f procfs) listening() map[string]bool {
	const state, inode, listens = 3, 9, "0A" // fields of a line, and TCP_LISTEN
	found := map[string]bool{}
	for _, file := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(filepath.Join(f.root, "thread-self/net", file))
		if err != nil {
			continue // there is no such family
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) <= inode || fields[state] != listens {
				continue
			}
			_, port, _ := strings.Cut(fields[1], ":")
			if n, err := strconv.ParseUint(port, 16, 16); err == nil && slices.Contains(proxyPorts, n) {
				found["socket:["+fields[inode]+"]"] = true
			}
		}
	}
	return found
}

// holds tells whether a process has one of sockets, or may not be asked.
func (f procfs) holds(p process, sockets map[string]bool) bool {
	if len(sockets) == 0 {
		return false
	}
	dirs, err := os.ReadDir(f.of(p, "fd"))
	if err != nil {
		return errors.Is(err, fs.ErrPermission)
	}
	return slices.ContainsFunc(dirs, func(d fs.DirEntry) bool {
		link, err := f.readlink(f.of(p, "fd/"+d.Name()))
		return err == nil && sockets[link] || errors.Is(err, fs.ErrPermission)
	})
}
