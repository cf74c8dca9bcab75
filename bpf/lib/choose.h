/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a service to a backend. */
#pragma once

#include "other.h"

/* Chooses member i, picked by number, or leaves the choice to choose_other(). */
static __always_inline int choose_calm(const struct pool *p, const struct slot *head, int i,
				       __u32 number, struct choice *out)
{
	if (!p->suspect || i < 0 || !is_suspect(pool_member(p, i)))
		return choose_member(p, head, i, out);
	out->pool = *p;
	out->first = i;
	out->number = number;
	return NEEDS_OTHER;
}

/*
 * Chooses by load from the pool that choose_static() left in out; or NEEDS_OTHER. The
 * pool stays there, as the stack has no room for a copy.
 */
__noinline int choose_by_load(struct choice *out)
{
	const struct slot *head;
	struct input in = {};

	if (!out)
		return -REASON_INTERNAL;
	head = slot_at(out->pool.base);
	if (!head)
		return count_drop(REASON_INTERNAL);
	load_input(&out->pool, head, &in);
	return choose_calm(&out->pool, head, load_pick(&out->pool, head, &in), in.rand[0], out);
}

/*
 * Chooses for kinds that need no load: see choose(). For others it returns
 * NEEDS_LOAD and leaves the pool in out; for a backend that is suspect NEEDS_OTHER,
 * and leaves what choose_other() needs.
 */
__noinline int choose_static(__u32 service, __u32 scope, const struct tuple *flow,
			     struct choice *out)
{
	struct service_state *st = bpf_map_lookup_elem(&service_states, &service);
	const struct slot *head;
	struct input in = {};
	struct pool p = {};
	int err;

	if (!st || !out || scope >= SCOPES || pool_read(service, scope, &p))
		return count_drop(REASON_INTERNAL);
	if (!p.n) {
		__sync_fetch_and_add(&st->rejected, 1);
		return count_drop(-pool_refusal(&p));
	}
	head = slot_at(p.base);
	if (!head)
		return count_drop(REASON_INTERNAL);
	err = static_input(&p, head, &st->seq[scope], flow, &in);
	if (err) {
		out->pool = p;
		return err;
	}
	return choose_calm(&p, head, static_pick(&p, head, &in), static_number(head, &in), out);
}

/*
 * Chooses a backend of a service for a new connection. flow is the connection as
 * its first packet names it, or NULL if that is not known yet. Returns 0 and fills
 * out, a negative reason, or NEEDS_FLOW. Everything that the pool's word leads to
 * stays as it is until this program has ended.
 */
static __always_inline int choose(__u32 service, __u32 scope, const struct tuple *flow,
				  struct choice *out)
{
	int err = choose_static(service, scope, flow, out);

	if (err == NEEDS_LOAD)
		err = choose_by_load(out);
	return err == NEEDS_OTHER ? choose_other(service, out) : err;
}
