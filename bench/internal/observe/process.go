// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lbproxy/lbproxy/internal/lab"
)

// Memory is a field of a file of /proc/pid, in MB.
func Memory(pid int, file, field string) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return 0, fmt.Errorf("memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) > 1 && f[0] == field+":" {
			kb, err := strconv.ParseFloat(f[1], 64)
			return kb * 1024 / 1e6, err
		}
	}
	return 0, fmt.Errorf("memory: no %s in %s", field, file)
}

// MapMemory adds up the kernel memory of every BPF map that the process has open,
// in MB.
func MapMemory(pid int) (float64, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		return 0, fmt.Errorf("map memory: %w", err)
	}
	seen, sum := map[string]bool{}, 0.0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // closed by now
		}
		info := map[string]string{}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(line, ":")
			info[key] = strings.TrimSpace(value)
		}
		if info["map_id"] == "" || seen[info["map_id"]] {
			continue
		}
		seen[info["map_id"]] = true
		n, err := strconv.ParseFloat(info["memlock"], 64)
		if err != nil {
			return 0, fmt.Errorf("map memory: %w", err)
		}
		sum += n / 1e6
	}
	return sum, nil
}

// Metrics reads the samples of a scrape. Those with labels have them in their
// names, as they are written.
func Metrics(text string) map[string]float64 {
	out := map[string]float64{}
	for line := range strings.Lines(text) {
		name, value, found := cutLast(strings.TrimSpace(line))
		if !found || strings.HasPrefix(name, "#") {
			continue
		}
		if x, err := strconv.ParseFloat(value, 64); err == nil {
			out[name] = x
		}
	}
	return out
}

// cutLast cuts s at its last space: labels may contain spaces.
func cutLast(s string) (before, after string, found bool) {
	i := strings.LastIndexByte(s, ' ')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// Get asks a server on a host's own loopback.
func Get(h *lab.Host, addr, path string) (status int, body string, err error) {
	var conn net.Conn
	err = h.Do(func() (err error) { // net/http would dial on another thread
		conn, err = net.DialTimeout("tcp", addr, time.Second)
		return err
	})
	if err != nil {
		return 0, "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return 0, "", err
	}
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.0\r\n\r\n"); err != nil {
		return 0, "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// CPU returns the processor time, in seconds, that all processes of a lab's node
// have used, those that have ended too: kube-proxy starts many.
func CPU(l *lab.Lab) (float64, error) { return cgroupCPU(l.CgroupRoot()) }

// LabCPU is the same of all processes of the lab. What the kernel does for packets counts
// for the process that it interrupts, unless it accounts for interrupts by themselves.
func LabCPU(l *lab.Lab) (float64, error) { return cgroupCPU(filepath.Dir(l.CgroupRoot())) }

func cgroupCPU(dir string) (float64, error) {
	text, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		return 0, fmt.Errorf("processor time: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if us, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(us), 64)
			return n / 1e6, err
		}
	}
	return 0, fmt.Errorf("processor time: no usage_usec in cpu.stat of %s", dir)
}

// SoftIRQ is the processor time, in seconds, that this machine has spent in soft
// interrupts, for whomever.
func SoftIRQ() (float64, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("soft interrupts: %w", err)
	}
	f := strings.Fields(string(text)) // cpu user nice system idle iowait irq softirq ...
	if len(f) < 8 {
		return 0, fmt.Errorf("soft interrupts: %q", f)
	}
	n, err := strconv.ParseFloat(f[7], 64)
	return n / tick, err
}

// tick is USER_HZ, which is the same on every machine that Go runs on.
const tick = 100

// ProcessCPU returns the processor time that a process has used, in seconds: its own, and
// the kernel's for it.
func ProcessCPU(pid int) (user, system float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("processor time: %w", err)
	}
	_, after, _ := strings.Cut(string(text), ") ") // the name may contain spaces
	f := strings.Fields(after)
	if len(f) < 13 {
		return 0, 0, fmt.Errorf("processor time: %q", after)
	}
	user, one := strconv.ParseFloat(f[11], 64)
	system, two := strconv.ParseFloat(f[12], 64)
	return user / tick, system / tick, errors.Join(one, two)
}
