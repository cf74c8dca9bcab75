// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
)

func (p *prober) runScript(_ context.Context, _ Target, done func(error)) {
	done(errors.New("x"))
}
