// SPDX-License-Identifier: Apache-2.0

package picktest

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-mcpu=v3 -O2 -g -Wall -Wextra -Werror -nostdinc" -type op pick c/pick.bpf.c -- -I../../../bpf/include -I../../../bpf
