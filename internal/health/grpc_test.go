// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"io"
	"log"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/lbproxy/lbproxy/internal/lb"
)

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

// healths answers for services by their names.
type healths struct {
	grpc_health_v1.UnimplementedHealthServer
}

func (healths) Check(ctx context.Context, r *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	answer := func(s grpc_health_v1.HealthCheckResponse_ServingStatus) (*grpc_health_v1.HealthCheckResponse, error) {
		return &grpc_health_v1.HealthCheckResponse{Status: s}, nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	switch r.Service {
	case "", "serving":
		return answer(grpc_health_v1.HealthCheckResponse_SERVING)
	case "down":
		return answer(grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	case "unsure":
		return answer(grpc_health_v1.HealthCheckResponse_UNKNOWN)
	case "odd":
		return answer(99)
	case "hangs":
		<-ctx.Done()
		return nil, ctx.Err()
	case "huge":
		huge := &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}
		huge.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 1000, protowire.BytesType), make([]byte, 1<<20)))
		return huge, nil
	case "headers":
		_ = grpc.SetHeader(ctx, metadata.Pairs("x", strings.Repeat("x", 2*maxHeaderBytes))) // what fails is seen by the probe
		return answer(grpc_health_v1.HealthCheckResponse_SERVING)
	case "rude":
		return nil, status.Error(codes.Internal, strings.Repeat("\x1b[2J", 1000))
	case "authority":
		return nil, status.Error(codes.Internal, strings.Join(md[":authority"], ",")+" "+strings.Join(md["user-agent"], ","))
	}
	return nil, status.Error(codes.NotFound, "unknown service")
}

// pings speaks HTTP/2 but answers no call: a frame of settings, and pings without end.
func pings(conn net.Conn) {
	_, _ = conn.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0})
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		if _, err := conn.Write([]byte{0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}); err != nil {
			return
		}
	}
}

func serveGRPC(t *testing.T, address string, register bool) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	if register {
		grpc_health_v1.RegisterHealthServer(s, healths{})
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestGRPC(t *testing.T) {
	p := startProber(t, ProberOptions{UserAgent: "lbproxy/test"})
	at := serveGRPC(t, "127.0.0.1:0", true)
	t.Setenv("HTTPS_PROXY", "http://192.0.2.1:1")
	const short = 200 * time.Millisecond
	for _, tc := range []struct {
		name, service, host string
		at                  netip.AddrPort
		timeout             time.Duration
		want                string
	}{
		{"server", "", "", at, enough, ""},
		{"IPv6", "", "", serveGRPC(t, "[::1]:0", true), enough, ""},
		{"service", "serving", "", at, enough, ""},
		{"down", "down", "", at, enough, "grpc: the backend says NOT_SERVING"},
		{"unsure", "unsure", "", at, enough, "grpc: the backend says UNKNOWN"},
		{"odd", "odd", "", at, enough, "grpc: the backend says 99"},
		{"unknown", "other", "", at, enough, `grpc: the backend does not know the service "other"`},
		{"rude", "rude", "", at, enough, `grpc: Internal: "\x1b`},
		{"names", "authority", "shop.example", at, enough, "shop.example lbproxy/test"},
		{"no name", "authority", "", at, enough, at.String() + " lbproxy/test"},
		{"no protocol", "", "", serveGRPC(t, "127.0.0.1:0", false), enough, "does not implement"},
		{"hangs", "hangs", "", at, short, "no answer within 200ms"},
		{"huge message", "huge", "", at, enough, "grpc: "},
		{"huge headers", "headers", "", at, enough, "grpc: "},
		{"slow-loris", "", "", listen(t, "127.0.0.1:0", pings), short, "no answer within 200ms"},
		{"closed port", "", "", closedPort(t, "127.0.0.1:0"), enough, "grpc: connection refused"},
		{"no SYN-ACK", "", "", silent(t), short, "no answer within 200ms"},
		{"no gRPC", "", "", listen(t, "127.0.0.1:0", func(conn net.Conn) { _, _ = io.WriteString(conn, "220 mail\r\n") }), enough, "grpc: "},
		{"says nothing", "", "", listen(t, "127.0.0.1:0", func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }), short, "no answer within 200ms"},
	} {
		r := await(t, p, Target{Addr: tc.at, Probe: lb.Probe{Kind: lb.ProbeGRPC, Timeout: tc.timeout, GRPCService: tc.service, Host: tc.host}})
		if tc.name == "rude" {
			if r.Err == nil || strings.ContainsRune(r.Err.Error(), 0x1b) || len(r.Err.Error()) > 1100 {
				t.Errorf("rude: %q", r.Err)
			}
			continue
		}
		checkErr(t, tc.name, r.Err, tc.want, false)
	}
}
