// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// The bounds of a gRPC probe. A HealthCheckResponse has a few bytes.
const (
	grpcMessageBytes = 4 << 10
	grpcBufferBytes  = 4 << 10
	grpcBytes        = 16 << 10 // in all: frames that are no answer are read, too
)

// errFlood is the error of a backend that sends more than a probe reads.
var errFlood = fmt.Errorf("the backend sent more than %d bytes", grpcBytes)

// errOneConnection ends a probe whose connection did not last.
var errOneConnection = errors.New("the connection ended before the answer")

// limited is a connection of which no more than so many bytes are read. One goroutine
// reads.
type limited struct {
	net.Conn
	left int
	over func() // is called when there is more
}

// Read reads as long as something is left.
func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		l.over()
		return 0, errFlood
	}
	n, err := l.Conn.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

// askGRPC probes by the gRPC health protocol, without TLS: SERVING is healthy.
// Source: github.com/grpc/grpc, doc/health-checking.md.
func (p *prober) askGRPC(ctx context.Context, t Target) error {
	w := wayOf(ctx)
	failed := make(chan error, 1) // grpc tells only its text
	fail := func(err error) {
		select {
		case failed <- err:
		default: // the first one counts
		}
	}
	var dialled atomic.Bool
	conn, err := grpc.NewClient("passthrough:///"+t.Addr.String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			if dialled.Swap(true) { // grpc tries again by itself, and each time as much would be read
				return nil, errOneConnection
			}
			conn, err := dialOnce(ctx, w, t)
			if err != nil {
				fail(err)
				return nil, err
			}
			return &limited{Conn: conn, left: grpcBytes, over: func() { fail(errFlood) }}, nil
		}),
		grpc.WithAuthority(hostHeader(t)),
		grpc.WithUserAgent(p.o.UserAgent),
		grpc.WithDisableServiceConfig(), grpc.WithDisableHealthCheck(), grpc.WithDisableRetry(),
		grpc.WithReadBufferSize(grpcBufferBytes), grpc.WithWriteBufferSize(grpcBufferBytes),
		grpc.WithMaxHeaderListSize(maxHeaderBytes),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(grpcMessageBytes)),
	)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCannot, err)
	}
	defer conn.Close()
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: t.Probe.GRPCService})
	if err == nil {
		if answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			return fmt.Errorf("the backend says %s", answer.GetStatus())
		}
		return nil
	}
	select {
	case err := <-failed:
		return blame(err)
	default:
	}
	return blameGRPC(err, t)
}

// blameGRPC tells of a call that failed.
func blameGRPC(err error, t Target) error {
	switch s := status.Convert(err); s.Code() {
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	case codes.Unimplemented:
		return errors.New("the backend does not implement the health protocol")
	case codes.NotFound:
		return fmt.Errorf("the backend does not know the service %s", lb.Quote(t.Probe.GRPCService))
	default:
		return fmt.Errorf("%s: %s", s.Code(), plain(errors.New(s.Message())))
	}
}
