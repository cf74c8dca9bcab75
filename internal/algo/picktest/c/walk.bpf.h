/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A table in memory and the plainest walk over it with lib/pick.h: the same code
 * in the kernel and on the host. The includer declares bpf_loop.
 */
#pragma once

#include "lib/pick.h"

#define MEMBERS 65536
#define PLACES (3 * MEMBERS)
#define CALLS 4096
#define CALL_WORDS 12

enum op {
	OP_PICK,    /* words: 5 of Rand, Seq, Hash; result: a member */
	OP_SOURCE,  /* words: address */
	OP_PORT,    /* words: address, port */
	OP_TUPLE,   /* words: address, address, port, port, protocol */
	OP_LATENCY, /* words: old, sample, idle */
};

enum pick_kind {
	PICK_KIND_NONE,
	PICK_KIND_RAND,
	PICK_KIND_SEQ,
	PICK_KIND_HASH,
	PICK_KIND_TWO,
	PICK_KIND_LEAST,
	PICK_KIND_FEW,
};

enum pick_cost {
	PICK_COST_NONE,
	PICK_COST_CONNS,
	PICK_COST_TIME,
};

struct control {
	__u64 seed;
	enum op op;
	__u32 calls; /* how many of the calls to make */
	__u32 kind;
	__u32 cost;
	__u32 n;
	__u32 aliases; /* how many, and so on; 0: nil */
	__u32 places;
	__u32 factors;
	__u32 starters;
	__u32 pad;
};

struct load {
	__u32 active;
	__u32 latency;
	__u32 idle;
};

struct call {
	__u32 w[CALL_WORDS];
};

/* Everything that is read and written from outside; one variable, so one layout. */
struct state {
	struct control control;
	__u32 alias[MEMBERS];
	__u16 order[PLACES];
	__u32 factor[MEMBERS];
	__u32 starter[MEMBERS];
	struct load load[MEMBERS];
	struct call call[CALLS];
	__u32 result[CALLS];
};

struct state bench;

/* Lets the verifier see the check of an index: the compiler may not split its uses. */
#define same_register(i) asm volatile("" : "+r"(i))

/* Returns i, which is below MEMBERS, so that the verifier sees it. */
static __always_inline __u32 bounded(__u32 i)
{
	i &= MEMBERS - 1;
	same_register(i);
	return i;
}

/* The cheapest so far. */
struct walk {
	__u64 cost;
	__u32 best;
	__u32 start;
};

static __always_inline __u32 factor_word(__u32 i)
{
	if (!bench.control.factors)
		return 1;
	return bench.factor[bounded(i)];
}

static __always_inline __u64 cost_of(__u32 i)
{
	__u32 f = pick_factor(factor_word(i));
	const struct load *l = &bench.load[bounded(i)];

	if (bench.control.cost == PICK_COST_TIME)
		return pick_cost_time(l->active, l->latency, l->idle, f);
	return pick_cost_conns(l->active, f);
}

static __always_inline void consider(struct walk *w, __u32 i)
{
	__u64 c;

	if (!pick_established(factor_word(i)))
		return;
	c = cost_of(i);
	if (c < w->cost) {
		w->cost = c;
		w->best = i;
	}
}

static __always_inline __u32 draw(__u32 i, __u32 rand)
{
	return bench.control.aliases ? pick_aliased(i, bench.alias[bounded(i)], rand) : i;
}

static __always_inline void two(const struct call *c, struct walk *w)
{
	__u32 i = pick_scale(c->w[0], bench.control.n), j;

	if (bench.control.aliases)
		j = pick_scale(c->w[2], bench.control.n);
	else
		j = pick_second(i, c->w[2], bench.control.n);
	w->best = draw(i, c->w[1]);
	w->cost = cost_of(w->best);
	j = draw(j, c->w[3]);
	if (cost_of(j) < w->cost) {
		w->best = j;
		w->cost = cost_of(j);
	}
}

static long visit_group(__u32 k, void *ctx)
{
	__u32 group, size;
	struct walk *w = ctx;

	group = pick_group(w->start, k, pick_groups(bench.control.n));
	size = pick_group_size(group, bench.control.n);
	for (__u32 i = 0; i < PICK_GROUP && i < size; i++)
		consider(w, pick_group_member(group, w->start, i, size));
	return 0;
}

static long visit(__u32 k, void *ctx)
{
	struct walk *w = ctx;

	consider(w, (w->start + k) % bench.control.n);
	return 0;
}

/* Returns the member in slow start that goes first, or the choice of w. */
static __always_inline __u32 start(const struct call *c, const struct walk *w)
{
	__u32 i, word;

	if (!bench.control.starters)
		return w->best;
	i = pick_starter(c->w[4], bench.control.starters);
	word = bench.starter[bounded(i)];
	if (!pick_starts(word, c->w[4], bench.control.starters) || cost_of(word & 0xffff) > w->cost)
		return w->best;
	return word & 0xffff;
}

static __always_inline __u32 ordered(__u32 place)
{
	if (!bench.control.places)
		return place;
	same_register(place);
	if (place >= PLACES)
		return ~0U;
	same_register(place);
	return bench.order[place];
}

static __always_inline __u32 pick(const struct call *c)
{
	__u32 len = bench.control.places ? bench.control.places : bench.control.n;
	struct walk w = { .cost = PICK_NONE };

	if (!bench.control.n)
		return ~0U;
	w.start = pick_scale(c->w[0], bench.control.n);
	switch (bench.control.kind) {
	case PICK_KIND_RAND:
		return draw(w.start, c->w[1]);
	case PICK_KIND_SEQ:
		return ordered(pick_place(c->w[5], len));
	case PICK_KIND_HASH:
		return ordered(pick_scale(c->w[6], len));
	case PICK_KIND_TWO:
		two(c, &w);
		break;
	case PICK_KIND_FEW:
		bpf_loop(bench.control.n < FEW_MEMBERS ? bench.control.n : FEW_MEMBERS, visit, &w,
			 0);
		if (w.cost != PICK_NONE)
			break;
		/* fall through */
	case PICK_KIND_LEAST:
		bpf_loop(pick_groups(bench.control.n), visit_group, &w, 0);
		break;
	}
	return start(c, &w);
}

/* Makes call i. It returns 1 to stop. */
static long make_call(__u32 i, void *ctx)
{
	const struct call *c;

	(void)ctx;
	if (i >= CALLS)
		return 1;
	c = &bench.call[i];
	switch (bench.control.op) {
	case OP_PICK:
		bench.result[i] = pick(c);
		break;
	case OP_SOURCE:
		bench.result[i] = pick_hash_source(bench.control.seed, c->w);
		break;
	case OP_PORT:
		bench.result[i] = pick_hash_port(bench.control.seed, c->w, c->w[4]);
		break;
	case OP_TUPLE:
		bench.result[i] = pick_hash_tuple(bench.control.seed, c->w, c->w + 4, c->w[8],
						  c->w[9], c->w[10]);
		break;
	case OP_LATENCY:
		bench.result[i] = pick_latency(c->w[0], c->w[1], c->w[2]);
		break;
	}
	return 0;
}
