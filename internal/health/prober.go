// SPDX-License-Identifier: Apache-2.0

package health

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// ProberOptions say how much is probed at the same time, and with what. The zero value
// of a field is its default.
type ProberOptions struct {
	UserAgent string // of HTTP, HTTPS and gRPC; default lbproxy

	MaxTCP  int // TCP probes at the same time, a socket each; default 4096
	MaxHTTP int // HTTP probes at the same time, and as many HTTPS, gRPC and those HTTP ones that want a body; default 256
	MaxExec int // scripts at the same time; default 4

	Roots  *x509.CertPool // whom a verified certificate must come from; default: the system's
	Refuse []netip.Prefix // addresses that are not probed; nil: DefaultRefuse. Unspecified and multicast ones never are

	ScriptDir   string   // the directory of exec's scripts, an absolute path; empty: exec is refused
	ScriptUser  uint32   // runs scripts; default 65534. Best a user that runs nothing else
	ScriptGroup uint32   // its only group; default 65534
	ScriptHide  []string // paths whose content scripts do not see; nil: where Pods find their secrets
}

// DefaultRefuse returns the addresses that no probe goes to unless ProberOptions say
// otherwise: loopback and link-local ones, which belong to this node and its link,
// and those where clouds keep credentials of nodes.
func DefaultRefuse() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),
		netip.MustParsePrefix("127.0.0.0/8"),
		netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("255.255.255.255/32"),
		netip.MustParsePrefix("100.100.100.200/32"), // Alibaba Cloud
		netip.MustParsePrefix("::1/128"),
		netip.MustParsePrefix("fe80::/10"),
		netip.MustParsePrefix("64:ff9b::/96"),           // NAT64 reaches the IPv4 ones
		netip.MustParsePrefix("fd00:ec2::254/128"),      // AWS
		netip.MustParsePrefix("fd20:ce::254/128"),       // Google Cloud
		netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128"), // Oracle Cloud
	}
}

// orDefaults returns o with defaults for what it does not say.
func (o ProberOptions) orDefaults() ProberOptions {
	o.UserAgent = cmp.Or(o.UserAgent, "lbproxy")
	o.MaxTCP = cmp.Or(o.MaxTCP, 4096)
	o.MaxHTTP = cmp.Or(o.MaxHTTP, 256)
	o.MaxExec = cmp.Or(o.MaxExec, 4)
	o.ScriptUser = cmp.Or(o.ScriptUser, nobody)
	o.ScriptGroup = cmp.Or(o.ScriptGroup, nobody)
	if o.Refuse == nil {
		o.Refuse = DefaultRefuse()
	}
	if o.ScriptHide == nil {
		o.ScriptHide = []string{"/var/run/secrets", "/run/secrets"}
	}
	return o
}

// nobody is the user and group that owns nothing.
const nobody = 65534

// prober is a Prober of every kind.
type prober struct {
	o        ProberOptions
	connects *connector
	plain    *connector // HTTP, if the head of the answer is enough
	web      *places    // HTTP, HTTPS, gRPC
	scripts  *places
	refusals *places // what ends at once; done is not called inside Start
}

// NewProber returns a Prober for each kind of probe that can be run, in the network
// namespace of the process. What waits for a place waits in memory: start one probe of a
// target after the other. Namespaces take turns, and none has more than three quarters of
// the places, so that one whose backends are silent does not hold up the others. Start calls done itself only if Run has ended. A Target that
// is not complete, or whose address is refused, gets a Result with ErrCannot.
func NewProber(o ProberOptions) Prober {
	o = o.orDefaults()
	p := &prober{
		o:        o,
		connects: newConnector(o.MaxTCP, nil),
		web:      newPlaces(o.MaxHTTP),
		scripts:  newPlaces(o.MaxExec),
		refusals: newPlaces(1),
	}
	p.plain = newConnector(o.MaxHTTP, (&forms{p, map[lb.Probe]*form{}}).begin)
	return p
}

// Start begins a probe.
func (p *prober) Start(t Target, done func(Result)) {
	t.Addr = netip.AddrPortFrom(t.Addr.Addr().Unmap(), t.Addr.Port())
	if err := p.check(t); err != nil {
		p.refusals.start(job{t: t, done: func(r Result) { done(Result{Err: cmp.Or(r.Err, err)}) }})
		return
	}
	j := job{t: t, done: done}
	switch {
	case t.Probe.Kind == lb.ProbeTCP:
		p.connects.start(j)
	case isPlain(&t.Probe):
		p.plain.start(j)
	case t.Probe.Kind == lb.ProbeExec:
		p.scripts.start(j)
	default:
		p.web.start(j)
	}
}

// check returns an error if t is not to be probed.
func (p *prober) check(t Target) error {
	if err := t.Probe.Check(); err != nil {
		return fmt.Errorf("%w: %w", ErrCannot, err)
	}
	addr := t.Addr.Addr()
	switch {
	case !addr.IsValid() || addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast():
		return fmt.Errorf("%w: %s is no address of a backend", ErrCannot, addr)
	case t.Addr.Port() == 0:
		return fmt.Errorf("%w: port 0", ErrCannot)
	}
	for _, prefix := range p.o.Refuse {
		if prefix.Contains(addr) {
			return fmt.Errorf("%w: addresses of %s are not probed", ErrCannot, prefix)
		}
	}
	return nil
}

// Run probes until ctx ends.
func (p *prober) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.connects.run(ctx) })
	group.Go(func() error { return p.plain.run(ctx) })
	group.Go(func() error { return p.web.run(ctx, p.ask) })
	group.Go(func() error { return p.scripts.run(ctx, p.runScript) })
	group.Go(func() error {
		return p.refusals.run(ctx, func(_ context.Context, _ Target, done func(error)) { done(nil) })
	})
	return group.Wait()
}

// ask probes by HTTP, HTTPS or gRPC.
func (p *prober) ask(ctx context.Context, t Target, done func(error)) {
	if t.Probe.Kind == lb.ProbeGRPC {
		done(p.askGRPC(ctx, t))
		return
	}
	done(p.askHTTP(ctx, t))
}

// job is a probe that somebody waits for.
type job struct {
	t    Target
	done func(Result)
	line *line // in which it has waited
}

// lateness is how much later than it should have ended a probe without answer may end and
// still count against the backend. If it is more, this node was too busy to look.
const lateness = 250 * time.Millisecond

// end calls done.
func (j job) end(err error, took time.Duration) {
	if errors.Is(err, context.DeadlineExceeded) {
		switch {
		case took > j.t.Probe.Timeout+lateness:
			err = fmt.Errorf("%w: this node was too busy", ErrCannot)
		case errors.Is(err, ErrUnreached):
			err = fmt.Errorf("%w: no answer within %s", ErrUnreached, j.t.Probe.Timeout)
		default:
			err = fmt.Errorf("no answer within %s", j.t.Probe.Timeout)
		}
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		err = fmt.Errorf("%s: %w", j.t.Probe.Kind, err)
	}
	j.done(Result{Err: err, Took: took})
}

// errEnded is the error of probes that Run did not let finish.
var errEnded = fmt.Errorf("the prober has ended: %w", context.Canceled)
