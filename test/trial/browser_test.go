// SPDX-License-Identifier: Apache-2.0

//go:build root

package trial

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// browser is a headless Chromium on the node. It is told what to do by a pipe, in the
// DevTools protocol: JSON that ends with a zero byte.
type browser struct {
	t       *testing.T
	to      *os.File
	from    *bufio.Reader
	session string
	last    int
	errors  []string // what pages complained about
}

// browserTimeout is how long an answer may take on a busy machine.
const browserTimeout = 90 * time.Second

func (r *rig) browser() *browser {
	r.t.Helper()
	hears, tells, err := os.Pipe()
	if err != nil {
		r.t.Fatal(err)
	}
	answers, says, err := os.Pipe()
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := r.lab.Host(lab.Node).Command(r.t.Context(), "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--remote-debugging-pipe", "--user-data-dir="+filepath.Join(r.lab.Dir(), "chromium"), "--no-first-run", "--disable-extensions",
		"--disable-background-networking", "about:blank")
	cmd.ExtraFiles = []*os.File{hears, says} // 3 and 4
	var noise bytes.Buffer
	cmd.Stdout, cmd.Stderr = &noise, &noise
	if err := r.lab.Host(lab.Node).Start(cmd); err != nil {
		r.t.Fatalf("chromium: %v", err)
	}
	hears.Close()
	says.Close()
	b := &browser{t: r.t, to: tells, from: bufio.NewReader(answers)}
	r.t.Cleanup(func() {
		_, _ = tells.WriteString(`{"id":1000000,"method":"Browser.close"}` + "\x00")
		tells.Close()
		_ = cmd.Wait()
		answers.Close()
		if r.t.Failed() {
			r.t.Logf("chromium: %s", noise.String())
		}
	})
	if err := answers.SetReadDeadline(time.Now().Add(10 * browserTimeout)); err != nil {
		r.t.Fatal(err)
	}
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		b.call(domain+".enable", nil, nil)
	}
	return b
}

// call sends a command and waits for its result.
func (b *browser) call(method string, params map[string]any, result any) {
	b.t.Helper()
	b.last++
	command := map[string]any{"id": b.last, "method": method, "params": params}
	if params == nil {
		command["params"] = map[string]any{}
	}
	if b.session != "" {
		command["sessionId"] = b.session
	}
	text, err := json.Marshal(command)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.to.Write(append(text, 0)); err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
	for {
		text, err := b.from.ReadBytes(0)
		if err != nil {
			b.t.Fatalf("%s: %v", method, err)
		}
		var m struct {
			ID     int
			Method string
			Result json.RawMessage
			Params json.RawMessage
			Error  *struct{ Message string }
		}
		if err := json.Unmarshal(bytes.TrimSuffix(text, []byte{0}), &m); err != nil {
			b.t.Fatalf("%s: %v in %s", method, err, text)
		}
		switch {
		case m.Method == "Runtime.exceptionThrown" || m.Method == "Log.entryAdded":
			b.errors = append(b.errors, string(m.Params))
		case m.ID != b.last:
		case m.Error != nil:
			b.t.Fatalf("%s: %s", method, m.Error.Message)
		default:
			if result != nil {
				if err := json.Unmarshal(m.Result, result); err != nil {
					b.t.Fatalf("%s: %v in %s", method, err, m.Result)
				}
			}
			return
		}
	}
}

// open shows a page in a window of that width.
func (b *browser) open(url string, width int, dark bool) {
	b.t.Helper()
	scheme := map[bool]string{false: "light", true: "dark"}[dark]
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}, nil)
	b.call("Emulation.setEmulatedMedia", map[string]any{"features": []any{map[string]any{"name": "prefers-color-scheme", "value": scheme}}}, nil)
	b.call("Page.navigate", map[string]any{"url": url}, nil)
}

// eval returns the value of an expression of JavaScript, as it is in the page.
func (b *browser) eval(expression string) string {
	b.t.Helper()
	var out struct {
		Result           struct{ Value any }
		ExceptionDetails *struct{ Text string }
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expression, "awaitPromise": true, "returnByValue": true}, &out)
	if out.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expression, out.ExceptionDetails.Text)
	}
	return fmt.Sprint(out.Result.Value)
}

// shoot writes what is seen to a file, if somebody wants to see it: TRIAL_SHOTS is a directory.
func (b *browser) shoot(name string) {
	b.t.Helper()
	dir := os.Getenv("TRIAL_SHOTS")
	if dir == "" {
		return
	}
	var shot struct{ Data string }
	b.call("Page.captureScreenshot", map[string]any{"captureBeyondViewport": true}, &shot)
	png, err := base64.StdEncoding.DecodeString(shot.Data)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644)
	}
	if err != nil {
		b.t.Error(err)
	}
}
