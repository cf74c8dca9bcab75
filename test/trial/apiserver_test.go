// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/lbproxy/lbproxy/bench/control/fakeapi"
	"github.com/lbproxy/lbproxy/internal/lab"
)

// apiServer is an API server on the node's loopback that can be away: it may fall silent
// with connections open, or refuse them. What it holds outlives that, but not the history
// of it: a watch that wants to go on where it was is told that it has expired.
type apiServer struct {
	*fakeapi.Server
	t          *testing.T
	node       *lab.Host
	at         string // address and port
	kubeconfig string
	web        *httptest.Server // nil: connections are refused
	wire       *wire
}

// apiServer starts one that has nothing, with TLS and HTTP/2, as real ones have.
func (r *rig) apiServer() *apiServer {
	r.t.Helper()
	s := &apiServer{
		Server: fakeapi.New(), t: r.t, node: r.lab.Host(lab.Node), at: "127.0.0.1:0",
		kubeconfig: filepath.Join(r.lab.Dir(), "kubeconfig"),
	}
	s.start()
	r.t.Cleanup(s.stop)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.web.Certificate().Raw})
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: fake, cluster: {server: "https://%s", certificate-authority-data: %s}}]
users: [{name: nobody, user: {}}]
contexts: [{name: fake, context: {cluster: fake, user: nobody}}]
current-context: fake
`, s.at, base64.StdEncoding.EncodeToString(ca))
	if err := os.WriteFile(s.kubeconfig, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return s
}

// start makes it answer, at the address it had before.
func (s *apiServer) start() {
	s.t.Helper()
	s.wire = &wire{conns: map[*wired]bool{}}
	err := s.node.Do(func() (err error) {
		var lc net.ListenConfig
		s.wire.Listener, err = lc.Listen(context.Background(), "tcp", s.at)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.at = s.wire.Addr().String()
	s.web = httptest.NewUnstartedServer(s.Server)
	s.web.Listener.Close() // it has a place of its own
	s.web.Listener, s.web.EnableHTTP2 = s.wire, true
	s.web.StartTLS()
}

// silence makes it say nothing any more, while connections stay and can be made.
func (s *apiServer) silence() { s.wire.cut() }

// stop ends every connection, and refuses new ones.
func (s *apiServer) stop() {
	if s.web != nil {
		s.wire.end()
		s.web.Close()
		s.web = nil
	}
}

// put stores objects.
func (s *apiServer) put(objects ...fakeapi.Object) {
	s.t.Helper()
	for _, obj := range objects {
		if _, err := s.Put(obj); err != nil {
			s.t.Fatal(err)
		}
	}
}

// drop deletes objects.
func (s *apiServer) drop(objects ...fakeapi.Object) {
	s.t.Helper()
	for _, obj := range objects {
		if err := s.Delete(obj); err != nil {
			s.t.Fatal(err)
		}
	}
}

// wire is a listener whose connections can lose everything that is sent on them.
type wire struct {
	net.Listener
	mu     sync.Mutex
	silent bool
	conns  map[*wired]bool
}

// Accept waits for a connection.
func (w *wire) Accept() (net.Conn, error) {
	conn, err := w.Listener.Accept()
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	c := &wired{Conn: conn, wire: w}
	w.conns[c] = true
	return c, nil
}

func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent = true
}

// end closes every connection. An error says that it has ended already.
func (w *wire) end() {
	_ = w.Listener.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		_ = c.Conn.Close()
	}
}

func (w *wire) isSilent() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.silent
}

// wired is a connection of a wire.
type wired struct {
	net.Conn
	wire *wire
}

// Read returns what comes in, as long as the wire carries anything.
func (c *wired) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.wire.isSilent() {
			return n, err
		}
	}
}

// Write sends b, or loses it.
func (c *wired) Write(b []byte) (int, error) {
	if c.wire.isSilent() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// Close ends the connection.
func (c *wired) Close() error {
	c.wire.mu.Lock()
	delete(c.wire.conns, c)
	c.wire.mu.Unlock()
	return c.Conn.Close()
}
