// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/privilege"
)

// Level is how much a Finding matters.
type Level string

// The levels: as it should be; works with a limit; the dataplane cannot run.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is one thing that was looked at on this node.
type Finding struct {
	Name   string `json:"name"`
	Level  Level  `json:"level"`
	Detail string `json:"detail"`
}

// Check says whether this node can run the dataplane, and with which limits.
// It changes nothing.
func Check(opts Options) []Finding {
	return checkWith(opts, kernelProbe{})
}

// probe asks the kernel for a feature: nil, an error that wraps
// ebpf.ErrNotSupported, or another error. Tests answer for the kernel.
type probe interface {
	helper(ebpf.ProgramType, asm.BuiltinFunc) error
	mapType(ebpf.MapType) error
	btf() error
	tcx() error
	iterators() error // over the elements of maps
}

func checkWith(opts Options, p probe) []Finding {
	fs := []Finding{checkKernel(), checkRoot()}
	opts, err := opts.orDefault()
	if err != nil {
		fs = append(fs, Finding{"cgroup v2", Fail, err.Error()})
	} else {
		fs = append(fs, checkFilesystems(opts)...)
	}
	fs = append(fs, checkFeatures(p)...)
	return append(fs, checkForwarding()...)
}

func checkKernel() Finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Finding{"kernel", Warn, err.Error()}
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return Finding{"kernel", Warn, "release " + release + " cannot be read"}
	}
	if major < 6 || major == 6 && minor < 1 {
		return Finding{"kernel", Warn, "Linux " + release + "; tested from 6.1 on"}
	}
	return Finding{"kernel", OK, "Linux " + release}
}

func checkRoot() Finding {
	if os.Geteuid() != 0 {
		return Finding{"privileges", Fail, "not root: the findings below may be wrong"}
	}
	if err := requirePrivileges(); err != nil {
		return Finding{"privileges", Fail, err.Error()}
	}
	if lacks := lacksForPods(); lacks != "" {
		return Finding{"privileges", Warn, lacks}
	}
	return Finding{"privileges", OK, "root, with " + privilege.Names(slices.Concat(privileges, podPrivileges))}
}

func checkFilesystems(o Options) []Finding {
	cg := Finding{"cgroup v2", OK, o.CgroupRoot}
	if err := requireFS(o.CgroupRoot, unix.CGROUP2_SUPER_MAGIC); err != nil {
		cg = Finding{"cgroup v2", Fail, fmt.Sprintf("%s: %v", o.CgroupRoot, err)}
	}
	bpf := Finding{"bpffs", OK, o.BPFFS}
	if err := requireFS(o.BPFFS, unix.BPF_FS_MAGIC); err != nil {
		bpf = Finding{"bpffs", Fail, fmt.Sprintf("%s: %v (mount -t bpf bpf %s)", o.BPFFS, err, o.BPFFS)}
	}
	return []Finding{cg, bpf}
}

// checkFeatures asks for everything that the programs use and that came after
// the oldest kernels in use.
func checkFeatures(p probe) []Finding {
	var fs []Finding
	for _, f := range []struct {
		name  string
		err   error
		level Level // when it is missing
		means string
	}{
		{"BTF", p.btf(), Fail, "CONFIG_DEBUG_INFO_BTF is needed"},
		{"bpf_set_retval", p.helper(ebpf.CGroupSockAddr, asm.FnSetRetval), Fail, "Linux 5.18 is needed"},
		{"socket storage", p.mapType(ebpf.SkStorage), Fail, "Linux 5.2 is needed"},
		{"storage in socket programs", p.helper(ebpf.CGroupSockAddr, asm.FnSkStorageGet), Fail, "Linux 5.9 is needed"},
		{"bpf_for_each_map_elem", p.helper(ebpf.Syscall, asm.FnForEachMapElem), Fail, "Linux 5.14 is needed"},
		{"namespace cookie", p.helper(ebpf.CGroupSockAddr, asm.FnGetNetnsCookie), Fail, "Linux 5.7 is needed"},
		{"coarse clock", p.helper(ebpf.SchedCLS, asm.FnKtimeGetCoarseNs), Fail, "Linux 5.11 is needed"},
		{"tcx", p.tcx(), Warn, "clsact filters are used instead; tcx came with Linux 6.6"},
		{"iterators over maps", p.iterators(), Warn, "sockets are looked for among the open files of processes (hostPID: true is needed), which the kernel's own have not; " +
			"lockdown, as with Secure Boot, may forbid such iterators"},
	} {
		fs = append(fs, finding(f.name, f.err, f.level, f.means))
	}
	return fs
}

func finding(name string, err error, missing Level, means string) Finding {
	switch {
	case err == nil:
		return Finding{name, OK, "available"}
	case errors.Is(err, ebpf.ErrNotSupported):
		return Finding{name, missing, "not in this kernel: " + means}
	}
	return Finding{name, Warn, fmt.Sprintf("cannot be probed: %v", err)}
}

// checkForwarding looks at what the packet path needs of the node's routing.
func checkForwarding() []Finding {
	var fs []Finding
	for _, c := range []struct{ name, file string }{
		{"IPv4 forwarding", "/proc/sys/net/ipv4/ip_forward"},
		{"IPv6 forwarding", "/proc/sys/net/ipv6/conf/all/forwarding"},
	} {
		b, err := os.ReadFile(c.file)
		switch {
		case err != nil:
			fs = append(fs, Finding{c.name, Warn, err.Error()})
		case strings.TrimSpace(string(b)) != "1":
			fs = append(fs, Finding{c.name, Warn,
				"off: traffic from outside reaches only backends of this node's own network; set " + c.file})
		default:
			fs = append(fs, Finding{c.name, OK, "on"})
		}
	}
	return fs
}

// kernelProbe asks the running kernel.
type kernelProbe struct{}

func (kernelProbe) helper(t ebpf.ProgramType, fn asm.BuiltinFunc) error {
	return features.HaveProgramHelper(t, fn)
}

func (kernelProbe) mapType(t ebpf.MapType) error { return features.HaveMapType(t) }

func (kernelProbe) btf() error {
	_, err := btf.LoadKernelSpec()
	return err
}

func (kernelProbe) iterators() error {
	if socketsByFile() {
		return ebpf.ErrNotSupported
	}
	return nil
}

// tcx asks with a program that the loopback device never gets: the anchor is
// wrong on purpose.
func (kernelProbe) tcx() error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.SchedCLS,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		License:      "GPL",
	})
	if err != nil {
		return err
	}
	defer prog.Close()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: lo.Index,
		Program:   prog,
		Attach:    ebpf.AttachTCXIngress,
		Anchor:    link.AfterProgramByID(^ebpf.ProgramID(0)),
	})
	if err == nil {
		l.Close()
		return nil
	}
	if errors.Is(err, ebpf.ErrNotSupported) {
		return err
	}
	return nil // refused for the anchor: the kernel knows tcx
}
