// SPDX-License-Identifier: Apache-2.0

// Demo runs lbproxy in a miniature cluster of network namespaces on this machine
// and shows what it does: who reaches what, over which backends, and what both
// ends see of each other; what each algorithm makes of connections. What should happen it works out from the manifests, so
// a change of a manifest is a change of the table. It exits with 1 if anything
// is not as it should be. It needs root, and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// options are the flags.
type options struct {
	program   string
	manifests string
	keep      bool
	n         int
}

// demo is a lab with lbproxy in it.
type demo struct {
	options
	screen  *screen
	lab     *lab.Lab
	cluster *cluster
	clients []*client
	agent   *agent
	dir     string // the manifests that lbproxy watches: a copy
	undo    *edit
	homes   []home

	checks, wrong int
	made          counts
}

func main() {
	lab.Main()
	var o options
	flag.StringVar(&o.program, "lbproxy", "bin/lbproxy", "the `program` to show")
	flag.StringVar(&o.manifests, "manifests", "demo/manifests", "`directory` with Services and EndpointSlices")
	flag.BoolVar(&o.keep, "keep", false, "stay up when all is shown")
	flag.IntVar(&o.n, "n", 12, "`number` of connections per row")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	d := &demo{options: o, screen: newScreen(os.Stdout)}
	err := d.run(ctx)
	if err != nil && ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run builds the lab, tells everything, and removes the lab.
func (d *demo) run(ctx context.Context) (err error) {
	if d.n < 1 || flag.NArg() > 0 {
		return errors.New("usage: demo [-lbproxy program] [-manifests directory] [-n number] [-keep]; n is at least 1")
	}
	if _, err := os.Stat(d.program); err != nil {
		return fmt.Errorf("%w: run make build first", err)
	}
	if d.program, err = filepath.Abs(d.program); err != nil {
		return err
	}
	if d.cluster, err = load(d.manifests); err != nil {
		return err
	}
	began := time.Now()
	pods := append(slices.Clone(d.cluster.pods), lab.PodSpec{Name: "client1"}, lab.PodSpec{Name: "client2", Unhooked: true})
	if d.lab, err = lab.New(lab.Options{Name: "demo", Pods: pods}); err != nil {
		return fmt.Errorf("build the lab (needs root): %w", err)
	}
	defer func() { err = errors.Join(err, d.lab.Close()) }()
	if err := d.prepare(ctx); err != nil {
		return err
	}
	if err := d.tell(ctx); err != nil {
		return err
	}
	d.screen.line("\n%s", d.summary(time.Since(began)))
	if d.keep {
		d.hints()
		<-ctx.Done()
	}
	if d.wrong > 0 {
		return fmt.Errorf("%d of %d checks failed; the end of lbproxy's log:\n%s", d.wrong, d.checks, d.agent.logTail())
	}
	return nil
}

// prepare starts the servers and lbproxy.
func (d *demo) prepare(ctx context.Context) error {
	d.dir = filepath.Join(d.lab.Dir(), "manifests")
	if err := copyManifests(d.manifests, d.dir); err != nil {
		return err
	}
	d.clients = []*client{
		{d.lab.Host("client1"), true, true, "a pod: lbproxy translates its sockets when they connect"},
		{d.lab.Host("client2"), false, true, "a pod whose sockets lbproxy cannot see: its packets are translated"},
		{d.lab.Host(lab.Node), true, true, "a process of the node itself: sockets"},
		{d.lab.Host(lab.Outside), false, false, "a machine that is not in the cluster: packets"},
	}
	d.screen.names = map[netip.Addr]string{lab.NodeSecond4: lab.Node, lab.NodeSecond6: lab.Node}
	for _, h := range d.lab.Hosts() {
		d.screen.names[h.Addr4], d.screen.names[h.Addr6] = h.Name, h.Name
	}
	if err := d.serve(ctx); err != nil {
		return err
	}
	d.agent = &agent{lab: d.lab, program: d.program, manifests: d.dir}
	took, err := d.agent.start(ctx)
	if err != nil {
		return err
	}
	d.screen.line("lbproxy is ready %d ms after its start. Traffic comes from", took.Milliseconds())
	for _, c := range d.clients {
		d.screen.line("  %-8s %s", c.host.Name, c.about)
	}
	return nil
}

// serve starts an echo server for each endpoint that the slices name.
func (d *demo) serve(ctx context.Context) error {
	type server struct {
		pod, proto string
		port       uint16
	}
	done := map[server]time.Duration{}
	for _, s := range d.cluster.services {
		for _, e := range s.endpoints {
			srv := server{e.pod, e.proto, e.addr.Port()}
			if delay, ok := done[srv]; ok && delay != e.delay || e.delay > 0 && e.proto != lab.TCP {
				return fmt.Errorf("service %s: pod %s cannot answer after %s at %s", s.name, e.pod, e.delay, e.addr)
			} else if ok {
				continue
			}
			done[srv] = e.delay
			err := error(nil)
			if e.delay > 0 {
				err = serveSlowly(ctx, d.lab.Host(srv.pod), srv.port, e.delay)
			} else {
				err = d.lab.Host(srv.pod).Serve(ctx, srv.proto, lab.AnyAddr(srv.port))
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// tell shows every Service at rest, then what happens when things change.
func (d *demo) tell(ctx context.Context) error {
	d.screen.heading(fmt.Sprintf("Every Service from everywhere, %d connections in each row", d.n))
	for _, s := range d.cluster.services {
		if s.showcase {
			continue
		}
		rs := rows(s, d.clients, d.n)
		if err := d.measure(ctx, s, rs); err != nil {
			return err
		}
		for _, fault := range checkCoverage(rs) {
			d.wrong++
			d.screen.line("      %s", d.screen.paint(red, "!! "+fault, 0))
		}
	}
	if err := d.algorithms(ctx); err != nil {
		return err
	}
	if err := d.count(ctx); err != nil {
		return err
	}
	if err := d.switchAlgorithm(ctx); err != nil {
		return err
	}
	t := newStory(d)
	if t == nil {
		d.screen.line("\nNo Service gives each client two backends for TCP: nothing can be removed to show a change.")
		return nil
	}
	return t.run(ctx)
}

// measure measures the rows of one Service and prints them.
func (d *demo) measure(ctx context.Context, s *service, rs []*row) error {
	for _, r := range rs {
		if err := r.measure(ctx); err != nil {
			return err
		}
		d.made.note(r)
		d.checks++
		if len(r.faults) > 0 {
			d.wrong++
		}
	}
	d.screen.table(s, rs)
	return nil
}

func (d *demo) summary(took time.Duration) string {
	text := fmt.Sprintf("%d checks, %d wrong, %.1f s", d.checks, d.wrong, took.Seconds())
	if d.wrong > 0 {
		return d.screen.paint(red, "!! "+text, 0)
	}
	return d.screen.paint(green, "ok", 0) + " " + text
}

// hints tells how to look around in a lab that stays.
func (d *demo) hints() {
	ns := func(host string) string { return filepath.Base(d.lab.Host(host).NetNS()) }
	args := strings.Join(d.agent.args(), " ")
	vip := "10.96.0.10/80"
	if t := newStory(d); t != nil {
		vip = fmt.Sprintf("%s/%d", t.to.addr.Addr(), t.to.addr.Port())
	}
	d.screen.line(`
The lab stays until Ctrl-C. In another terminal, as root:

  # a connection from outside, and from a pod that only the packet path serves
  ip netns exec %[1]s bash -c 'head -1 </dev/tcp/%[5]s'
  ip netns exec %[2]s bash -c 'head -1 </dev/tcp/%[5]s'

  # from a pod whose sockets lbproxy sees: enter its cgroup, too
  bash -c 'echo $$ >%[4]s/cgroup.procs; nsenter --net=%[3]s bash -c "head -1 </dev/tcp/%[5]s"'

  # what is in the kernel
  %[6]s get services %[7]s
  %[6]s get connections %[7]s

  # change a Service while it runs, then dial again; its log
  vi %[8]s/shop.yaml
  tail -f %[9]s
`, ns(lab.Outside), ns("client2"), d.lab.Host("client1").NetNS(), d.lab.CgroupRoot(), vip, d.program, args, d.dir, d.agent.logPath())
}
