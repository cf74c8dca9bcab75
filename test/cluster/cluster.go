// SPDX-License-Identifier: Apache-2.0

// Package cluster runs a real control plane for tests: etcd and
// kube-apiserver, built from the Go module proxy, with TLS and RBAC. There are
// no controllers and no nodes: tests write what those would have written, see
// objects.go.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Address ranges of Services, and the first address of each, which is that of
// the Service default/kubernetes.
const (
	ServiceRange4 = "10.96.0.0/16"
	ServiceRange6 = "fd00:10:96::/112"
	kubernetes4   = "10.96.0.1"
	kubernetes6   = "fd00:10:96::1"
)

const (
	defaultPort  = 6443
	readyTimeout = 90 * time.Second // a busy machine: it takes a few seconds alone
	readyPoll    = 50 * time.Millisecond
	stopGrace    = 15 * time.Second
)

// Options say where a cluster runs. Only Dir is required.
type Options struct {
	// Dir takes logs, certificates and kubeconfigs, and stays after Stop. It
	// must exist. The data of etcd is elsewhere and goes away.
	Dir string

	// BindAddr is the address of the API server, 127.0.0.1 if zero. Pods and
	// nodes reach a cluster only if it is not a loopback address.
	BindAddr netip.Addr

	// Port is the port of the API server. Zero means 6443 with Dial, where the
	// namespace is the test's own, and a free port without.
	Port uint16

	// Start starts a command, in the network namespace of the test's choice,
	// and must not wait for it. (*exec.Cmd).Start if nil.
	Start func(*exec.Cmd) error

	// Dial connects to addr from that namespace. It is needed if and only if
	// Start is set.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Cluster is a running control plane. Its methods may be called from several
// goroutines, except StopAPIServer, StartAPIServer and Stop.
type Cluster struct {
	opts   Options
	bin    Binaries
	data   string // directory of etcd's data and sockets
	admin  *rest.Config
	client kubernetes.Interface

	etcd, apiserver *process // nil while stopped
}

// Start builds what is missing (minutes, see Build), starts a control plane
// and waits until it serves. ctx bounds only that; Stop ends the cluster, and
// so does the end of this process.
func Start(ctx context.Context, opts Options) (*Cluster, error) {
	if err := opts.complete(); err != nil {
		return nil, fmt.Errorf("cluster: options: %w", err)
	}
	bin, err := Build(ctx)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	c := &Cluster{opts: opts, bin: bin}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("cluster: %w", err), c.Stop())
	}
	return c, nil
}

// complete fills in the defaults.
func (o *Options) complete() error {
	if (o.Start == nil) != (o.Dial == nil) {
		return errors.New("Start and Dial go together")
	}
	if !o.BindAddr.IsValid() {
		o.BindAddr = netip.MustParseAddr("127.0.0.1")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return fmt.Errorf("dir: %w", err)
	}
	o.Dir = dir
	switch {
	case o.Port != 0:
	case o.Dial != nil:
		o.Port = defaultPort
	default:
		if o.Port, err = freePort(o.BindAddr); err != nil {
			return err
		}
	}
	if o.Start == nil {
		o.Start = (*exec.Cmd).Start
		o.Dial = (&net.Dialer{}).DialContext
	}
	return nil
}

// freePort returns a TCP port of addr that nobody listens on right now.
func freePort(addr netip.Addr) (uint16, error) {
	l, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		return 0, fmt.Errorf("free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port(), nil
}

func (c *Cluster) start(ctx context.Context) error {
	if err := c.writePKI(); err != nil {
		return fmt.Errorf("pki: %w", err)
	}
	var err error
	if c.client, err = kubernetes.NewForConfig(c.admin); err != nil {
		return fmt.Errorf("client: %w", err)
	}
	if err := c.startEtcd(); err != nil {
		return err
	}
	return c.StartAPIServer(ctx)
}

// writePKI makes the certificates and keys in Dir, and c.admin.
func (c *Cluster) writePKI() error {
	ca, err := newAuthority()
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.file("ca.crt"), ca.pem, 0o644); err != nil {
		return fmt.Errorf("authority: %w", err)
	}
	serving, err := ca.server("kube-apiserver",
		[]string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		[]netip.Addr{c.opts.BindAddr, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback(),
			netip.MustParseAddr(kubernetes4), netip.MustParseAddr(kubernetes6)})
	if err != nil {
		return err
	}
	if err := serving.write(c.opts.Dir, "apiserver"); err != nil {
		return err
	}
	signing, err := newSigningKey()
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.file("audit-policy.yaml"), []byte(auditPolicy), 0o600); err != nil {
		return fmt.Errorf("audit policy: %w", err)
	}
	if err := os.WriteFile(c.file("service-account.key"), signing, 0o600); err != nil {
		return fmt.Errorf("signing key: %w", err)
	}
	admin, err := ca.client("admin", "system:masters")
	if err != nil {
		return err
	}
	c.admin = &rest.Config{
		Host:            "https://" + netip.AddrPortFrom(c.opts.BindAddr, c.opts.Port).String(),
		TLSClientConfig: rest.TLSClientConfig{CAData: ca.pem, CertData: admin.cert, KeyData: admin.key},
		QPS:             -1, // no limit
		Dial:            c.opts.Dial,
		WarningHandler:  rest.NoWarnings{},
		Proxy:           func(*http.Request) (*url.URL, error) { return nil, nil },
	}
	return nil
}

