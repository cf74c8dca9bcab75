/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The member that costs least. Members are looked at in groups of 32. For the cost
 * COST_CONNS and more than one group a region has a bound for each group: no
 * member of it costs less. A bound's lower 48 bits are the cost, 0 if it is not
 * known; the upper 16 are a version that changes with every change. One element
 * before the bounds is set to say that none is known any more.
 * docs/adr/0006-least-structure.md says why that is right while others open and
 * close connections and the agent replaces the region.
 */
#pragma once

#include "table.h"

#define BOUND_COST ((1ULL << 48) - 1)
#define BOUND_VERSION (1ULL << 48)
#define BOUNDS_AT_ONCE 8
#define LOOK_AT_ONCE 8
#define BOUND_TRIES 8
#define GROUPS 2048 /* of the largest table */
#define GROUPS_AT_ONCE 64

/* A search for the member that costs least, from a random member on. */
struct search {
	struct table t;
	__u32 now;
	__u32 start;
	__u64 limit; /* do not look at groups whose bound is higher */
	__u64 best;  /* what the member costs that was found */
	__u64 after; /* the least in its group once it has one connection more */
	__u64 word;  /* its group's bound, as it was before its members were read */
	__u32 index; /* the member that was found */
	__u32 group; /* its group; counted from that of start */
};

/* A look at members [first, first + size), cyclic from first + from on. */
struct look {
	__u32 first;
	__u32 size;
	__u32 from;
	__u32 index; /* the one that costs least */
	__u64 least;
	__u64 second;
	__u64 more; /* what it would cost with one connection more */
};

static __always_inline __u32 groups_of(const struct table *t)
{
	return pick_groups(t->n);
}

/* The group that is i after the one of start. */
static __always_inline __u32 search_at(const struct search *s, __u32 i)
{
	__u32 g = s->start / PICK_GROUP + i, groups = groups_of(&s->t);

	return g < groups ? g : g - groups;
}

static __always_inline __u64 *bound_of(const struct table *t, __u32 group)
{
	__u32 i = t->bounds + 1 + group;

	return bpf_map_lookup_elem(&slots, &i);
}

/* Says that no bound is known any more. */
static __always_inline void bounds_spoil(const struct table *t)
{
	__u32 i = t->bounds;
	__u64 *spoilt = bpf_map_lookup_elem(&slots, &i);

	if (spoilt)
		WRITE_ONCE(*spoilt, 1);
}

/* Replaces a bound if it is still word. Returns what it is now, as far as we know. */
static __always_inline __u64 bound_set(__u64 *bound, __u64 word, __u64 cost)
{
	__u64 next =
		((word & ~BOUND_COST) + BOUND_VERSION) | (cost < BOUND_COST ? cost : BOUND_COST);

	return __sync_val_compare_and_swap(bound, word, next) == word ? next : word;
}

/*
 * Looks at the member that is j-th in turn. Starters and those of weight 0 do not
 * count. This and others here are global so that they are verified once, and not for
 * each round of each loop.
 */
__noinline int look_at(struct look *l, const struct search *s, __u32 j)
{
	struct backend_stats *st;
	__u32 at, i, factor, active;
	__u64 cost;

	if (!l || !s)
		return 0;
	at = l->from + j;
	i = l->first + (at < l->size ? at : at - l->size);
	factor = table_factor(&s->t, i);
	if (!pick_established(factor))
		return 0;
	st = table_stats(&s->t, i);
	if (!st)
		return 0;
	active = active_of(st);
	cost = backend_cost(&s->t, st, active, factor, s->now);
	if (cost < l->least) {
		l->second = l->least;
		l->least = cost;
		l->more = pick_cost_conns(active + 1, factor);
		l->index = i;
	} else if (cost < l->second) {
		l->second = cost;
	}
	return 0;
}

/*
 * Looks at some members of a whole group by COST_CONNS, from the j-th in turn on: as
 * look_at(), with less work for each.
 */
