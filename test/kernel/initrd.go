// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	_ "embed"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// initScript is the machine's first process. Its inputs are the files that
// writeInitrd puts under /lbvm.
//
//go:embed init.sh
var initScript string

// defaultModules is what lbproxy's programs and tests need of a node. The cloud
// kernel builds these as modules, and the machine has no modprobe.
// crc32c_generic comes first because libcrc32c looks it up by name, which no
// dependency records.
var defaultModules = []string{
	"crc32c_generic",
	"veth", "bridge", "dummy",
	"sch_ingress", "cls_bpf", "act_bpf", "sch_fq",
	"nf_conntrack", "nf_conntrack_netlink", "nf_nat",
	"tcp_diag", "udp_diag",
}

// writeInitrd writes the initramfs: busybox, modules, tests and their inputs.
func (m *machine) writeInitrd(tests []test) error {
	f, err := os.Create(m.initrd)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	a := newArchive(w)
	a.Tty("/dev/console", 1)
	a.Copy("/bin/busybox", busybox)
	a.Link("/bin/sh", "busybox")
	a.Text("/init", 0o755, initScript)
	a.Text("/etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n")
	a.Text("/etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n")
	a.Text("/etc/group", 0o644, "root:x:0:\n")
	a.Link("/var/run", "/run")
	for _, d := range []string{"/proc", "/sys", "/dev", "/tmp", "/run", "/root", "/usr/bin", "/usr/sbin", "/sbin"} {
		a.Dir(d)
	}
	if err := m.addModules(a); err != nil {
		return err
	}
	addTests(a, tests)
	for _, s := range m.opt.files {
		host, guest, _ := strings.Cut(s, ":")
		a.Copy(guest, host)
	}
	a.Text("/lbvm/token", 0o644, m.token+"\n")
	a.Text("/lbvm/args", 0o644, lines(m.opt.args))
	a.Text("/lbvm/env", 0o644, lines(append([]string{"LBPROXY_VM=" + m.kernel.release}, m.opt.env...)))
	if err := a.Close(); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// addModules adds the kernel modules and the order to load them in.
func (m *machine) addModules(a *archive) error {
	files, err := m.kernel.modules(append(defaultModules[:len(defaultModules):len(defaultModules)], m.opt.modules...))
	if err != nil {
		return err
	}
	var order []string
	for _, f := range files {
		guest := path.Join("/lib/modules", filepath.Base(f))
		a.Copy(guest, f)
		order = append(order, guest)
	}
	a.Text("/lbvm/modules", 0o644, lines(order))
	return nil
}

// addTests adds each binary in a directory of its own, where it will run with
// its testdata beside it, as under go test.
func addTests(a *archive, tests []test) {
	var list []string
	for i, t := range tests {
		dir := fmt.Sprintf("/tests/%d", i)
		a.Copy(dir+"/run.test", t.binary)
		if t.testdata != "" {
			a.Copy(dir+"/testdata", t.testdata)
		}
		list = append(list, dir+" "+t.name)
	}
	a.Text("/lbvm/tests", 0o644, lines(list))
}

// lines ends every string with a newline.
func lines(ss []string) string {
	var b strings.Builder
	for _, s := range ss {
		b.WriteString(s + "\n")
	}
	return b.String()
}
