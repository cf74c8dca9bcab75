// SPDX-License-Identifier: Apache-2.0

// Traffic is both ends of the connections that the e2e cluster watches while something
// happens to it.
//
//	traffic serve            answers lines (TCP) and datagrams (UDP) with themselves
//	traffic load TARGET...   holds connections and makes new ones to tcp://HOST:PORT or
//	                         udp://HOST:PORT, until SIGTERM, and writes what it saw
//	traffic sum FILE...      adds up what loads wrote, and fails if anything failed
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "traffic:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("usage: traffic load TARGET... | sum -events FILE FILE... | serve")
	}
	flags := flag.NewFlagSet("traffic "+args[0], flag.ContinueOnError)
	switch args[0] {
	case "serve":
		addr := flags.String("listen", ":8080", "address, of TCP and UDP")
		drain := flags.Duration("drain", 10*time.Second, "how long to go on after SIGTERM")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return serve(ctx, *addr, *drain)
	case "load":
		var l load
		flags.StringVar(&l.name, "name", "", "of this client, in what it writes")
		flags.IntVar(&l.held, "held", 4, "connections that are held, for each target")
		flags.DurationVar(&l.every, "every", 200*time.Millisecond, "time between two exchanges of each")
		flags.DurationVar(&l.between, "between", 200*time.Millisecond, "time between two new connections to each target")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return l.run(ctx, flags.Args(), out)
	case "sum":
		events := flags.String("events", "", "file of lines TIME TEXT: what happened when")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return sum(out, *events, flags.Args())
	}
	return fmt.Errorf("unknown verb %q", args[0])
}
