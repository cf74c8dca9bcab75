/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is counted and measured of backends. */
#pragma once

#include "least.h"
#include "suspect.h"

/* Counts a new connection; signal says what is measured of it. */
static __always_inline void count_opened(__u32 id, __u8 signal)
{
	struct backend_stats *s = stats_of(id);

	if (!s)
		return;
	if (signal)
		WRITE_ONCE(s->given, now_ms());
	__sync_fetch_and_add(&s->opened, 1);
}

/* Counts a connection that its backend has answered. */
__noinline int count_answered(__u32 id)
{
	struct suspect *s = bpf_map_lookup_elem(&suspects, &id);

	if (s)
		__sync_fetch_and_add(&s->answered, 1);
	return 0;
}

/* Counts the end of a connection. */
__noinline int count_closed(__u32 id, __u32 failed)
{
	struct backend_stats *s = stats_of(id);
	__u64 closed;

	if (!s)
		return 0;
	if (failed)
		__sync_fetch_and_add(&s->failed, 1);
	closed =
		__sync_fetch_and_add(&s->closed, 1) + 1; /* before the pools are read, on any CPU */
	bounds_lower(id, READ_ONCE(s->opened) - closed);
	return 0;
}

/* Takes back that a backend was picked: it was not given the connection. */
__noinline int pick_undo(__u32 id)
{
	struct backend_stats *s = stats_of(id);

	if (s)
		bounds_lower(id, active_of(s));
	return 0;
}

#define LATENCY_AT_LEAST (1U << 31) /* in a unit: it did not end, and took longer */

/*
 * Adds how long something took, in units of so many us, to a backend's average. Of
 * two at a time one counts. What failed counts as PICK_LATENCY_MAX: a backend that
 * refuses at once would be the fastest.
 */
__noinline int latency_add(__u32 id, __u32 took, __u32 unit)
{
	__u64 us = (__u64)took * (unit & ~LATENCY_AT_LEAST);
	struct backend_stats *s = stats_of(id);
	union {
		__u64 word;
		struct latency l;
	} old, new;

	if (!s)
		return 0;
	old.word = READ_ONCE(*(__u64 *)&s->latency);
	if (unit & LATENCY_AT_LEAST && us < old.l.us)
		us = old.l.us;
	new.l.at = now_ms();
	new.l.us = pick_latency(old.l.us, us < PICK_LATENCY_MAX ? us : PICK_LATENCY_MAX,
				new.l.at - old.l.at);
	__sync_val_compare_and_swap((__u64 *)&s->latency, old.word, new.word);
	return 0;
}
