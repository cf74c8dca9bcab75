package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What this program does instead of testing.
const (
	envAbandon = "LBPROXY_LAB_TEST_ABANDON"
	envCovered = "LBPROXY_LAB_TEST_COVERED"
)

func TestMain(m *testing.M) {
	Main()
	if os.Getenv(envAbandon) != "" {
		abandon()
		os.Exit(0)
	}
	if os.Getenv(envCovered) != "" {
		if err := covered(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func newLab(t *testing.T, opts Options) *Lab {
	t.Helper()
	l, err := New(opts)
	if err != nil {
		t.Fatalf("New (needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return l
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func serve(t *testing.T, h *Host, addr netip.AddrPort, protos ...string) {
	t.Helper()
	for _, proto := range protos {
		if err := h.Serve(testContext(t), proto, addr); err != nil {
			t.Fatal(err)
		}
	}
}

// wantOK checks everything a Result says about an untranslated exchange.
func wantOK(t *testing.T, what string, to netip.AddrPort, server string, got Result) {
	t.Helper()
	want := Result{Kind: OK, Backend: server, ServerLocal: to, Peer: to,
		Local: got.Local, Seen: got.Seen, Took: got.Took}
	if got != want {
		t.Errorf("%s: got %+v, want %+v", what, got, want)
	}
	bound := got.Local.Addr().IsValid() && !got.Local.Addr().IsUnspecified()
	if bound && got.Local != got.Seen || got.Local.Port() != got.Seen.Port() {
		t.Errorf("%s: the server saw %s, the client is %s", what, got.Seen, got.Local)
	}
}

func TestEveryHostReachesEveryAddress(t *testing.T) {
	l, ctx := newLab(t, Options{}), testContext(t)
	for _, h := range l.Hosts() {
		serve(t, h, AnyAddr(7000), TCP, UDP)
	}
	for _, client := range l.Hosts() {
		for _, server := range l.Hosts() {
			addrs := server.Addrs()
			if server.Name == Node {
				addrs = append(addrs, NodeSecond4, NodeSecond6)
			}
			for _, a := range addrs {
				to := netip.AddrPortFrom(a, 7000)
				for _, req := range []Request{
					{Proto: TCP}, {Proto: UDP}, {Proto: UDP, Connected: true},
				} {
					req.To = to
					what := fmt.Sprintf("%s to %s %s/%s connected=%t", client.Name, server.Name, to, req.Proto, req.Connected)
					got := client.Dial(ctx, req)
					wantOK(t, what, to, server.Name, got)
					if want := client.Addrs(); client != server && got.Seen.Addr() != want[0] && got.Seen.Addr() != want[1] {
						t.Errorf("%s: source %s, want one of %s", what, got.Seen, want)
					}
				}
			}
		}
	}
}

func TestMappedAndBoundSockets(t *testing.T) {
	l, ctx := newLab(t, Options{Name: "mapped"}), testContext(t)
	client, server := l.Host("client1"), l.Host("backend1")
	to := netip.AddrPortFrom(server.Addr4, 7000)
	serve(t, server, to, TCP, UDP)
	for i, req := range []Request{
		{Proto: TCP, MappedV6: true},
		{Proto: UDP, MappedV6: true},
		{Proto: UDP, MappedV6: true, Connected: true},
		{Proto: TCP, From: netip.AddrPortFrom(client.Addr4, 4100)},
		{Proto: UDP, From: AnyAddr(4101)},
		{Proto: TCP, From: netip.AddrPortFrom(netip.Addr{}, 4102)},
		{Proto: TCP, Payload: []byte("payload")},
		{Proto: UDP, Payload: bytes.Repeat([]byte("fragments"), 3000)},
	} {
		req.To = to
		got := client.Dial(ctx, req)
		wantOK(t, fmt.Sprintf("request %d", i), to, server.Name, got)
		if port := req.From.Port(); port != 0 && got.Seen.Port() != port {
			t.Errorf("request %d: source port %d, want %d", i, got.Seen.Port(), port)
		}
	}
}

func TestFailuresAreClassified(t *testing.T) {
	l, ctx := newLab(t, Options{Name: "fail"}), testContext(t)
	client := l.Host("client1")
	for _, tc := range []struct {
		name string
		req  Request
		want Kind
	}{
		{"TCP closed port v4", Request{Proto: TCP, To: netip.AddrPortFrom(l.Host("backend1").Addr4, 1)}, Refused},
		{"TCP closed port v6", Request{Proto: TCP, To: netip.AddrPortFrom(l.Host("backend1").Addr6, 1)}, Refused},
		{"connected UDP closed port", Request{Proto: UDP, Connected: true, To: netip.AddrPortFrom(l.Host("backend1").Addr4, 1)}, Refused},
		{"unconnected UDP closed port", Request{Proto: UDP, To: netip.AddrPortFrom(l.Host("backend1").Addr6, 1)}, Timeout},
		{"VIP without a load balancer", Request{Proto: TCP, To: netip.MustParseAddrPort("10.96.0.1:80")}, Timeout},
		{"VIP without a load balancer v6", Request{Proto: TCP, To: netip.MustParseAddrPort("[fd00:10:96::1]:80")}, Timeout},
		{"wrong source", Request{Proto: TCP, To: netip.AddrPortFrom(NodeAddr4, 1), From: netip.MustParseAddrPort("9.9.9.9:0")}, Failed},
		{"no destination", Request{Proto: TCP}, Failed},
	} {
		tc.req.Timeout = 200 * time.Millisecond
		if got := client.Dial(ctx, tc.req); got.Kind != tc.want || got.Err == "" {
			t.Errorf("%s: got %+v, want kind %s", tc.name, got, tc.want)
		}
	}
	req := Request{Proto: TCP, To: netip.MustParseAddrPort("203.0.113.1:80"), Timeout: time.Second}
	if got := l.Host(Node2).Dial(ctx, req); got.Kind != Unreachable {
		t.Errorf("from node2, which has no default route: got %+v, want kind %s", got, Unreachable)
	}
}

func TestDialManyStopsAtDeadline(t *testing.T) {
	l := newLab(t, Options{Name: "many"})
	client, server := l.Host("client1"), l.Host("remote1")
	req := Request{Proto: TCP, To: netip.AddrPortFrom(server.Addr6, 7000)}
	serve(t, server, AnyAddr(7000), TCP)
	got, err := client.DialMany(testContext(t), req, 500)
	if err != nil || len(got) != 500 {
		t.Fatalf("got %d results, %v", len(got), err)
	}
	for _, r := range got[:10] {
		wantOK(t, "DialMany", req.To, server.Name, r)
	}
	req = Request{Proto: TCP, To: netip.MustParseAddrPort("10.96.0.1:80"), Timeout: 50 * time.Millisecond}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if got, err = client.DialMany(ctx, req, 1000); err == nil || len(got) == 0 || len(got) > 5 {
		t.Errorf("got %d results, the last %+v, and error %v, want 1 to 5 and an error", len(got), got[len(got)-1:], err)
	}
}

func TestHeldConnections(t *testing.T) {
	l, ctx := newLab(t, Options{Name: "held"}), testContext(t)
	client, server := l.Host("client2"), l.Host("remote1")
	serve(t, server, AnyAddr(7000), TCP, UDP)
	for i, a := range server.Addrs() {
		to := netip.AddrPortFrom(a, 7000)
		c, res := client.Open(ctx, Request{Proto: TCP, To: to})
		if wantOK(t, "open", to, server.Name, res); c == nil {
			continue
		}
		for _, n := range []int{1, 1000, 20 << 20} {
			if err := c.Bulk(ctx, n); err != nil {
				t.Errorf("%s: %d bytes: %v", to, n, err)
			}
		}
		if err := c.Ping(ctx); err != nil {
			t.Error(err)
		}
		if err := c.Close(ctx, []string{"fin", "rst"}[i]); err != nil {
			t.Error(err)
		}
		if err := c.Ping(ctx); err == nil {
			t.Error("ping on a closed connection succeeded")
		}
		u, res := client.Open(ctx, Request{Proto: UDP, To: to})
		if wantOK(t, "open UDP", to, server.Name, res); u == nil {
			continue
		}
		if err := u.Ping(ctx); err != nil {
			t.Error(err)
		}
	}
	u, err := client.OpenUDP(ctx, Request{To: netip.AddrPortFrom(server.Addr4, 0)})
	if err != nil {
		t.Fatal(err)
	}
	first := u.Exchange(ctx, netip.AddrPortFrom(server.Addr4, 7000), nil)
	second := u.Exchange(ctx, netip.AddrPortFrom(server.Addr4, 7000), []byte("again"))
	if first.Kind != OK || second.Kind != OK || first.Seen != second.Seen {
		t.Errorf("one socket, got %+v and %+v", first, second)
	}
	if err := u.Close(ctx); err != nil {
		t.Error(err)
	}
}

func TestKilledHelperResetsItsPeers(t *testing.T) {
	l, ctx := newLab(t, Options{Name: "kill"}), testContext(t)
	client, server := l.Host("client1"), l.Host("backend1")
	to := netip.AddrPortFrom(server.Addr4, 7000)
	serve(t, server, to, TCP)
	c, res := client.Open(ctx, Request{Proto: TCP, To: to})
	if wantOK(t, "open", to, server.Name, res); c == nil {
		return
	}
	server.Kill()
	var op *OpError
	if err := c.Ping(ctx); !errors.As(err, &op) || op.Kind != Failed {
		t.Errorf("ping a dead server: got %v, want kind %s", err, Failed)
	}
	if err := server.Serve(ctx, TCP, to); !errors.Is(err, errHelperGone) {
		t.Errorf("dead helper: got %v, want %v", err, errHelperGone)
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	serve(t, server, to, TCP)
	wantOK(t, "after restart", to, server.Name, client.Dial(ctx, Request{Proto: TCP, To: to}))
	if err := server.StopServe(ctx, TCP, to); err != nil {
		t.Fatal(err)
	}
	if got := client.Dial(ctx, Request{Proto: TCP, To: to}); got.Kind != Refused {
		t.Errorf("after StopServe: got %+v, want kind %s", got, Refused)
	}
}

func TestCommandsRunInsideTheHost(t *testing.T) {
	l, ctx := newLab(t, Options{Name: "cmd"}), testContext(t)
	for name, cgroup := range map[string]string{"client1": "hooked", Node: "hooked", "client2": "other", Outside: "other", "remote1": "other"} {
		h := l.Host(name)
		var out bytes.Buffer
		cmd := h.Command(ctx, "sh", "-c", "cat /proc/self/cgroup; readlink /proc/self/ns/net; test -d "+l.BPFFS()+" && stat -f -c %T "+l.BPFFS())
		cmd.Stdout, cmd.Stderr = &out, os.Stderr
		if err := h.Start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		var inside string
		if err := h.Do(func() (err error) {
			inside, err = os.Readlink("/proc/thread-self/ns/net")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"0::/" + l.Name() + "/" + cgroup + "\n", inside, "bpf"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: got %q, want it to contain %q", name, out.String(), want)
			}
		}
	}
}

func TestPodsComeAndGo(t *testing.T) {
	l, ctx := newLab(t, Options{Name: "pods", Pods: []PodSpec{{Name: "client1"}}}), testContext(t)
	for range 3 {
		h, err := l.AddPod(PodSpec{Name: "extra", MTU: 1400})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.SetMTU(9000); err != nil {
			t.Error(err)
		}
		if want := netip.MustParseAddr("10.244.1.3"); h.Addr4 != want || h.Device() != "v-extra" {
			t.Errorf("got %s on %s, want %s on v-extra", h.Addr4, h.Device(), want)
		}
		to := netip.AddrPortFrom(h.Addr6, 7000)
		serve(t, h, AnyAddr(7000), TCP)
		wantOK(t, "extra", to, "extra", l.Host("client1").Dial(ctx, Request{Proto: TCP, To: to}))
		if err := l.RemoveHost("extra"); err != nil {
			t.Fatal(err)
		}
	}
	for _, spec := range []PodSpec{{Name: "client1"}, {Name: "Bad"}, {Name: "fabric"}, {Name: "p", Node: "client1"}} {
		if _, err := l.AddPod(spec); err == nil {
			t.Errorf("AddPod(%+v) succeeded", spec)
		}
	}
	if err := l.RemoveHost(Node); err == nil {
		t.Error("the node could be removed")
	}
}

func TestHelperRefusesEveryOtherNamespace(t *testing.T) {
	for _, id := range []string{"", "NS(4:1)"} {
		t.Setenv(envNetNS, id)
		h := &helper{}
		for _, v := range []verb{verbDial, verbOpen, verbOpenUDP, verbPing, verbBulk, verbExchange} {
			if r := h.handle(call{Verb: v, N: 1}); r.Err != errRootNS.Error() {
				t.Errorf("%s in namespace %q: got error %q, want %q", v, id, r.Err, errRootNS)
			}
		}
	}
}

// traces are everything on the machine that carries a lab's name.
func traces(t *testing.T, name string) []string {
	t.Helper()
	mount, err := cgroup2Mount()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, dir := range []string{mount, netnsDir, os.TempDir()} {
		m, _ := filepath.Glob(filepath.Join(dir, name+"*"))
		found = append(found, m...)
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, name) {
			found = append(found, line)
		}
	}
	return found
}

func TestTwoLabsAndCloseLeavesNothing(t *testing.T) {
	ctx := testContext(t)
	a, b := newLab(t, Options{Name: "twin"}), newLab(t, Options{Name: "twin"})
	to := netip.AddrPortFrom(a.Host("backend1").Addr4, 7000)
	serve(t, a.Host("backend1"), AnyAddr(7000), TCP)
	wantOK(t, "lab a", to, "backend1", a.Host("client1").Dial(ctx, Request{Proto: TCP, To: to}))
	if got := b.Host("client1").Dial(ctx, Request{Proto: TCP, To: to}); got.Kind != Refused {
		t.Errorf("lab b sees lab a: %+v", got)
	}
	sleep := a.Host(Node).Command(ctx, "sleep", "1000")
	if err := a.Host(Node).Start(sleep); err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, h := range a.Hosts() {
		pids = append(pids, h.remote.cmd.Process.Pid)
	}
	if err := os.MkdirAll(filepath.Join(a.CgroupRoot(), "deep", "er"), 0o755); err != nil {
		t.Fatal(err)
	}
	if len(traces(t, a.Name())) < 2*len(a.Hosts()) {
		t.Errorf("traces of a running lab: %q", traces(t, a.Name()))
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if err := sleep.Wait(); err == nil {
		t.Error("sleep ended well, want it killed")
	}
	if found := traces(t, a.Name()); len(found) > 0 {
		t.Errorf("Close left %q", found)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("helper %d: %v, want it gone", pid, err)
		}
	}
	serve(t, b.Host("backend1"), AnyAddr(7000), TCP)
	wantOK(t, "lab b", to, "backend1", b.Host("client1").Dial(ctx, Request{Proto: TCP, To: to}))
}

func TestNewSweepsLabsOfDeadProcesses(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envAbandon+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	name := strings.TrimSpace(string(out))
	if err == nil || !strings.HasPrefix(name, namePrefix) {
		t.Fatalf("abandon: got lab %q and %v, want a lab and a killed process", name, err)
	}
	newLab(t, Options{Name: "sweeper"})
	if found := traces(t, name); len(found) > 0 {
		t.Errorf("New left %q", found)
	}
}

// abandon makes a lab and dies the hard way.
func abandon() {
	l, err := New(Options{Name: "abandoned"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	fmt.Println(l.Name())
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

// TestNetnsDirIsNotCovered: what makes the directory of namespaces a mount, as the first
// `ip netns add` since the boot does, may come while a lab is there.
func TestNetnsDirIsNotCovered(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envCovered+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // its mounts are its own
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// covered makes a lab where no other was since the boot, and does what others do.
func covered() error {
	for syscall.Unmount(netnsDir, syscall.MNT_DETACH) == nil { //nolint:revive // until it is no mount
	}
	l, err := New(Options{Name: "covered", Pods: []PodSpec{}})
	if err != nil {
		return err
	}
	if err := shareNetnsDir(); err != nil {
		return errors.Join(err, l.Close())
	}
	return l.Close()
}

func TestBoundToAnAddedAddress(t *testing.T) {
	l, ctx := newLab(t, Options{}), testContext(t)
	server, client := l.Host("backend1"), l.Host(Outside)
	serve(t, server, AnyAddr(7000), TCP, UDP)
	for i, added := range []netip.Addr{netip.MustParseAddr("172.30.9.1"), netip.MustParseAddr("fd00:30:9::1")} {
		if err := client.AddAddr(added); err != nil {
			t.Fatal(err)
		}
		for _, proto := range []string{TCP, UDP} {
			req := Request{Proto: proto, To: netip.AddrPortFrom(server.Addrs()[i], 7000), From: netip.AddrPortFrom(added, 0)}
			if res := client.Dial(ctx, req); res.Kind != OK || res.Seen.Addr() != added {
				t.Errorf("%s from %s: %s %s, the server saw %s", proto, added, res.Kind, res.Err, res.Seen)
			}
		}
	}
}

func TestExchangeOnAConnectedSocket(t *testing.T) {
	l, ctx := newLab(t, Options{}), testContext(t)
	server := l.Host("backend1")
	serve(t, server, AnyAddr(7000), UDP)
	c, res := l.Host("client1").Open(ctx, Request{Proto: UDP, To: netip.AddrPortFrom(server.Addr4, 7000)})
	if c == nil {
		t.Fatal(res.Err)
	}
	again := c.Exchange(ctx, nil, 0)
	if again.Kind != OK || again.Seen != res.Seen || again.ServerLocal != res.ServerLocal || again.Peer != res.Peer {
		t.Errorf("the second exchange: %+v, the first: %+v", again, res)
	}
	server.Kill()
	if gone := c.Exchange(ctx, []byte("x"), time.Second); gone.Kind != Refused {
		t.Errorf("without a server: %s %s, want refused", gone.Kind, gone.Err)
	}
}
