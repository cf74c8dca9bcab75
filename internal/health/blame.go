// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// blame returns err as people are told of it. It wraps ErrCannot if it is this node's
// fault. A context's error stays what it is.
func blame(err error) error {
	var code syscall.Errno
	switch {
	case err == nil, errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, ErrCannot):
		return err
	case !errors.As(err, &code):
		return errors.New(plain(err))
	}
	switch code {
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, // want of something
		syscall.EADDRNOTAVAIL, syscall.EAGAIN, // no port is free
		syscall.EACCES, syscall.EPERM, // a rule of this node forbids it
		syscall.EAFNOSUPPORT, syscall.EBADF, syscall.EINVAL:
		return fmt.Errorf("%w: %w", ErrCannot, err)
	case syscall.ETIMEDOUT:
		return errors.New("no answer") // the kernel gave up before the timeout
	}
	return code
}

// plain returns err's text, at most 200 bytes of it and in quotes unless all of it is
// printable ASCII: part of it may come from outside.
func plain(err error) string {
	text := lb.Shorten(err.Error(), 200)
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' {
			return strconv.QuoteToASCII(text)
		}
	}
	return text
}
