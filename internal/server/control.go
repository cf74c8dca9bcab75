// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
)

const (
	// controlName is the control socket's name in the state directory.
	controlName = "control.sock"

	controlMode    = 0o600
	controlConns   = 8
	controlTimeout = 5 * time.Second // of a question
	controlMax     = 256 << 20       // bytes of an answer: 100,000 backends take 40 MB
	maxSocketPath  = 107             // bytes: sockaddr_un without the byte that ends it
)

// ErrNoAgent says that no agent can be asked.
var ErrNoAgent = errors.New("no agent answers")

// Verdict is what the agent thinks of one backend of one Service port, as the control
// socket tells it. Those that it has no reason to watch are not told.
type Verdict struct {
	Service string    `json:"service"` // as lb.ServiceName prints it
	Backend string    `json:"backend"` // address and port
	State   string    `json:"state"`   // unknown, healthy, suspect or ejected
	Probe   string    `json:"probe"`   // the kind
	Since   time.Time `json:"since"`   // when the state began
	Reason  string    `json:"reason,omitempty"`

	// Ignored is why an ejected backend takes new connections all the same.
	Ignored   string     `json:"ignored,omitempty"`
	Ejections int        `json:"ejections,omitempty"` // not long ago
	Until     *time.Time `json:"until,omitempty"`     // before which it does not come back
}

// Resting is a backend of a Service port that takes no new connections in some of its
// pools: it has weight 0 there, by itself or for its health.
type Resting struct {
	Service string `json:"service"` // as lb.ServiceName prints it
	Backend string `json:"backend"` // address and port
	Pools   string `json:"pools"`   // cluster, local or both
}

// answer is what is answered to a question about backends.
type answer[T any] struct {
	Backends []T `json:"backends"`
}

// Control answers processes of root on this node, at a unix socket in Dir: GET /health
// is what the agent thinks of backends, GET /resting who takes no new connections, GET
// /config what it is configured to do. Nothing that it does depends on it.
type Control struct {
	Dir      string // made if it is not there; nobody but this user may write to it
	Verdicts func() []Verdict
	Resting  func() []Resting // may be nil
	Config   func() Config    // may be nil
	Log      *slog.Logger
}

// ControlPath returns the path of the control socket of the agent whose state directory
// is dir.
func ControlPath(dir string) string { return filepath.Join(dir, controlName) }

// Run serves until ctx is done. A socket that cannot be is logged, and no error: the
// agent serves without it. The caller keeps other agents away from Dir.
func (c *Control) Run(ctx context.Context) error {
	ln, err := listenControl(ctx, c.Dir)
	if err != nil {
		c.Log.Warn("the agent cannot be asked about health", "error", err)
		return nil
	}
	c.serve(ctx, ln)
	return nil
}

// serve answers until ctx is done.
func (c *Control) serve(ctx context.Context, ln net.Listener) {
	srv := httpServer(c.handler(), c.Log)
	srv.ReadTimeout = headTimeout
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(netutil.LimitListener(ln, controlConns)); ctx.Err() == nil {
		c.Log.Warn("the agent cannot be asked about health any more", "error", err)
	}
}

func (c *Control) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", answering(c.Verdicts))
	if c.Resting != nil {
		mux.HandleFunc("GET /resting", answering(c.Resting))
	}
	if c.Config != nil {
		mux.HandleFunc("GET /config", telling(c.Config))
	}
	return mux
}

// answering answers with what list returns.
func answering[T any](list func() []T) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		all := answer[T]{append([]T{}, list()...)} // a list, even an empty one
		_ = json.NewEncoder(w).Encode(all)         // who asked is gone
	}
}

// listenControl binds the socket in dir, in place of one that a killed agent has left. It
// has its mode from the beginning.
func listenControl(ctx context.Context, dir string) (net.Listener, error) {
	path := ControlPath(dir)
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("%s: a socket's path has at most %d bytes", path, maxSocketPath)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := checkPrivate(dir); err != nil {
		return nil, err
	}
	switch info, err := os.Lstat(path); {
	case err == nil && info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is no socket: it is left alone", path)
	case err == nil:
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("control socket of an earlier agent: %w", err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("control socket: %w", err)
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		bad := raw.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), controlMode) }) // bind takes it over
		return errors.Join(bad, err)
	}}
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return ln, nil
}

// checkPrivate returns an error if somebody else can put something into dir.
func checkPrivate(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("state directory %s: others may write to it: there is no control socket", dir)
	}
	return nil
}

// AskHealth asks the agent whose state directory is dir what it thinks of backends. The
// error wraps ErrNoAgent if none is there.
func AskHealth(ctx context.Context, dir string) ([]Verdict, error) {
	return askFor[Verdict](ctx, dir, "health")
}

// AskResting asks which backends take no new connections. The errors are AskHealth's.
func AskResting(ctx context.Context, dir string) ([]Resting, error) {
	return askFor[Resting](ctx, dir, "resting")
}

func askFor[T any](ctx context.Context, dir, what string) ([]T, error) {
	var all answer[T]
	err := askInto(ctx, dir, what, &all)
	return all.Backends, err
}

// askInto reads the answer to a question into to.
func askInto(ctx context.Context, dir, what string, to any) error {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	path := ControlPath(dir)
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/"+what, nil)
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	resp, err := transport.RoundTrip(req)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s", ErrNoAgent, path)
	case err != nil:
		return fmt.Errorf("ask the agent: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the agent at %s answers %s", path, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, controlMax)).Decode(to); err != nil {
		return fmt.Errorf("answer of the agent: %w", err)
	}
	return nil
}
