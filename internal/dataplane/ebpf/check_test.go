// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// fakeProbe is a kernel that lacks one feature: a helper, a map type or a name.
type fakeProbe struct {
	lacks any
	err   error // the answer for it; all others are there
}

func (p fakeProbe) ask(feature any) error {
	if feature == p.lacks {
		return p.err
	}
	return nil
}

func (p fakeProbe) helper(_ ebpf.ProgramType, fn asm.BuiltinFunc) error { return p.ask(fn) }
func (p fakeProbe) mapType(t ebpf.MapType) error                        { return p.ask(t) }
func (p fakeProbe) btf() error                                          { return p.ask("btf") }
func (p fakeProbe) tcx() error                                          { return p.ask("tcx") }
func (p fakeProbe) iterators() error                                    { return p.ask("iterators") }

// findings returns what Check says of a kernel, by name.
func findings(t *testing.T, p probe) map[string]Finding {
	t.Helper()
	byName := map[string]Finding{}
	for _, f := range checkWith(Options{CgroupRoot: t.TempDir(), BPFFS: t.TempDir()}, p) {
		if _, twice := byName[f.Name]; twice {
			t.Errorf("two findings are named %q", f.Name)
		}
		byName[f.Name] = f
	}
	return byName
}

var asked = []struct {
	lacks any
	name  string
	level Level
	needs string
}{
	{"btf", "BTF", Fail, "CONFIG_DEBUG_INFO_BTF is needed"},
	{asm.FnSetRetval, "bpf_set_retval", Fail, "Linux 5.18 is needed"},
	{ebpf.SkStorage, "socket storage", Fail, "Linux 5.2 is needed"},
	{asm.FnSkStorageGet, "storage in socket programs", Fail, "Linux 5.9 is needed"},
	{asm.FnForEachMapElem, "bpf_for_each_map_elem", Fail, "Linux 5.14 is needed"},
	{asm.FnGetNetnsCookie, "namespace cookie", Fail, "Linux 5.7 is needed"},
	{asm.FnKtimeGetCoarseNs, "coarse clock", Fail, "Linux 5.11 is needed"},
	{"tcx", "tcx", Warn, "tcx came with Linux 6.6"}, // clsact does it, too
	{"iterators", "iterators over maps", Warn, "sockets are looked for among the open files"},
}

func TestCheckNamesTheMissingFeature(t *testing.T) {
	whole := findings(t, fakeProbe{})
	for _, tc := range asked {
		t.Run(tc.name, func(t *testing.T) {
			if f := whole[tc.name]; f.Level != OK {
				t.Errorf("the kernel has it: got %+v, want ok", f)
			}
			got := findings(t, fakeProbe{tc.lacks, fmt.Errorf("probe: %w", ebpf.ErrNotSupported)})
			f := got[tc.name]
			if f.Level != tc.level || !strings.Contains(f.Detail, "not in this kernel") || !strings.Contains(f.Detail, tc.needs) {
				t.Errorf("got %+v, want %s and %q", f, tc.level, tc.needs)
			}
			for _, other := range asked {
				if f := got[other.name]; other.name != tc.name && f.Level != OK {
					t.Errorf("without %s: got %+v, want ok", tc.name, f)
				}
			}
		})
	}
	probed := 0
	for _, f := range whole {
		if f.Detail == "available" {
			probed++
		}
	}
	if probed != len(asked) {
		t.Errorf("%d features are probed, %d are tested", probed, len(asked))
	}
}

func TestCheckSaysWhatItCouldNotProbe(t *testing.T) {
	for _, tc := range asked {
		f := findings(t, fakeProbe{tc.lacks, errors.New("operation not permitted")})[tc.name]
		if f.Level != Warn || !strings.Contains(f.Detail, "cannot be probed: operation not permitted") {
			t.Errorf("%s: got %+v, want warn and the cause", tc.name, f)
		}
	}
}

func TestCheckLooksAtFilesystems(t *testing.T) {
	dir := t.TempDir()
	got := map[string]Finding{}
	for _, f := range checkWith(Options{CgroupRoot: dir, BPFFS: filepath.Join(dir, "missing")}, fakeProbe{}) {
		got[f.Name] = f
	}
	if f := got["cgroup v2"]; f.Level != Fail || !strings.Contains(f.Detail, dir) {
		t.Errorf("got %+v, want fail and %s", f, dir)
	}
	if f := got["bpffs"]; f.Level != Fail || !strings.Contains(f.Detail, "mount -t bpf bpf "+dir) {
		t.Errorf("got %+v, want fail and how to mount one", f)
	}
}

func TestCgroupMountIsFound(t *testing.T) {
	const (
		v1     = "cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n"
		hybrid = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n"
		pure   = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
	)
	for _, tc := range []struct{ name, mounts, want, err string }{
		{"unified", "proc /proc proc rw 0 0\n" + pure, "/sys/fs/cgroup", ""},
		{"hybrid", v1 + hybrid, "/sys/fs/cgroup/unified", ""},
		{"v1 only", v1, "", "mount one (mount -t cgroup2 none /sys/fs/cgroup) or name a directory of one with --cgroup-root"},
		{"nothing", "", "", "no cgroup v2 mount"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "mounts")
			if err := os.WriteFile(file, []byte(tc.mounts), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := cgroupMount(file)
			if got != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("got %q, %v; want %q, %q", got, err, tc.want, tc.err)
			}
		})
	}
}
