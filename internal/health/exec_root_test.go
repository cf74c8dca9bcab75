// SPDX-License-Identifier: Apache-2.0

//go:build root

package health

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/internal/lb"
)

// scriptUser runs nothing else on this machine, so that processes can be counted.
const scriptUser = 61234

// writeScript writes a script of the shell with exactly this mode.
func writeScript(t *testing.T, dir, name string, mode os.FileMode, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// scriptProber returns a Prober with a directory of scripts.
func scriptProber(t *testing.T) (Prober, string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return startProber(t, ProberOptions{ScriptDir: dir, ScriptUser: scriptUser, ScriptGroup: scriptUser + 1}), dir
}

func scriptTarget(name string, timeout time.Duration) Target {
	return Target{
		Addr:    netip.MustParseAddrPort("10.1.2.3:8080"),
		Probe:   lb.Probe{Kind: lb.ProbeExec, Script: name, Timeout: timeout},
		Service: lb.ServiceName{Object: lb.Object{Namespace: "shop", Name: "cart"}},
	}
}

// TestExec: the exit status decides, and the first line of the output is the reason.
func TestExec(t *testing.T) {
	p, dir := scriptProber(t)
	for _, tc := range []struct{ name, text, want string }{
		{"healthy", "echo fine; exit 0", ""},
		{"unhealthy", "echo; echo \"queue of $LBPROXY_ENDPOINT is full\"; echo more; exit 3", `exec: exit status 3: "queue of 10.1.2.3:8080 is full"`},
		{"stderr", "echo oops >&2; exit 1", `exit status 1: "oops"`},
		{"silent", "exit 255", "exit status 255"},
		{"control", `printf 'a\033[2J\n'; exit 1`, `"a\x1b[2J"`},
		{"env", `[ "$(env | sort | grep -v -e ^PWD= -e ^OLDPWD= -e ^SHLVL= -e ^_= | cut -d= -f1 | tr '\n' ' ')" = ` +
			`'LBPROXY_ADDRESS LBPROXY_ENDPOINT LBPROXY_NAMESPACE LBPROXY_PORT LBPROXY_SERVICE PATH ' ] || { env; exit 1; }` + "\n" +
			`[ "$LBPROXY_NAMESPACE/$LBPROXY_SERVICE $LBPROXY_ADDRESS $LBPROXY_PORT" = "shop/cart 10.1.2.3 8080" ]`, ""},
		{"no-arguments", `[ $# = 0 ] && [ "$(pwd)" = / ]`, ""},
		{"no-input", `[ -z "$(cat)" ]`, ""},
	} {
		writeScript(t, dir, tc.name, 0o755, tc.text)
		checkErr(t, tc.name, await(t, p, scriptTarget(tc.name, enough)).Err, tc.want, false)
	}
}

// TestExecRefuses: what is not a script that only root can write is not run.
func TestExecRefuses(t *testing.T) {
	p, dir := scriptProber(t)
	ran := filepath.Join(t.TempDir(), "ran")
	text := "touch " + ran
	outside := t.TempDir()
	writeScript(t, outside, "evil", 0o755, text)
	writeScript(t, dir, "good", 0o755, "exit 0")
	writeScript(t, dir, "group", 0o775, text)
	writeScript(t, dir, "others", 0o757, text)
	writeScript(t, dir, "plain", 0o644, text)
	writeScript(t, dir, "private", 0o700, text)
	writeScript(t, dir, "setuid", 0o755|os.ModeSetuid, text)
	writeScript(t, dir, "setgid", 0o755|os.ModeSetgid, text)
	writeScript(t, dir, "foreign", 0o755, text)
	must(t, os.Chown(filepath.Join(dir, "foreign"), scriptUser, 0))
	must(t, os.WriteFile(filepath.Join(dir, "lost"), []byte("#!/no/such/interpreter\n"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "text"), []byte("no program\n"), 0o755))
	must(t, os.Symlink(filepath.Join(outside, "evil"), filepath.Join(dir, "link")))
	must(t, os.Symlink("good", filepath.Join(dir, "inner")))
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o755))
	for name, want := range map[string]string{
		"missing": "is not in", "link": "symbolic link", "inner": "symbolic link", "sub": "no regular file", "fifo": "no regular file",
		"group": "mode 0775", "others": "mode 0757", "plain": "cannot be executed", "private": "cannot read and execute",
		"setuid": "set-user-ID", "setgid": "set-group-ID", "foreign": "belongs to user 61234",
		"lost": "interpreter", "text": "exec format error",
		"../" + filepath.Base(outside) + "/evil": "script", filepath.Join(outside, "evil"): "script",
		"..": "script", ".": "script", "": "script", "sub/../good": "script", "good; touch " + ran: "script", "good\x00": "script", "-c": "script",
	} {
		checkErr(t, strconv.Quote(name), await(t, p, scriptTarget(name, enough)).Err, want, true)
		if strings.Contains(name, "evil") || strings.HasPrefix(name, ".") { // not by the check of names alone
			if f, err := openBeneath(dir, name); err == nil {
				f.Close()
				t.Errorf("%q can be opened", name)
			}
		}
	}
	checkErr(t, "good", await(t, p, scriptTarget("good", enough)).Err, "", false)
	if _, err := os.Stat(ran); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something ran: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestExecRefusesDirectory: others than root must not be able to change the directory, or
