// SPDX-License-Identifier: Apache-2.0

package live

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/lbproxy/lbproxy/bench/internal/observe"
	"github.com/lbproxy/lbproxy/internal/lab"
)

// A peer is a proxy of connections in user space: another kind of thing than lbproxy, and
// beside it for what its algorithms do.
type peer struct {
	name   string // nginx or haproxy
	host   *lab.Host
	dir    string
	pools  []pool
	cmd    *exec.Cmd
	config string // the file
}

// pool is what one algorithm balances, at a port of its own.
type pool struct {
	algorithm string
	udp       bool
	servers   []poolServer
}

type poolServer struct {
	at     netip.AddrPort
	weight uint16
}

// render writes the configuration of a peer.
func render(name, dir string, pools []pool) string {
	if name == "nginx" {
		return renderNginx(dir, pools)
	}
	return renderHAProxy(dir, pools)
}

// nginxRules are the directives of nginx's algorithms.
var nginxRules = map[string]string{
	"round-robin": "", "least_conn": "least_conn;", "hash": "hash $remote_addr consistent;", "random two": "random two least_conn;",
}

func renderNginx(dir string, pools []pool) string {
	var b strings.Builder
	fmt.Fprintf(&b, `daemon off;
worker_processes 2;
pid %[1]s/nginx.pid;
error_log %[1]s/nginx.err warn;
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
events { worker_connections 8192; }
stream {
	proxy_connect_timeout 200ms;
	proxy_timeout 60s;
`, dir)
	for i, p := range pools {
		fmt.Fprintf(&b, "\tupstream pool%d {\n\t\tzone pool%d 256k;\n", i, i)
		if rule := nginxRules[p.algorithm]; rule != "" {
			fmt.Fprintf(&b, "\t\t%s\n", rule)
		}
		for _, s := range p.servers {
			fmt.Fprintf(&b, "\t\tserver %s weight=%d;\n", s.at, s.weight)
		}
		udp := ""
		if p.udp {
			udp = " udp"
		}
		fmt.Fprintf(&b, "\t}\n\tserver {\n\t\tlisten %d%s;\n\t\tproxy_pass pool%d;\n", peerPort+i, udp, i)
		if p.udp {
			b.WriteString("\t\tproxy_responses 1;\n")
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

func renderHAProxy(dir string, pools []pool) string {
	var b strings.Builder
	fmt.Fprintf(&b, `global
	maxconn 4000
	nbthread 2
	pidfile %[1]s/haproxy.pid
	stats socket %[1]s/haproxy.sock mode 600 level admin expose-fd listeners
defaults
	mode tcp
	timeout connect 200ms
	timeout client 60s
	timeout server 60s
	retries 3
	option redispatch 1
	default-server inter 500ms fall 2 observe layer4 error-limit 1 on-error mark-down
`, dir)
	for i, p := range pools {
		fmt.Fprintf(&b, "listen pool%d\n\tbind 0.0.0.0:%d\n\tbalance %s\n", i, peerPort+i, p.algorithm)
		if p.algorithm == "source" {
			b.WriteString("\thash-type consistent\n")
		}
		for _, s := range p.servers {
			fmt.Fprintf(&b, "\tserver %s %s weight %d check\n", strings.ReplaceAll(s.at.Addr().String(), ".", "-"), s.at, s.weight)
		}
	}
	return b.String()
}

// start starts the peer.
func (p *peer) start(ctx context.Context) error {
	p.config = filepath.Join(p.dir, p.name+".conf")
	if err := p.write(); err != nil {
		return err
	}
	program, err := exec.LookPath(p.name)
	if err != nil {
		return fmt.Errorf("%w: hack/deps.sh bench-scenarios installs it", err)
	}
	args := []string{"-c", p.config, "-e", filepath.Join(p.dir, "nginx.err")}
	if p.name == "haproxy" {
		args = []string{"-W", "-f", p.config}
	}
	log, err := os.Create(p.log())
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	defer log.Close()
	p.cmd = p.host.Command(ctx, program, args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the bench, which then cleans up
	return p.host.Start(p.cmd)
}

// log is where it writes.
func (p *peer) log() string { return filepath.Join(p.dir, p.name+".log") }

func (p *peer) write() error {
	if err := os.WriteFile(p.config, []byte(render(p.name, p.dir, p.pools)), 0o644); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	return nil
}

// reload has it read its configuration again: how operators change its servers.
func (p *peer) reload() error {
	signal := syscall.SIGHUP
	if p.name == "haproxy" {
		signal = syscall.SIGUSR2
	}
	return errors.Join(p.write(), p.cmd.Process.Signal(signal))
}

// stop ends it with its workers.
func (p *peer) stop() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // an error says that it has ended already
	_ = p.cmd.Wait()                                      // killed: there is no other way for it to end
}

// memory is what all processes of the peer have, in bytes.
func (p *peer) memory() (uint64, error) {
	var sum uint64
	pids, err := children(p.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	for _, pid := range append(pids, p.cmd.Process.Pid) {
		mb, err := observe.Memory(pid, "status", "VmRSS")
		if err != nil {
			return 0, err
		}
		sum += uint64(mb * 1e6)
	}
	return sum, nil
}

// children are the processes that a process has started.
func children(pid int) ([]int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		return nil, fmt.Errorf("processes: %w", err)
	}
	var out []int
	for field := range strings.FieldsSeq(string(text)) {
		var child int
		if _, err := fmt.Sscan(field, &child); err != nil {
			return nil, fmt.Errorf("processes: %q: %w", field, err)
		}
		out = append(out, child)
	}
	return out, nil
}
