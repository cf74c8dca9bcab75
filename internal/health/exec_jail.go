// SPDX-License-Identifier: Apache-2.0

package health

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// jailName is the program name under which this program runs as the process that becomes
// a script. Whoever else starts it so locks only himself up.
const jailName = "lbproxy-probe-script"

// The descriptors of that process.
const (
	scriptFD  = 3 // the script, open for reading
	troubleFD = 4 // where it says why the script cannot be run
)

// prepared is the first byte of troubleFD if everything but the exec has been done.
const prepared = '+'

// The resources of a script. Processes are counted for its user, wherever they are.
const (
	scriptMemory    = 512 << 20 // bytes of each process
	scriptProcesses = 64
	scriptFiles     = 64
)

// init turns a process with the program's name jailName into a script. Between fork and
// exec of a Go program nothing can be done, so it is done after an exec of its own.
func init() {
	if len(os.Args) < 5 || os.Args[0] != jailName {
		return
	}
	runtime.LockOSThread() // what a thread gives up, exec hands on
	runtime.GOMAXPROCS(1)  // with few threads, and none begun when resources are limited
	debug.SetGCPercent(-1)
	err := becomeScript(os.Args[1:])
	_, _ = unix.Write(troubleFD, []byte(err.Error())) // nobody is left to be told
	os.Exit(1)
}

// becomeScript gives up everything and runs the script. It returns only on an error. args
// are user, group, seconds of CPU, the script's name, and the paths to hide.
func becomeScript(args []string) error {
	var ids [3]int
	for i := range ids {
		n, err := strconv.Atoi(args[i])
		if err != nil || n <= 0 {
			return fmt.Errorf("%q: want a number above 0", args[i])
		}
		ids[i] = n
	}
	uid, gid, seconds, name := ids[0], ids[1], ids[2], args[3]
	if err := hide(args[4:]); err != nil {
		return err
	}
	// When memory is short, the script goes first.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
		return err
	}
	unix.Umask(0o077)
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.CloseRange(troubleFD, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return os.NewSyscallError("close_range", err)
	}
	call, err := prepare(name)
	if err != nil {
		return err
	}
	if err := renounce(uid, gid); err != nil {
		return err
	}
	if err := limit(uint64(seconds)); err != nil {
		return err
	}
	if _, err := unix.Write(troubleFD, []byte{prepared}); err != nil {
		return err
	}
	errno := call()
	switch errno {
	case unix.EACCES:
		return fmt.Errorf("user %d and group %d cannot read and execute it", uid, gid)
	case unix.ENOENT:
		return errors.New("its interpreter is not there")
	case unix.EAGAIN:
		return fmt.Errorf("user %d has more than %d processes", uid, scriptProcesses)
	}
	return os.NewSyscallError("execveat", errno)
}

// hide gives the process a view of the file system of its own: a /proc that shows only the
// script's processes, and nothing in the paths.
func hide(paths []string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("own mounts: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", "/proc", "proc", flags, ""); err != nil {
		return fmt.Errorf("own /proc: %w", err)
	}
	for _, path := range paths {
		err := unix.Mount("none", path, "tmpfs", flags|unix.MS_RDONLY, "size=4k,mode=000")
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			return fmt.Errorf("hide %s: %w", path, err)
		}
	}
	return nil
}

// renounce gives up every privilege of the calling thread, for good.
func renounce(uid, gid int) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	for c := uintptr(0); ; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && c > unix.CAP_SETPCAP {
			break // the kernel has no more
		}
		if err != nil {
			return os.NewSyscallError("prctl", err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	if err := syscall.Setgroups(nil); err != nil {
		return os.NewSyscallError("setgroups", err)
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return os.NewSyscallError("setresgid", err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return os.NewSyscallError("setresuid", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	// A change of the user has cleared it.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	return nil
}

// limit limits resources. The process can hardly do anything after it but exec.
func limit(seconds uint64) error {
	for _, l := range []struct {
		resource int
		value    uint64
	}{
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_FSIZE, 0},
		{unix.RLIMIT_MEMLOCK, 0},
		{unix.RLIMIT_MSGQUEUE, 0},
		{unix.RLIMIT_NOFILE, scriptFiles},
		{unix.RLIMIT_CPU, seconds},
		{unix.RLIMIT_NPROC, scriptProcesses},
		{unix.RLIMIT_AS, scriptMemory},
	} {
		if err := unix.Prlimit(0, l.resource, &unix.Rlimit{Cur: l.value, Max: l.value}, nil); err != nil {
			return os.NewSyscallError("prlimit", err)
		}
	}
	return nil
}

// prepare returns a call that executes the open script, with its name as the only
// argument. An interpreter opens the script once more, by its descriptor, which is why that
// stays open.
func prepare(name string) (func() syscall.Errno, error) {
	argument, err := unix.BytePtrFromString(name)
	if err != nil {
		return nil, err
	}
	args := []*byte{argument, nil}
	env, err := syscall.SlicePtrFromStrings(os.Environ())
	if err != nil {
		return nil, err
	}
	empty := new(byte)
	if _, err := unix.FcntlInt(scriptFD, unix.F_SETFD, 0); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return func() syscall.Errno {
		_, _, errno := unix.RawSyscall6(unix.SYS_EXECVEAT, scriptFD, uintptr(unsafe.Pointer(empty)),
			uintptr(unsafe.Pointer(&args[0])), uintptr(unsafe.Pointer(&env[0])), unix.AT_EMPTY_PATH, 0)
		return errno
	}, nil
}