__noinline int look_at_some(struct look *l, const struct search *s, __u32 j)
{
	__u32 first, from, index;
	__u64 least, second;
	bool factors;

	if (!l || !s)
		return 0;
	first = l->first;
	from = l->from + j;
	index = l->index;
	least = l->least;
	second = l->second;
	factors = s->t.how & HOW_FACTORS;
	for (__u32 k = 0; k < LOOK_AT_ONCE; k++) {
		__u32 i = first + (from + k) % PICK_GROUP;
		__u32 factor = factors ? table_word(s->t.members + s->t.n, i) : 1;
		struct backend_stats *st = table_stats(&s->t, i);
		__u64 cost;

		if (!st || !pick_established(factor))
			continue;
		cost = pick_cost_conns(active_of(st), factor);
		if (cost < least) {
			second = least;
			least = cost;
			index = i;
			l->more = cost + factor;
		} else if (cost < second) {
			second = cost;
		}
	}
	l->index = index;
	l->least = least;
	l->second = second;
	return 0;
}

/*
 * Looks at the group that is i after the one of start, unless its bound says that
 * there is nothing to find.
 */
__noinline int search_group(struct search *s, __u32 i)
{
	struct look l = { .least = PICK_NONE, .second = PICK_NONE, .more = PICK_NONE };
	__u64 *bound = NULL, word = 0;
	__u32 g;

	if (!s)
		return 0;
	g = search_at(s, i);
	if (s->t.how & HOW_BOUNDS) {
		bound = bound_of(&s->t, g);
		if (!bound)
			return 0;
		word = __sync_fetch_and_add(bound, 0); /* before the members, on any CPU */
		if ((word & BOUND_COST) >= s->best || (word & BOUND_COST) > s->limit)
			return 0;
	}
	l.first = g * PICK_GROUP;
	l.size = pick_group_size(g, s->t.n);
	l.from = s->start % PICK_GROUP % l.size;
	if (l.size == PICK_GROUP && cost_kind(&s->t) == COST_CONNS) {
		for (__u32 j = 0; j < PICK_GROUP; j += LOOK_AT_ONCE)
			look_at_some(&l, s, j);
	} else {
		for (__u32 j = 0; j < PICK_GROUP && j < l.size; j++)
			look_at(&l, s, j);
	}
	if (bound && l.least > (word & BOUND_COST))
		word = bound_set(bound, word, l.least);
	if (l.least >= s->best)
		return 0;
	s->best = l.least;
	s->after = l.second < l.more ? l.second : l.more;
	s->word = word;
	s->index = l.index;
	s->group = i;
	return 0;
}

/* Finds the first group with the lowest bound: limit and group. */
static long search_bounds(__u32 i, struct search *s)
{
	__u32 groups = groups_of(&s->t);

	for (__u32 j = 0; j < BOUNDS_AT_ONCE; j++) {
		__u32 k = i * BOUNDS_AT_ONCE + j;
		__u64 *bound, cost;

		if (k >= groups)
			return 1;
		bound = bound_of(&s->t, search_at(s, k));
		if (!bound)
			return 1;
		cost = READ_ONCE(*bound) & BOUND_COST;
		if (cost < s->limit) {
			s->limit = cost;
			s->group = k;
		}
	}
	return !s->limit; /* not known: it cannot be lower */
}

/* Looks at groups from first on. */
__noinline int search_groups(struct search *s, __u32 first)
{
	if (!s)
		return 0;
	for (__u32 i = 0; i < GROUPS_AT_ONCE && first + i < groups_of(&s->t); i++)
		search_group(s, first + i);
	return 0;
}

static long bound_forget(__u32 i, struct search *s)
{
	__u64 *bound = bound_of(&s->t, i);

	if (!bound)
		return 1;
	__sync_fetch_and_add(bound, BOUND_VERSION);
	__sync_fetch_and_and(bound, ~BOUND_COST);
	return 0;
}

/* Forgets all bounds if somebody spoilt them. */
static __always_inline void bounds_refresh(struct search *s)
{
	__u32 i = s->t.bounds;
	__u64 *spoilt = bpf_map_lookup_elem(&slots, &i);

	if (spoilt && READ_ONCE(*spoilt) && __sync_val_compare_and_swap(spoilt, 1, 0) == 1)
		bpf_loop(groups_of(&s->t), bound_forget, s, 0);
}