// to put another in its place.
func TestExecRefusesDirectory(t *testing.T) {
	base := t.TempDir()
	must(t, os.Chmod(base, 0o755))
	for _, d := range []string{"good", "open", "foreign", "parent", "parent/in"} {
		must(t, os.Mkdir(filepath.Join(base, d), 0o755))
		writeScript(t, filepath.Join(base, d), "ok", 0o755, "exit 0")
	}
	must(t, os.Chmod(filepath.Join(base, "open"), 0o777))
	must(t, os.Chmod(filepath.Join(base, "parent"), 0o775))
	must(t, os.Chown(filepath.Join(base, "foreign"), scriptUser, 0))
	must(t, os.Symlink("good", filepath.Join(base, "link")))
	for dir, want := range map[string]string{
		"": "no directory of scripts is configured", "scripts": "no absolute path",
		base + "/good": "", base + "/open": "mode 0777", base + "/foreign": "belongs to user",
		base + "/parent/in": "mode 0775", base + "/link": "symbolic link", base + "/missing": "no such file", base + "/good/ok": "not a directory",
	} {
		p := startProber(t, ProberOptions{ScriptDir: dir, ScriptUser: scriptUser})
		checkErr(t, "directory "+dir, await(t, p, scriptTarget("ok", enough)).Err, want, want != "")
	}
}

// TestCheckScripts: what can be run is told without running it, and what not.
func TestCheckScripts(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	writeScript(t, dir, "ok", 0o755, "exit 0")
	writeScript(t, dir, "open", 0o777, "exit 0")
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	fit, unfit, err := CheckScripts(dir)
	want := "[ok] [open: can be written by others than root (mode 0777) sub: is no regular file] <nil>"
	if got := fmt.Sprint(fit, unfit, err); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	must(t, os.Chmod(dir, 0o775))
	for _, dir := range []string{dir, "scripts", filepath.Join(dir, "ok")} {
		if fit, _, err := CheckScripts(dir); err == nil || fit != nil {
			t.Errorf("%s: %v, %v", dir, fit, err)
		}
	}
}

