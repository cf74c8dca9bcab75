package lab

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	defaultMTU = 1500
	namePrefix = "lbplab-" // of everything a lab leaves visible to others
	firstPod   = 2         // the last byte of the first pod's address
)

var (
	podName  = regexp.MustCompile(`^[a-z][a-z0-9-]{0,12}$`) // "v-" + name is a device name
	labName  = regexp.MustCompile(`^[a-z][a-z0-9]{0,15}$`)
	leftover = regexp.MustCompile(`^` + namePrefix + `[a-z0-9]+-(\d+)-\d+`)
	labCount atomic.Int64
)

// Options describe a lab. The zero value is the default lab.
type Options struct {
	Name string    // 1..16 of a-z0-9, for people; default "lab"
	Pods []PodSpec // nil means DefaultPods
	MTU  int       // of every device, in bytes; default 1500

	// Nodes is how many more machines like node there are, named by [MoreNode], 0..9.
	Nodes int
}

// PodSpec describes one pod.
type PodSpec struct {
	Name         string     // 1..13 of a-z0-9-; its node-side device is "v-"+Name
	Node         string     // Node (the default), Node2 or one of Options.Nodes
	Addr4, Addr6 netip.Addr // default: the node's next free addresses
	MTU          int        // default: Options.MTU
	Unhooked     bool       // in a cgroup that socket hooks at its node's CgroupRoot do not see
}

// DefaultPods are two clients, of which the socket hooks see the first, three
// backends on the node, and one on node2.
func DefaultPods() []PodSpec {
	return []PodSpec{
		{Name: "client1"}, {Name: "client2", Unhooked: true},
		{Name: "backend1"}, {Name: "backend2"}, {Name: "backend3"},
		{Name: "remote1", Node: Node2},
	}
}

// Lab is a running miniature network. Its methods may be called concurrently.
type Lab struct {
	name   string
	mtu    int
	tmp    string
	bpffs  string
	cgroup cgroups

	mu     sync.Mutex
	fabric *space
	hosts  map[string]*Host
	closed bool
}

// New builds a lab and starts its helpers; it needs root. It first removes
// what labs of processes that are gone left behind. On an error nothing stays.
func New(opts Options) (*Lab, error) {
	if opts.Name == "" {
		opts.Name = "lab"
	}
	if !labName.MatchString(opts.Name) {
		return nil, fmt.Errorf("lab name %q: want %s", opts.Name, labName)
	}
	if opts.MTU == 0 {
		opts.MTU = defaultMTU
	}
	if opts.Pods == nil {
		opts.Pods = DefaultPods()
	}
	if err := shareNetnsDir(); err != nil {
		return nil, err
	}
	if err := sweep(); err != nil {
		return nil, fmt.Errorf("leftover labs: %w", err)
	}
	l := &Lab{
		name:  fmt.Sprintf("%s%s-%d-%d", namePrefix, opts.Name, os.Getpid(), labCount.Add(1)),
		mtu:   opts.MTU,
		hosts: map[string]*Host{},
	}
	if err := l.build(opts); err != nil {
		return nil, fmt.Errorf("lab %s: %w", l.name, errors.Join(err, l.Close()))
	}
	return l, nil
}

func (l *Lab) build(opts Options) (err error) {
	if l.cgroup, err = newCgroups(l.name); err != nil {
		return err
	}
	if err := l.mountBPFFS(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.buildFabric(); err != nil {
		return err
	}
	if err := l.buildNodes(l.mtu); err != nil {
		return err
	}
	if err := l.buildMore(opts.Nodes); err != nil {
		return err
	}
	for _, h := range l.hosts {
		if err := h.Restart(); err != nil {
			return err
		}
	}
	for _, spec := range opts.Pods {
		if _, err := l.addPod(spec); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) mountBPFFS() error {
	l.tmp = filepath.Join(os.TempDir(), l.name)
	l.bpffs = filepath.Join(l.tmp, "bpf")
	if err := os.MkdirAll(l.bpffs, 0o700); err != nil {
		return fmt.Errorf("bpffs: %w", err)
	}
	if err := unix.Mount("bpf", l.bpffs, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs on %s: %w", l.bpffs, err)
	}
	return nil
}

// Name is unique on the machine and prefixes the names of the lab's namespaces.
func (l *Lab) Name() string { return l.name }

// CgroupRoot is the cgroup v2 directory that holds the processes on the node;
// lbproxy attaches its socket hooks here.
func (l *Lab) CgroupRoot() string { return l.cgroup.hooked.Name() }

// BPFFS is the lab's own bpffs mount.
func (l *Lab) BPFFS() string { return l.bpffs }

// Dir is a temporary directory that Close removes.
func (l *Lab) Dir() string { return l.tmp }

// Host is the host of that name, or nil.
func (l *Lab) Host(name string) *Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hosts[name]
}

// Hosts are all hosts, sorted by name.
func (l *Lab) Hosts() []*Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	hosts := make([]*Host, 0, len(l.hosts))
	for _, name := range slices.Sorted(maps.Keys(l.hosts)) {
		hosts = append(hosts, l.hosts[name])
	}
	return hosts
}

