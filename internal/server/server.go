// SPDX-License-Identifier: Apache-2.0

// Package server answers HTTP requests about the agent: whether it is healthy, as
// kube-proxy does, and what it and the kernel have counted. It keeps no books of
// its own: what it shows is read when it is asked.
package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"
)

const (
	bindRetry    = 5 * time.Second
	headTimeout  = 10 * time.Second
	writeTimeout = time.Minute
	idleTimeout  = 2 * time.Minute // more than between two probes of a load balancer
	stopTimeout  = 2 * time.Second // for requests under way when the agent stops
	headMax      = 16 << 10
)

// Server is one HTTP server.
type Server struct {
	Name     string // for the log
	Addr     netip.AddrPort
	Handler  http.Handler
	HardFail bool        // an address that cannot be bound is an error; else it is tried again
	Failed   func(error) // told once that the address cannot be bound; may be nil
	Log      *slog.Logger
}

// Run serves until ctx is done. An address that cannot be bound is an error
// only if HardFail is set.
func (s *Server) Run(ctx context.Context) error {
	ln, err := s.listen(ctx)
	if ln == nil {
		return err
	}
	s.Log.Info("serving", "server", s.Name, "address", ln.Addr().String())
	srv := httpServer(s.Handler, s.Log)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	})
	err = srv.Serve(ln)
	if stop() { // nobody asked for the end
		return fmt.Errorf("%s server on %s: %w", s.Name, s.Addr, err)
	}
	<-stopped
	return nil
}

// httpServer returns a server that no client can hold up for ever.
func httpServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    headMax,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// listen binds the address. It returns nothing if ctx ends first.
func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	var lc net.ListenConfig
	for told := false; ; told = true {
		ln, err := lc.Listen(ctx, "tcp", s.Addr.String())
		switch {
		case err == nil:
			return ln, nil
		case ctx.Err() != nil:
			return nil, nil
		}
		if !told && s.Failed != nil {
			s.Failed(err)
		}
		switch {
		case s.HardFail:
			return nil, fmt.Errorf("%s server: %w", s.Name, err)
		case !told:
			s.Log.Warn("cannot bind; trying again", "server", s.Name, "error", err, "every", bindRetry)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(bindRetry):
		}
	}
}