// TestExecPrivileges: a script has none, and gets none from a set-user-ID program.
func TestExecPrivileges(t *testing.T) {
	p, dir := scriptProber(t)
	tools := t.TempDir()
	must(t, os.Chmod(tools, 0o755))
	must(t, os.Chmod(filepath.Dir(tools), 0o755))
	id, err := os.ReadFile("/usr/bin/id")
	must(t, err)
	must(t, os.WriteFile(tools+"/id", id, 0o755))
	must(t, os.Chmod(tools+"/id", 0o755|os.ModeSetuid))
	secret := filepath.Join(tools, "secret")
	must(t, os.WriteFile(secret, []byte("s3cret"), 0o600))
	t.Setenv("LBPROXY_TEST_SECRET", "s3cret")
	held, err := os.Open(secret) // a descriptor that must not be inherited
	must(t, err)
	defer held.Close()
	if _, err := unix.FcntlInt(held.Fd(), unix.F_SETFD, 0); err != nil { // and that somebody forgot to mark
		t.Fatal(err)
	}
	status := func(field, want string) string {
		return fmt.Sprintf("got=$(awk '/^%s:/ { $1 = \"\"; print }' /proc/self/status | tr -d ' \t')\n[ \"$got\" = '%s' ] || { echo \"%s $got\"; exit 1; }", field, want, field)
	}
	zero := strings.Repeat("0", 16)
	for name, text := range map[string]string{
		"uid": status("Uid", strings.Repeat("61234", 4)), "gid": status("Gid", strings.Repeat("61235", 4)), "groups": status("Groups", ""),
		"CapEff": status("CapEff", zero), "CapPrm": status("CapPrm", zero), "CapBnd": status("CapBnd", zero),
		"CapInh": status("CapInh", zero), "CapAmb": status("CapAmb", zero), "nnp": status("NoNewPrivs", "1"),
		"setuid":  fmt.Sprintf("[ \"$(%s/id -u)\" = 61234 ] || { %s/id; exit 1; }", tools, tools),
		"files":   "if cat " + secret + " /etc/shadow 2>/dev/null; then exit 1; fi",
		"session": `read -r a b c d pgrp session rest < /proc/self/stat; [ "$session" = 1 ] || { echo "session $session"; exit 1; }`,
		"core":    "[ $(ulimit -c) = 0 ] && [ $(ulimit -f) = 0 ] && [ $(ulimit -n) = 64 ]",
		"write":   "if echo x > /tmp/lbproxy-test-$$ && [ -s /tmp/lbproxy-test-$$ ]; then echo wrote; exit 1; fi; rm -f /tmp/lbproxy-test-$$",
		"fds":     `for f in /proc/self/fd/*; do case $(readlink $f) in *secret*|*socket*|*anon*|*event*) ls -l /proc/self/fd; exit 1;; esac; done`,
		"env":     "if tr '\\0' '\\n' < /proc/1/environ | grep s3cret; then exit 1; fi; if env | grep s3cret; then exit 1; fi",
		"proc": fmt.Sprintf(`[ $$ = 1 ] || { echo "process $$"; exit 1; }`+"\n"+
			`for d in /proc/[0-9]*; do if grep -a -q health.test $d/cmdline 2>/dev/null; then echo $d; exit 1; fi; done`+"\n"+
			`if [ -e /proc/%d/environ ] && cat /proc/%d/environ; then exit 1; fi; exit 0`, os.Getpid(), os.Getpid()),
		"kill":   fmt.Sprintf("if kill -9 %d 2>/dev/null; then exit 1; fi", os.Getpid()),
		"mount":  "if mount -t tmpfs none /mnt 2>/dev/null || umount /proc 2>/dev/null; then exit 1; fi",
		"tokens": "if [ -d /run/secrets ] && ls /run/secrets/ 2>/dev/null; then exit 1; fi",
	} {
		writeScript(t, dir, name, 0o755, text+"\n")
		checkErr(t, name, await(t, p, scriptTarget(name, enough)).Err, "", false)
	}
}

// TestExecHides: the content of hidden paths is not there, and stays for everybody else.
func TestExecHides(t *testing.T) {
	base := t.TempDir()
	for _, d := range []string{"scripts", "secrets"} {
		must(t, os.Mkdir(filepath.Join(base, d), 0o755))
	}
	must(t, os.Chmod(base, 0o755))
	must(t, os.Chmod(filepath.Dir(base), 0o755))
	token := filepath.Join(base, "secrets", "token")
	must(t, os.WriteFile(token, []byte("s3cret"), 0o644))
	writeScript(t, base+"/scripts", "read", 0o755, "cat "+token)
	for _, hidden := range [][]string{{}, {base + "/secrets", base + "/missing"}} {
		p := startProber(t, ProberOptions{ScriptDir: base + "/scripts", ScriptUser: scriptUser, ScriptHide: hidden})
		err := await(t, p, scriptTarget("read", enough)).Err
		if (err == nil) != (len(hidden) == 0) {
			t.Errorf("hidden %v: %v", hidden, err)
		}
	}
	if text, err := os.ReadFile(token); string(text) != "s3cret" {
		t.Errorf("the token is %q, %v", text, err)
	}
}

