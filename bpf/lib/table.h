/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reading a region: where its parts are, and what its members cost. */
#pragma once

#include "service.h"

/* A region's parts, as indexes into slots. */
struct table {
	__u32 how;
	__u32 n;
	__u32 members; /* factors follow them */
	__u32 bounds;  /* starters are before them */
};

/* A monotonic clock in ms; it wraps after 49 days. */
static __always_inline __u32 now_ms(void)
{
	return bpf_ktime_get_ns() / 1000000;
}

/* The same in us; it wraps after 71 minutes. */
static __always_inline __u32 now_us(void)
{
	return bpf_ktime_get_ns() / 1000;
}

/* Lays out a table that has factors, starters or bounds, but no order. */
static __always_inline struct table table_at(const struct pool *p, __u32 how, __u32 starters)
{
	struct table t = { .how = how, .n = p->n, .members = p->base + HEAD_SLOTS };

	t.bounds = t.members + t.n + (how & HOW_FACTORS ? (t.n + 1) / 2 : 0) + (starters + 1) / 2;
	return t;
}

/* Returns 32-bit word i of those that are packed from element first on. */
static __always_inline __u32 table_word(__u32 first, __u32 i)
{
	const struct slot *s = slot_at(first + i / 2);

	if (!s)
		return 0;
	return i & 1 ? s->alias : s->backend;
}

static __always_inline __u32 table_factor(const struct table *t, __u32 i)
{
	return t->how & HOW_FACTORS ? table_word(t->members + t->n, i) : 1;
}

/* Connections of a backend that have not ended. Closed is read first. */
static __always_inline __u32 active_of(const struct backend_stats *s)
{
	__u32 closed = READ_ONCE(s->closed);

	return (__u32)READ_ONCE(s->opened) - closed;
}

static __always_inline __u32 cost_kind(const struct table *t)
{
	return t->how >> HOW_COST_SHIFT & HOW_FIELD;
}

/* What one more connection costs at a backend that has active. */
static __always_inline __u64 backend_cost(const struct table *t, const struct backend_stats *s,
					  __u32 active, __u32 factor, __u32 now)
{
	__u32 measured, given;

	if (cost_kind(t) == COST_CONNS)
		return pick_cost_conns(active, factor);
	measured = now - READ_ONCE(s->latency.at);
	given = now - READ_ONCE(s->given);
	return pick_cost_time(active, READ_ONCE(s->latency.us), given < measured ? given : measured,
			      factor);
}

/* Counters of member i, or NULL. */
static __always_inline struct backend_stats *table_stats(const struct table *t, __u32 i)
{
	const struct slot *s = slot_at(t->members + i);

	return s ? stats_of(s->backend) : NULL;
}

/* What one more connection costs at member i with the given factor. */
static __noinline __u64 table_cost(const struct table *t, __u32 i, __u32 factor, __u32 now)
{
	struct backend_stats *s = table_stats(t, i);

	return s ? backend_cost(t, s, active_of(s), factor, now) : PICK_NONE;
}