/*
 * Looks where the lowest bound is. That is all there is to do if a member costs no
 * more than the bound said; otherwise it leaves a limit for the full search.
 */
static __always_inline bool search_lowest(struct search *s)
{
	__u64 lowest;

	bounds_refresh(s);
	s->limit = BOUND_COST; /* that of groups in which nobody can be picked */
	bpf_loop((groups_of(&s->t) + BOUNDS_AT_ONCE - 1) / BOUNDS_AT_ONCE, search_bounds, s, 0);
	lowest = s->limit;
	s->limit = PICK_NONE;
	if (!lowest)
		return false;
	search_group(s, s->group);
	if (s->best <= lowest)
		return true;
	s->limit = s->best;
	s->best = PICK_NONE;
	return false;
}

/* Finds the member that costs least: best is PICK_NONE if there is none. */
static __always_inline void search_least(struct search *s)
{
	s->best = s->limit = PICK_NONE;
	if (s->t.how & HOW_BOUNDS && search_lowest(s))
		return;
	for (__u32 i = 0; i < GROUPS && i < groups_of(&s->t); i += GROUPS_AT_ONCE)
		search_groups(s, i);
	if (s->best == PICK_NONE) /* all bounds rose meanwhile: what was found first will do */
		s->best = s->limit;
}

/* Notes that the member that was found gets a connection. */
static __always_inline void search_taken(const struct search *s)
{
	__u64 *bound;

	if (!(s->t.how & HOW_BOUNDS) || s->after == (s->word & BOUND_COST))
		return;
	bound = bound_of(&s->t, search_at(s, s->group));
	if (bound)
		bound_set(bound, s->word, s->after);
}

/* Finds the cheapest of a few members from start on. */
__noinline int search_few(struct search *s)
{
	struct look l = { .least = PICK_NONE, .second = PICK_NONE };

	if (!s)
		return 0;
	l.size = s->t.n;
	l.from = s->start;
	for (__u32 j = 0; j < FEW_MEMBERS && j < l.size; j++)
		look_at(&l, s, j);
	s->best = l.least;
	s->index = l.index;
	return 0;
}

/* Lowers the bound of a backend's group in one pool to what it costs now. */
static __noinline int bound_lower(__u32 id, __u32 service, __u32 scope, __u32 place, __u32 active)
{
	const struct slot *head, *more, *member;
	__u64 *bound, cost, word;
	struct pool p = {};
	struct table t;
	__u32 factor;

	if (pool_read(service, scope, &p) || !p.n)
		return 0;
	head = slot_at(p.base);
	more = slot_at(p.base + 1);
	if (!head || !more || !(head->how & HOW_BOUNDS))
		return 0;
	t = table_at(&p, head->how, more->starters);
	member = slot_at(t.members + place);
	if (place >= p.n || !member || member->backend != id) { /* the agent is at work */
		bounds_spoil(&t);
		return 0;
	}
	factor = table_factor(&t, place);
	if (!pick_established(factor))
		return 0;
	cost = pick_cost_conns(active, factor);
	bound = bound_of(&t, place / PICK_GROUP);
	if (!bound)
		return 0;
	for (int i = 0; i < BOUND_TRIES; i++) { /* the version changes even if the cost does not */
		word = READ_ONCE(*bound);
		if (bound_set(bound, word, (word & BOUND_COST) < cost ? word & BOUND_COST : cost) !=
		    word)
			return 0;
	}
	bounds_spoil(&t);
	return 0;
}

/* Lowers the bounds of a backend that has active connections left. */
static __always_inline void bounds_lower(__u32 id, __u32 active)
{
	struct backend *be = bpf_map_lookup_elem(&backends, &id);

	if (!be)
		return;
	if ((int)active < 0) /* an end may be counted before its beginning */
		active = 0;
	if (be->place[SCOPE_CLUSTER] != NO_PLACE)
		bound_lower(id, be->service, SCOPE_CLUSTER, be->place[SCOPE_CLUSTER], active);
	if (be->place[SCOPE_LOCAL] != NO_PLACE)
		bound_lower(id, be->service, SCOPE_LOCAL, be->place[SCOPE_LOCAL], active);
}
