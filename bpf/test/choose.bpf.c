//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Programs for tests and benchmarks of lib/choose.h and lib/count.h. They work on
 * the dataplane's maps and are no part of the product.
 */
#include "../lib/choose.h"

char __license[] SEC("license") = "Dual BSD/GPL";

/* One pick with a given input. */
struct pick_call {
	__u32 service;
	__u32 scope;
	struct input in;
	__u32 open;    /* 1: the connection is counted */
	__s32 index;   /* out */
	__u32 backend; /* out */
};

SEC("syscall")
int test_pick(struct pick_call *ctx)
{
	const struct slot *head, *s;
	struct input in = ctx->in;
	struct pool p = {};
	__u32 kind, id;
	int i;

	if (pool_read(ctx->service, ctx->scope, &p))
		return 1;
	head = slot_at(p.base);
	if (!head)
		return 2;
	kind = head->how & HOW_KIND;
	i = kind == KIND_TWO || kind == KIND_LEAST || kind == KIND_FEW ? load_pick(&p, head, &in) :
									 static_pick(&p, head, &in);
	if (p.suspect && i >= 0 && is_suspect(pool_member(&p, i)))
		i = pick_another(&p, ctx->service, static_number(head, &in), i);
	ctx->index = i;
	s = slot_at(p.base + HEAD_SLOTS + i);
	if (i < 0 || !s)
		return 3;
	id = s->backend;
	ctx->backend = id;
	if (ctx->open)
		count_opened(id, SIGNAL_NONE);
	return 0;
}

/* Ends a connection of a backend. */
struct close_call {
	__u32 backend;
};

SEC("syscall")
int test_close(struct close_call *ctx)
{
	return count_closed(ctx->backend, 0);
}

#define HELD 1024

/* The backends of the last connections, to be closed in turn. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HELD + 1); /* the last one is the position */
	__type(key, __u32);
	__type(value, __u32);
} held SEC(".maps");

const volatile __u32 bench_service = 0;
const volatile __u32 bench_close = 0; /* so many are open at a time; 0: none is closed */

/* One connection: chosen, counted, and an old one closed. */
SEC("tc")
int bench_choose(struct __sk_buff *skb)
{
	struct tuple flow = { .saddr.w = { 0, 0, V4_MAPPED, bpf_get_prandom_u32() } };
	__u32 last = HELD, at, id, *pos, *old;
	struct choice c = {};

	(void)skb;
	if (choose(bench_service, SCOPE_CLUSTER, &flow, &c))
		return 1;
	count_opened(c.backend, SIGNAL_NONE);
	if (!bench_close)
		return 0;
	pos = bpf_map_lookup_elem(&held, &last);
	if (!pos)
		return 2;
	at = __sync_fetch_and_add(pos, 1) % bench_close;
	old = bpf_map_lookup_elem(&held, &at);
	if (!old)
		return 3;
	id = __sync_lock_test_and_set(old, c.backend); /* on any CPU, one closes it */
	if (id)
		count_closed(id, 0);
	return 0;
}
