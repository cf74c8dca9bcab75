/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Another member of a pool instead of one that is suspect. */
#pragma once

#include "member.h"

/* Returns the backend that is member i of a pool, or 0. */
static __always_inline __u32 pool_member(const struct pool *p, __u32 i)
{
	const struct slot *s = slot_at(p->base + HEAD_SLOTS + i);

	return s ? s->backend : 0;
}

/*
 * Says whether member i of a pool takes new connections and is not suspect. This and
 * others below are global so that they are verified once: see look_at().
 */
__noinline int takes_new(const struct pool *p, __u32 i)
{
	struct backend *be;
	__u32 id;

	if (!p)
		return false;
	id = pool_member(p, i);
	be = bpf_map_lookup_elem(&backends, &id);
	return be && be->pools & 1 << p->scope % SCOPES && !is_suspect(id);
}

/* Walks through some members behind i. Returns the first that takes_new(), or -ENOENT. */
static __noinline int other_behind(const struct pool *p, __u32 i)
{
	for (__u32 k = 1; k < PICK_WALK && k < p->n; k++) {
		i = i + 1 < p->n ? i + 1 : 0;
		if (takes_new(p, i))
			return i;
	}
	return -ENOENT;
}

/*
 * Picks for the k-th time instead of by number. Returns an index, or -ENOENT if that is
 * a suspect, too.
 */
__noinline int pick_again(const struct pool *p, __u32 number, __u32 k)
{
	const struct slot *head;
	struct input in = {};
	int i;

	if (!p)
		return -ENOENT;
	head = slot_at(p->base);
	if (!head)
		return -ENOENT;
	in.rand[0] = in.hash = pick_other(number, k);
	in.rand[1] = in.rand[0] * p->n;
	in.seq = number + k;
	i = static_pick(p, head, &in);
	return i < 0 || is_suspect(pool_member(p, i)) ? -ENOENT : i;
}

/*
 * Picks anew by other numbers, turns or hashes than number, for a backend that is not
 * suspect. Returns its index, or -ENOENT. Turns that are passed over are taken.
 */
static __noinline int other_static(const struct pool *p, __u32 service, __u32 number)
{
	struct service_state *st = bpf_map_lookup_elem(&service_states, &service);
	const struct slot *head = slot_at(p->base);
	int i;

	if (!st || !head)
		return -ENOENT;
	for (__u32 k = 1; k <= PICK_AGAIN; k++) {
		i = pick_again(p, number, k);
		if (i < 0)
			continue;
		if ((head->how & HOW_KIND) == KIND_SEQ)
			__sync_fetch_and_add(&st->seq[p->scope % SCOPES], k);
		return i;
	}
	return -ENOENT;
}

/* Looks at the member that is j-th in turn, unless it is suspect. */
__noinline int look_at_calm(struct look *l, const struct search *s, __u32 j)
{
	const struct slot *member;
	__u32 at;

	if (!l || !s)
		return 0;
	at = l->from + j;
	member = slot_at(s->t.members + (at < l->size ? at : at - l->size));
	return member && !is_suspect(member->backend) ? look_at(l, s, j) : 0;
}

/*
 * Picks the cheapest of some members, from a random one on, that are not suspect. Returns
 * its index, or -ENOENT. It neither heeds nor changes bounds: suspicion leaves no trace there.
 */
static __noinline int other_by_load(const struct pool *p, __u32 number)
{
	struct look l = { .least = PICK_NONE, .second = PICK_NONE, .size = p->n };
	const struct slot *head = slot_at(p->base), *more = slot_at(p->base + 1);
	struct search s = {};

	if (!head || !more)
		return -ENOENT;
	s.t = table_at(p, head->how, more->starters);
	s.now = now_ms();
	l.from = pick_scale(pick_other(number, 1), p->n);
	for (__u32 j = 0; j < PICK_WALK && j < l.size; j++)
		look_at_calm(&l, &s, j);
	return l.least == PICK_NONE ? -ENOENT : (int)l.index;
}

/*
 * Chooses another member than first of a pool, which is suspect and was picked by number,
 * if one is found that is not suspect. Otherwise it is first: all may be down, or none.
 */
static __always_inline int pick_another(const struct pool *p, __u32 service, __u32 number,
					__u32 first)
{
	const struct slot *head = slot_at(p->base);
	int i;

	if (!head)
		return first;
	switch (head->how & HOW_KIND) {
	case KIND_RAND:
	case KIND_SEQ:
	case KIND_HASH:
		i = other_static(p, service, number);
		break;
	default:
		i = other_by_load(p, number);
	}
	if (i < 0)
		i = other_behind(p, first);
	if (i < 0)
		return first;
	pick_undo(pool_member(p, first));
	return i;
}

/* Chooses instead of the backend that choose_static() or choose_by_load() left in out. */
__noinline int choose_other(__u32 service, struct choice *out)
{
	const struct slot *head;
	struct pool p;
	int i;

	if (!out)
		return -REASON_INTERNAL;
	p = out->pool;
	head = slot_at(p.base);
	if (!head)
		return count_drop(REASON_INTERNAL);
	i = pick_another(&p, service, out->number, out->first);
	return choose_member(&p, head, i, out);
}
