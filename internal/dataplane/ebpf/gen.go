// SPDX-License-Identifier: Apache-2.0

package ebpf

// The objects are committed, so that building needs no clang; CI proves that
// they regenerate byte for byte.
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -cflags "-mcpu=v3 -O2 -g -Wall -Wextra -Werror -nostdinc" sock ../../../bpf/sock.bpf.c -- -I../../../bpf/include -I../../../bpf
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-mcpu=v3 -O2 -g -Wall -Wextra -Werror -nostdinc" -type frontend_flags -type backend_state -type reason -type kind -type cost -type signal -type hash_key -type scope -type verdict -type conn_flags -type conn_state -type udp_direction -type hook -type known -type symptom_kind -type symptom -type sweep -type range lb ../../../bpf/lb.bpf.c -- -I../../../bpf/include -I../../../bpf
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -output-suffix _test -tags root -cflags "-mcpu=v3 -O2 -g -Wall -Wextra -Werror -nostdinc" -type pick_call -type close_call choose ../../../bpf/test/choose.bpf.c -- -I../../../bpf/include -I../../../bpf
