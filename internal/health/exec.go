// SPDX-License-Identifier: Apache-2.0

package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// The bounds of what a script writes: bytes that are kept, and bytes after which it is
// killed, as it would make the agent read without end.
const (
	outputKept  = 4 << 10
	outputLimit = 1 << 20
)

// scriptPath is the PATH of scripts.
const scriptPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// runScript probes by a script: exit status 0 is healthy. done is called at the latest when
// the timeout is over; what the script has started is killed by then, and waited for after
// that. docs/SECURITY.md says what holds the script, exec_jail.go does it.
func (p *prober) runScript(ctx context.Context, t Target, done func(error)) {
	file, err := openScript(p.o.ScriptDir, t.Probe.Script)
	if err != nil {
		done(fmt.Errorf("%w: script %s: %w", ErrCannot, t.Probe.Script, err))
		return
	}
	defer file.Close()
	// The kernel kills the script if this thread ends: it must not end before.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	s := &script{done: done}
	s.run(ctx, p.command(t, file), file)
}

// openScript opens a script that nobody but root can have written.
func openScript(dir, name string) (*os.File, error) {
	if dir == "" {
		return nil, errors.New("no directory of scripts is configured")
	}
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("the directory of scripts %s is no absolute path", dir)
	}
	if err := lb.CheckScript(name); err != nil {
		return nil, err
	}
	return openBeneath(dir, name)
}

// CheckScripts tells which files in a directory exec probes can run, sorted, and of the others
// why not. The error is about the directory: then they can run none.
func CheckScripts(dir string) (fit []string, unfit []error, err error) {
	if !filepath.IsAbs(dir) {
		return nil, nil, fmt.Errorf("%s is no absolute path", dir)
	}
	fd, err := openDir(filepath.Clean(dir))
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(fd)
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, f := range files {
		script, err := openScript(dir, f.Name())
		if err != nil {
			unfit = append(unfit, fmt.Errorf("%s: %w", lb.Brief(f.Name()), err))
			continue
		}
		script.Close()
		fit = append(fit, f.Name())
	}
	return fit, unfit, nil
}

// openBeneath opens a regular file in the directory, whatever name is.
func openBeneath(dir, name string) (*os.File, error) {
	parent, err := openDir(filepath.Clean(dir))
	if err != nil {
		return nil, err
	}
	defer unix.Close(parent)
	fd, err := unix.Openat2(parent, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC, // no driver of a device notices
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, errors.New("is a symbolic link")
	case errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("is not in %s", dir)
	case err != nil:
		return nil, os.NewSyscallError("openat2", err)
	}
	if err := checkOwned(fd, unix.S_IFREG); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openDir opens the directory of scripts. Nobody but root may be able to change it, or to
// put another one in its place. dir is clean and absolute.
func openDir(dir string) (int, error) {
	path, rest := "/", strings.TrimPrefix(dir, "/")
	for {
		fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_NO_SYMLINKS,
		})
		if errors.Is(err, unix.ELOOP) {
			err = errors.New("a symbolic link")
		}
		if err == nil {
			if err = checkOwned(fd, unix.S_IFDIR); err != nil {
				unix.Close(fd)
			}
		}
		if err != nil {
			return 0, fmt.Errorf("directory %s: %w", path, err)
		}
		if rest == "" {
			return fd, nil
		}
		unix.Close(fd)
		var next string
		next, rest, _ = strings.Cut(rest, "/")
		path = filepath.Join(path, next)
	}
}

// checkOwned returns an error unless a descriptor is of the kind and only root can change
// it. In a directory with the sticky bit, others cannot replace what is root's.
func checkOwned(fd int, kind uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	sticky := kind == unix.S_IFDIR && st.Mode&unix.S_ISVTX != 0
	switch {
	case st.Mode&unix.S_IFMT != kind:
		return errors.New("is no regular file")
	case st.Uid != 0:
		return fmt.Errorf("belongs to user %d, not to root", st.Uid)
	case st.Mode&0o022 != 0 && !sticky:
		return fmt.Errorf("can be written by others than root (mode %04o)", st.Mode&0o7777)
	case kind == unix.S_IFREG && st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0:
		return fmt.Errorf("is set-user-ID or set-group-ID (mode %04o)", st.Mode&0o7777)
	case kind == unix.S_IFREG && st.Mode&0o111 == 0:
		return fmt.Errorf("cannot be executed (mode %04o)", st.Mode&0o7777)
	}
	return nil
}