// TestExecKills: nothing of a script outlives it, whatever it does.
func TestExecKills(t *testing.T) {
	p, dir := scriptProber(t)
	for _, tc := range []struct{ name, text, want string }{
		{"sleep", "sleep 1000", "no answer within 1s"},
		{"ignores-signals", "trap '' TERM INT HUP QUIT XCPU PIPE; while :; do sleep 1000; done", "no answer within 1s"},
		{"background", "sleep 1000 & exit 0", ""},
		{"setsid", "setsid setsid sh -c 'trap \"\" TERM HUP; setsid sleep 1000 & sleep 1000' >/dev/null 2>&1 & exit 0", ""},
		{"setsid-hangs", "(setsid sh -c '(sleep 1000 &) ; sleep 1000' &) ; sleep 1000", "no answer within 1s"},
		{"fork-bomb", "b() { b | b & b; }; b", "exec: "},
		{"fork-bomb-2", "while :; do (setsid sh -c 'while :; do :; done' &) ; done 2>/dev/null", "no answer within 1s"},
		{"flood", "yes", "wrote more than 1048576 bytes"},
		{"flood-2", "trap '' PIPE; while :; do head -c 100000 /dev/zero; done", "wrote more than 1048576 bytes"},
		{"memory", "head -c 1000000000 /dev/zero | tail -c 900000000 >/dev/null; exit 7", "exec: "},
		{"cpu", "while :; do :; done", "no answer within 1s"},
	} {
		writeScript(t, dir, tc.name, 0o755, tc.text+"\n")
		timeout := time.Second
		if ends := tc.want == "" || strings.Contains(tc.want, "bytes"); ends { // by itself, however slow the machine is
			timeout = enough
		}
		r := await(t, p, scriptTarget(tc.name, timeout))
		checkErr(t, tc.name, r.Err, tc.want, false)
		for deadline := time.Now().Add(enough); ; {
			left := processesOf(t, scriptUser)
			if left == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d processes are left", tc.name, left)
			}
			<-time.After(10 * time.Millisecond)
		}
	}
}

// processesOf counts the processes of a user.
func processesOf(t *testing.T, uid uint32) int {
	t.Helper()
	list, err := os.ReadDir("/proc")
	must(t, err)
	count := 0
	for _, e := range list {
		var st unix.Stat_t
		if _, err := strconv.Atoi(e.Name()); err == nil && unix.Stat("/proc/"+e.Name(), &st) == nil && st.Uid == uid {
			count++
		}
	}
	return count
}

// TestExecPlaces: no more scripts than places run at the same time.
func TestExecPlaces(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	writeScript(t, dir, "wait", 0o755, "exec sleep 0.2")
	p := startProber(t, ProberOptions{ScriptDir: dir, ScriptUser: scriptUser, MaxExec: 2})
	results := make(chan Result, 6)
	for range cap(results) {
		p.Start(scriptTarget("wait", enough), func(r Result) { results <- r })
	}
	most := 0
	for got := 0; got < cap(results); {
		select {
		case r := <-results:
			checkErr(t, "wait", r.Err, "", false)
			got++
		case <-time.After(10 * time.Millisecond):
			most = max(most, processesOf(t, scriptUser))
		}
	}
	if most == 0 || most > 2 {
		t.Errorf("%d scripts at the same time, want 1 or 2", most)
	}
}

// envStandIn names the directory of scripts of a stand-in for an agent.
const envStandIn = "LBPROXY_TEST_STAND_IN"

// TestStandIn is the life of such a stand-in, which TestExecDiesWithTheAgent starts and
// kills.
func TestStandIn(t *testing.T) {
	dir := os.Getenv(envStandIn)
	if dir == "" {
		return
	}
	p := startProber(t, ProberOptions{ScriptDir: dir, ScriptUser: scriptUser, ScriptGroup: scriptUser + 1})
	t.Error(await(t, p, scriptTarget("endless", time.Hour)))
}

// TestExecDiesWithTheAgent: an agent that is killed can wait for nobody, and leaves no
// process of a script all the same.
func TestExecDiesWithTheAgent(t *testing.T) {
	_, dir := scriptProber(t)
	const processes = 3
	writeScript(t, dir, "endless", 0o755, "trap '' TERM HUP INT\nsetsid sleep 1000 &\nsleep 1000 &\nwhile :; do wait; done\n")
	agent := exec.Command("/proc/self/exe", "-test.run=^TestStandIn$")
	agent.Env = append(os.Environ(), envStandIn+"="+dir)
	must(t, agent.Start())
	until := func(what string, want int) {
		t.Helper()
		for deadline := time.Now().Add(enough); processesOf(t, scriptUser) != want; <-time.After(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d processes of the script %s, want %d", processesOf(t, scriptUser), what, want)
			}
		}
	}
	defer func() {
		_ = agent.Process.Kill() // it fails if it was killed as it should be
		_ = agent.Wait()         // as above
	}()
	until("while it runs", processes)
	must(t, agent.Process.Kill())
	until("after its agent was killed", 0)
}