// file returns the path of name in Dir.
func (c *Cluster) file(name string) string { return filepath.Join(c.opts.Dir, name) }

// startEtcd starts etcd on unix sockets: no port to choose in a namespace that
// is not ours, and a short path, because sun_path holds 108 bytes.
func (c *Cluster) startEtcd() error {
	var err error
	if c.data, err = os.MkdirTemp("", "lbproxy-etcd-"); err != nil {
		return fmt.Errorf("etcd: data: %w", err)
	}
	peer := "unix://" + filepath.Join(c.data, "peer.sock")
	c.etcd, err = spawn("etcd", c.opts.Dir, c.opts.Start, c.bin.Etcd,
		"--name=test", "--data-dir="+filepath.Join(c.data, "data"), "--log-level=warn",
		"--unsafe-no-fsync", // a test's data is worth nothing after a crash
		"--listen-client-urls="+c.etcdURL(), "--advertise-client-urls="+c.etcdURL(),
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=test="+peer)
	return err
}

func (c *Cluster) etcdURL() string { return "unix://" + filepath.Join(c.data, "client.sock") }

// StartAPIServer starts the API server, at the same address and with the same
// data if it ran before, and waits until it serves.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	if c.apiserver != nil {
		return errors.New("kube-apiserver: running already")
	}
	p, err := spawn("kube-apiserver", c.opts.Dir, c.opts.Start, c.bin.APIServer, c.apiServerArgs()...)
	if err != nil {
		return err
	}
	c.apiserver = p
	return c.awaitReady(ctx)
}

func (c *Cluster) apiServerArgs() []string {
	ranges := ServiceRange4 + "," + ServiceRange6
	if c.opts.BindAddr.Is6() { // the first range has to be of the server's family
		ranges = ServiceRange6 + "," + ServiceRange4
	}
	reconciler := "lease" // writes BindAddr into the EndpointSlice of default/kubernetes
	if c.opts.BindAddr.IsLoopback() {
		reconciler = "none" // it may not hold a loopback address
	}
	key := c.file("service-account.key")
	return []string{
		"--etcd-servers=" + c.etcdURL(),
		"--bind-address=" + c.opts.BindAddr.String(),
		"--advertise-address=" + c.opts.BindAddr.String(),
		"--secure-port=" + strconv.Itoa(int(c.opts.Port)),
		"--endpoint-reconciler-type=" + reconciler,
		"--service-cluster-ip-range=" + ranges,
		"--tls-cert-file=" + c.file("apiserver.crt"),
		"--tls-private-key-file=" + c.file("apiserver.key"),
		"--client-ca-file=" + c.file("ca.crt"),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + key,
		"--service-account-signing-key-file=" + key,
		"--audit-policy-file=" + c.file("audit-policy.yaml"),
		"--audit-log-path=" + c.file(auditLog),
		"--allow-privileged=true",                      // or it refuses deploy/daemonset.yaml
		"--shutdown-watch-termination-grace-period=1s", // or open watches hold up StopAPIServer
	}
}

// awaitReady returns once /readyz says ok and the objects that the API server
// makes for itself exist: the Service default/kubernetes, the last of them,
// proves that cluster IPs can be allocated.
func (c *Cluster) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	core := c.client.CoreV1()
	return c.poll(ctx, "kube-apiserver: not ready", func(ctx context.Context) error {
		if err := core.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error(); err != nil {
			return fmt.Errorf("readyz: %w", err)
		}
		if _, err := core.Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{}); err != nil {
			return err
		}
		_, err := core.Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
		return err
	})
}

// poll calls try until it succeeds, ctx is done or a server has ended; what
// describes the failure.
func (c *Cluster) poll(ctx context.Context, what string, try func(context.Context) error) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		one, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := try(one)
		cancel()
		if err == nil {
			return nil
		}
		if died := errors.Join(c.etcd.died(), c.apiserver.died()); died != nil {
			return fmt.Errorf("%s: %w", what, died)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w, logs in %s", what, err, c.opts.Dir)
		case <-tick.C:
		}
	}
}

// StopAPIServer ends the API server; clients see connections refused. It is
// not an error if it does not run.
func (c *Cluster) StopAPIServer() error {
	if c.apiserver == nil {
		return nil
	}
	err := c.apiserver.stop(stopGrace)
	c.apiserver = nil
	return err
}

// Stop ends the cluster and removes its data. It may be called again.
func (c *Cluster) Stop() error {
	err := c.StopAPIServer()
	if c.etcd != nil {
		err = errors.Join(err, c.etcd.stop(stopGrace))
		c.etcd = nil
	}
	if c.data == "" {
		return err
	}
	return errors.Join(err, os.RemoveAll(c.data))
}

// AdminConfig returns a client configuration for a user who may do anything.
// It dials with Options.Dial and is the caller's to change.
func (c *Cluster) AdminConfig() *rest.Config { return rest.CopyConfig(c.admin) }

// Client returns a client of AdminConfig.
func (c *Cluster) Client() kubernetes.Interface { return c.client }