// command returns the process that becomes the script, in namespaces of its own.
func (p *prober) command(t Target, file *os.File) *exec.Cmd {
	obj := t.Service.Object
	return &exec.Cmd{
		Path: "/proc/self/exe",
		Args: append([]string{jailName, strconv.Itoa(int(p.o.ScriptUser)), strconv.Itoa(int(p.o.ScriptGroup)),
			strconv.Itoa(int(t.Probe.Timeout/time.Second) + 1), file.Name()}, p.o.ScriptHide...),
		Env: []string{
			"PATH=" + scriptPath,
			"LBPROXY_NAMESPACE=" + obj.Namespace,
			"LBPROXY_SERVICE=" + obj.Name,
			"LBPROXY_ENDPOINT=" + t.Addr.String(),
			"LBPROXY_ADDRESS=" + t.Addr.Addr().String(),
			"LBPROXY_PORT=" + strconv.Itoa(int(t.Addr.Port())),
		},
		Dir: "/",
		SysProcAttr: &syscall.SysProcAttr{
			Setsid:     true,
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC,
			Pdeathsig:  syscall.SIGKILL,
		},
	}
}

// script is one run of a script.
type script struct {
	output output
	done   func(error)
	once   sync.Once
}

func (s *script) end(err error) { s.once.Do(func() { s.done(err) }) }

// run runs cmd, which becomes the script in file.
func (s *script) run(ctx context.Context, cmd *exec.Cmd, file *os.File) {
	trouble, told, err := os.Pipe()
	if err != nil {
		s.end(blame(err))
		return
	}
	defer trouble.Close()
	s.output.full = make(chan struct{})
	cmd.ExtraFiles = []*os.File{file, told} // descriptors 3 and 4
	cmd.Stdout, cmd.Stderr = &s.output, &s.output
	err = cmd.Start()
	told.Close()
	if err != nil {
		s.end(fmt.Errorf("%w: %w", ErrCannot, err))
		return
	}
	exited := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() { s.watch(ctx, cmd, exited) })
	text, _ := io.ReadAll(io.LimitReader(trouble, outputKept)) // ends when the script begins, or has died
	err = cmd.Wait()
	close(exited)
	watch.Wait()
	switch text, ready := strings.CutPrefix(string(text), string(prepared)); {
	case text != "":
		s.end(fmt.Errorf("%w: script %s: %s", ErrCannot, file.Name(), text))
	case !ready:
		s.end(fmt.Errorf("%w: script %s was not begun: %s", ErrCannot, file.Name(), s.output.first()))
	default:
		s.end(s.verdict(err))
	}
}

// watch kills the script, and with it all that is in its namespace of processes, when its
// time is over or it writes too much.
func (s *script) watch(ctx context.Context, cmd *exec.Cmd, exited <-chan struct{}) {
	select {
	case <-exited:
		return
	case <-s.output.full:
		_ = cmd.Process.Kill() // it fails if it has exited
		s.end(fmt.Errorf("the script wrote more than %d bytes", outputLimit))
	case <-ctx.Done():
		_ = cmd.Process.Kill() // as above
		s.end(ctx.Err())
	}
}

// verdict tells of how the script ended.
func (s *script) verdict(err error) error {
	var exit *exec.ExitError
	if err == nil {
		return nil
	}
	if !errors.As(err, &exit) {
		return fmt.Errorf("%w: %w", ErrCannot, err)
	}
	reason := fmt.Sprintf("exit status %d", exit.ExitCode())
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		reason = "killed by " + unix.SignalName(status.Signal())
	}
	if text := s.output.first(); text != "" {
		reason += ": " + strconv.Quote(lb.Shorten(text, 200))
	}
	return errors.New(reason)
}

// output keeps the beginning of what a script writes.
type output struct {
	full chan struct{} // closed after outputLimit bytes

	mu   sync.Mutex
	kept []byte
	all  int
}

// Write keeps what there is room for, and discards the rest.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all <= outputLimit && o.all+len(p) > outputLimit {
		close(o.full)
	}
	o.all += len(p)
	o.kept = append(o.kept, p[:min(len(p), outputKept-len(o.kept))]...)
	return len(p), nil
}

// first returns the first line that is not empty.
func (o *output) first() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	line, _, _ := bytes.Cut(bytes.TrimSpace(o.kept), []byte("\n"))
	return string(bytes.TrimSpace(line))
}
