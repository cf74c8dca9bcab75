/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Makes picks in the kernel, for tests and the simulator. Never in the product. */
#include "uapi.h"
#include "bpf_helpers.h"
#include "walk.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("syscall")
int run_calls(void *ctx)
{
	(void)ctx;
	return bpf_loop(bench.control.calls, make_call, NULL, 0) < 0;
}
