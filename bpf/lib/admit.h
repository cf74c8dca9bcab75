/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who may use a frontend, and which addresses have frontends at all. */
#pragma once

#include "affinity.h"

/* Says whether a is one of the service's source ranges. */
static __noinline bool source_allowed(__u32 service, const struct addr *a)
{
	struct source_range key = { .len = 32 + 128, .service = service, .addr = *a };

	return bpf_map_lookup_elem(&source_ranges, &key);
}

/*
 * Says whether addr is a cluster IP. For one that has a frontend the question is not
 * asked; so most packets that ask are for elsewhere, and leave at the range.
 */
static __noinline bool is_cluster_ip(const struct addr *a)
{
	const struct settings *set = settings_of_node();
	const __u32 v6 = addr_is_v4(a) ? 0 : 1;
	struct frontend_key key = {};
	const struct range *r;

	if (!set)
		return false;
	r = &set->cluster[v6];
	if (((a->w[0] ^ r->bits.w[0]) & r->mask.w[0]) | ((a->w[1] ^ r->bits.w[1]) & r->mask.w[1]) |
	    ((a->w[2] ^ r->bits.w[2]) & r->mask.w[2]) | ((a->w[3] ^ r->bits.w[3]) & r->mask.w[3]))
		return false;
	key.addr = *a;
	return bpf_map_lookup_elem(&frontends, &key);
}
