/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Makes picks on the host. Reads commands {offset, length}: length bytes that
 * follow go to that offset of the bench. With length 0 it makes the calls and
 * writes their results.
 */
#include <stdio.h>
#include "base.h"

static long bpf_loop(__u32 n, long (*fn)(__u32, void *), void *ctx, __u64 flags)
{
	(void)flags;
	for (__u32 i = 0; i < n; i++)
		if (fn(i, ctx))
			return i + 1;
	return n;
}

#include "walk.bpf.h"

int main(void)
{
	__u32 calls, head[2];

	while (fread(head, sizeof(head), 1, stdin) == 1) {
		if (head[0] > sizeof(bench) || head[1] > sizeof(bench) - head[0])
			return 1;
		if (head[1]) {
			if (fread((char *)&bench + head[0], head[1], 1, stdin) != 1)
				return 2;
			continue;
		}
		calls = bench.control.calls;
		bpf_loop(calls, make_call, NULL, 0);
		if (fwrite(bench.result, sizeof(bench.result[0]), calls, stdout) != calls ||
		    fflush(stdout))
			return 3;
	}
	return 0;
}
