// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"net/http"
	"time"
)

// Config is the configuration that an agent runs with, as the control socket tells it.
type Config struct {
	Fields  map[string]any    `json:"fields"`         // by their names in the file
	Sources map[string]string `json:"sources"`        // where each one is from that is no default
	File    string            `json:"file,omitempty"` // its path
	Hash    string            `json:"hash,omitempty"` // of the file that was applied last
	Applied time.Time         `json:"applied"`        // when that was

	Waiting  []ConfigChange `json:"waiting,omitempty"`  // what the file says and only a restart applies
	Rejected string         `json:"rejected,omitempty"` // why the file as it is now is not applied; empty: it is

	Reloads, Rejections uint64 `json:"-"` // since the start
}

// ConfigChange is a field that the file has other than the agent.
type ConfigChange struct {
	Field string `json:"field"`
	From  string `json:"from"` // what is in force
	To    string `json:"to"`
}

// The configuration.
var (
	labelReload = Label{"result", "`applied`, `rejected`"}
	labelHash   = Label{"hash", "of the file that was applied last; empty: there is none"}

	descReloads = describe(Metric{Name: "lbproxy_config_reloads_total", Kind: Counter, Labels: []Label{labelReload},
		Help: "Times that the configuration was read again, by whether it could be used."})
	descReloaded = describe(Metric{Name: "lbproxy_config_last_success_timestamp_seconds", Kind: Gauge,
		Help: "When the configuration was last applied, at the start or later."})
	descRejected = describe(Metric{Name: "lbproxy_config_rejected", Kind: Gauge,
		Help: "1 if the file as it is now cannot be used, so that what was read before is in force; else 0."})
	descWaiting = describe(Metric{Name: "lbproxy_config_restart_needed", Kind: Gauge,
		Help: "Fields that the file has other than the agent, which only a restart applies."})
	descConfig = describe(Metric{Name: "lbproxy_config_info", Kind: Gauge, Labels: []Label{labelHash},
		Help: "Always 1; the label tells which file is in force."})
)

func (o out) config(c Config) {
	o.number(&descReloads, float64(c.Reloads), "applied")
	o.number(&descReloads, float64(c.Rejections), "rejected")
	o.number(&descReloaded, seconds(c.Applied))
	rejected := 0.0
	if c.Rejected != "" {
		rejected = 1
	}
	o.number(&descRejected, rejected)
	o.number(&descWaiting, float64(len(c.Waiting)))
	o.number(&descConfig, 1, c.Hash)
}

// telling answers with what v returns.
func telling[T any](v func() T) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, v()) }
}

// AskConfig asks the agent whose state directory is dir for the configuration it runs with.
// The errors are AskHealth's.
func AskConfig(ctx context.Context, dir string) (Config, error) {
	var c Config
	return c, askInto(ctx, dir, "config", &c)
}