// AddPod connects one more pod to its node and starts its helper.
func (l *Lab) AddPod(spec PodSpec) (*Host, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addPod(spec)
}

func (l *Lab) addPod(spec PodSpec) (*Host, error) {
	if spec.Node == "" {
		spec.Node = Node
	}
	node := l.hosts[spec.Node]
	switch {
	case l.closed:
		return nil, errors.New("the lab is closed")
	case !podName.MatchString(spec.Name):
		return nil, fmt.Errorf("pod name %q: want %s", spec.Name, podName)
	case l.hosts[spec.Name] != nil || spec.Name == "fabric":
		return nil, fmt.Errorf("pod %s: the name is taken", spec.Name)
	case node == nil || !node.pods4.IsValid():
		return nil, fmt.Errorf("pod %s: %q is not a node", spec.Name, spec.Node)
	}
	h := &Host{Name: spec.Name, pod: true, Addr4: spec.Addr4, Addr6: spec.Addr6}
	h.cgroup = node.cgroup
	if spec.Unhooked {
		h.cgroup = l.cgroup.other
	}
	l.address(h, node)
	mtu := spec.MTU
	if mtu == 0 {
		mtu = l.mtu
	}
	err := l.buildPod(h, node, mtu)
	if err == nil {
		err = h.Restart()
	}
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", spec.Name, errors.Join(err, l.drop(h)))
	}
	return h, nil
}

// address fills in the lowest addresses of node's pod ranges that no host has,
// the same host part in both families where it can.
func (l *Lab) address(h, node *Host) {
	used := map[netip.Addr]bool{}
	for _, other := range l.hosts {
		used[other.Addr4], used[other.Addr6] = true, true
	}
	next := func(p netip.Prefix) netip.Addr {
		a := p.Addr()
		for n := 0; n < firstPod || used[a]; n++ {
			a = a.Next()
		}
		return a
	}
	if !h.Addr4.IsValid() {
		h.Addr4 = next(node.pods4)
	}
	if !h.Addr6.IsValid() {
		h.Addr6 = next(node.pods6)
	}
}

// RemoveHost removes a pod with everything that runs in it.
func (l *Lab) RemoveHost(name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.hosts[name]
	if h == nil {
		return fmt.Errorf("host %s: no such host", name)
	}
	if !h.pod {
		return fmt.Errorf("host %s: only pods can be removed", name)
	}
	return l.drop(h)
}

// drop also takes hosts that were never finished.
func (l *Lab) drop(h *Host) error {
	delete(l.hosts, h.Name)
	if h.space == nil {
		return nil
	}
	h.killAll()
	err := h.unlink()
	return errors.Join(err, h.space.remove())
}

// Close kills every process of the lab and removes all of it: cgroups,
// namespaces, the bpffs mount and files. Closing twice is fine.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	for _, h := range l.hosts {
		h.killAll()
	}
	errs := []error{l.cgroup.remove()}
	for _, h := range l.hosts {
		errs = append(errs, h.space.remove())
	}
	if l.fabric != nil {
		errs = append(errs, l.fabric.remove())
	}
	return errors.Join(append(errs, removeDir(l.tmp))...)
}

// removeDir removes a lab's temporary directory, first what is mounted in it:
// pinned objects must go with the mount, not one by one.
func removeDir(dir string) error {
	if dir == "" {
		return nil
	}
	bpffs := filepath.Join(dir, "bpf")
	err := unix.Unmount(bpffs, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", bpffs, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

// sweep removes what labs of processes that no longer exist left behind.
func sweep() error {
	mount, err := cgroup2Mount()
	if err != nil {
		return err
	}
	var errs []error
	for _, place := range []struct {
		dir    string
		remove func(path string) error
	}{
		{mount, removeCgroup},
		{netnsDir, func(path string) error {
			err := removeNetns(filepath.Base(path))
			if errors.Is(err, unix.EBUSY) { // see shareNetnsDir: it stays until the next boot
				return nil
			}
			return err
		}},
		{os.TempDir(), removeDir},
	} {
		entries, err := os.ReadDir(place.dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("list %s: %w", place.dir, err))
		}
		for _, e := range entries {
			if m := leftover.FindStringSubmatch(e.Name()); m != nil && !alive(m[1]) {
				errs = append(errs, place.remove(filepath.Join(place.dir, e.Name())))
			}
		}
	}
	return errors.Join(errs...)
}

func alive(pid string) bool {
	n, err := strconv.Atoi(pid)
	return err != nil || !errors.Is(unix.Kill(n, 0), unix.ESRCH)
}
