package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
)

// Host is one machine or pod of a lab.
type Host struct {
	Name         string
	Addr4, Addr6 netip.Addr

	*space
	lab          *Lab
	gateway      *space // holds the other end of eth0
	peer         string // the name of that end
	pods4, pods6 netip.Prefix
	pod          bool
	cgroup       *os.File // of its processes

	mu      sync.Mutex
	remote  *remote // nil while the helper is dead
	started []*exec.Cmd
}

// Addrs are the host's addresses, IPv4 first.
func (h *Host) Addrs() []netip.Addr { return []netip.Addr{h.Addr4, h.Addr6} }

// AddAddr gives the host's eth0 one more address. Routes to it are the caller's
// business: outside is the default gateway of node.
func (h *Host) AddAddr(a netip.Addr) error {
	return h.addAddr(uplink, single(a), netlink.SCOPE_UNIVERSE)
}

// addrFor is the host's address of dst's family.
func (h *Host) addrFor(dst netip.Prefix) netip.Addr {
	if dst.Addr().Is4() {
		return h.Addr4
	}
	return h.Addr6
}

// CgroupRoot is the cgroup v2 directory of the processes of the host; that of a node is
// also that of its pods but those that are unhooked.
func (h *Host) CgroupRoot() string { return h.cgroup.Name() }

// Device is the name of the far end of the host's eth0: "v-"+Name in the node's
// namespace for a pod, a bridge port in the fabric for the others.
func (h *Host) Device() string { return h.peer }

// NetNS is a path to the host's network namespace, which `ip netns` can also
// use by its base name.
func (h *Host) NetNS() string { return filepath.Join(netnsDir, h.nsName) }

// Do runs f on a thread inside the host's network namespace. Goroutines that f
// starts are not inside it. Sockets made by f belong to this process's cgroup.
func (h *Host) Do(f func() error) error { return h.do(f) }

// SetMTU sets the MTU of both ends of the host's eth0, in bytes.
func (h *Host) SetMTU(mtu int) error {
	return errors.Join(h.setMTU(uplink, mtu), h.gateway.setMTU(h.peer, mtu))
}

// Command is a program to be run with Start.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, name, args...)
}

// Start starts cmd in the host's network namespace and cgroup. cmd dies with
// this process and with the lab; the caller still has to Wait for it.
func (h *Host) Start(cmd *exec.Cmd) error {
	if err := h.start(cmd); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.started = append(h.started, cmd)
	return nil
}

func (h *Host) start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.UseCgroupFD = true
	cmd.SysProcAttr.CgroupFD = int(h.cgroup.Fd())
	// The signal follows the death of the thread that forks; onThread gives
	// it back to the runtime, which keeps its threads.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := h.do(cmd.Start); err != nil {
		return fmt.Errorf("host %s: start %s: %w", h.Name, cmd.Path, err)
	}
	return nil
}

// Kill kills the host's helper as kill -9 does, with all sockets it holds.
func (h *Host) Kill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kill()
}

func (h *Host) kill() {
	if h.remote != nil {
		h.remote.kill()
		h.remote = nil
	}
}

// Restart starts a new helper, after killing the old one if there is one.
// It serves nothing yet.
func (h *Host) Restart() error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("host %s: helper: %w", h.Name, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kill()
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), envHelper+"=1", envHost+"="+h.Name, envNetNS+"="+h.ns.UniqueId())
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the lab, which then closes
	if h.remote, err = newRemote(cmd, h.start); err != nil {
		return fmt.Errorf("host %s: helper: %w", h.Name, err)
	}
	return nil
}

// killAll also kills what Start started.
func (h *Host) killAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kill()
	for _, cmd := range h.started {
		_ = cmd.Process.Kill() // an error says that it has ended already
	}
	h.started = nil
}

// unlink removes the veth at once; with the namespace it would go later.
func (h *Host) unlink() error {
	dev, err := h.gateway.link(h.peer)
	if err != nil {
		return err
	}
	if err := h.gateway.nl.LinkDel(dev); err != nil {
		return fmt.Errorf("host %s: delete %s: %w", h.Name, h.peer, err)
	}
	return nil
}
