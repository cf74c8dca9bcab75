// SPDX-License-Identifier: Apache-2.0

package ebpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -cflags "-mcpu=v3 -O2 -g -Wall -Wextra -Werror -nostdinc" -type stale_sock -type stale_process -type stale_action stale ../../../bpf/stale.bpf.c -- -I../../../bpf/include -I../../../bpf
