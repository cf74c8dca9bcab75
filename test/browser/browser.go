// SPDX-License-Identifier: Apache-2.0

// Package browser looks at pages in a headless Chromium, for tests. It is told what to do by
// a pipe, in the DevTools protocol: JSON that ends with a zero byte.
package browser

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Browser shows one page at a time.
type Browser struct {
	t       *testing.T
	to      *os.File
	from    *bufio.Reader
	session string
	last    int
	errors  []string
}

// timeout is how long an answer may take on a busy machine.
const timeout = 90 * time.Second

// Args are the arguments of a Chromium that keeps what it has to keep in dir.
func Args(dir string) []string {
	return []string{"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--remote-debugging-pipe", "--user-data-dir=" + filepath.Join(dir, "chromium"), "--no-first-run", "--disable-extensions",
		"--disable-background-networking", "about:blank"}
}

// Start starts cmd, a chromium with Args, by start, and ends it with the test.
func Start(t *testing.T, cmd *exec.Cmd, start func(*exec.Cmd) error) *Browser {
	t.Helper()
	hears, tells, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	answers, says, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{hears, says} // 3 and 4
	var noise bytes.Buffer
	cmd.Stdout, cmd.Stderr = &noise, &noise
	if err := start(cmd); err != nil {
		t.Fatalf("chromium: %v", err)
	}
	hears.Close()
	says.Close()
	b := &Browser{t: t, to: tells, from: bufio.NewReader(answers)}
	t.Cleanup(func() {
		_, _ = tells.WriteString(`{"id":1000000,"method":"Browser.close"}` + "\x00")
		tells.Close()
		_ = cmd.Wait()
		answers.Close()
		if t.Failed() {
			t.Logf("chromium: %s", noise.String())
		}
	})
	if err := answers.SetReadDeadline(time.Now().Add(10 * timeout)); err != nil {
		t.Fatal(err)
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
func (b *Browser) call(method string, params map[string]any, result any) {
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

// Open shows a page in a window of that width.
func (b *Browser) Open(url string, width int, dark bool) {
	b.t.Helper()
	scheme := map[bool]string{false: "light", true: "dark"}[dark]
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}, nil)
	b.call("Emulation.setEmulatedMedia", map[string]any{"features": []any{map[string]any{"name": "prefers-color-scheme", "value": scheme}}}, nil)
	b.call("Page.navigate", map[string]any{"url": url}, nil)
}

// Eval returns the value of an expression of JavaScript, as it is in the page.
func (b *Browser) Eval(expression string) string {
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

// Shoot writes all of the page to a file, if somebody wants to see it: TRIAL_SHOTS is a directory.
func (b *Browser) Shoot(name string) {
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

// Errors are what pages complained about so far.
func (b *Browser) Errors() []string { return b.errors }
