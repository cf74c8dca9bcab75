/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a pool to a member of it. */
#pragma once

#include "count.h"

/* What choose_static() returns beyond reasons. */
#define NEEDS_FLOW (-(int)REASONS)	/* it was not told what is hashed */
#define NEEDS_LOAD (-(int)REASONS - 1)	/* the kind compares loads */
#define NEEDS_OTHER (-(int)REASONS - 2) /* the backend is suspect */

/* A backend that was chosen for a connection. */
struct choice {
	union {
		struct addr addr;
		struct pool pool; /* until it was chosen: where from */
	};
	union {
		__u32 backend;
		__u32 first; /* until it was chosen: the member that is suspect */
	};
	union {
		__u32 gen;
		__u32 number; /* until it was chosen: what first was picked by */
	};
	__be16 port;
	__u8 signal; /* enum signal: what is to be measured */
	__u8 flags;  /* enum choice_flags */
};

enum choice_flags {
	CHOICE_PASSING = 1 << 0, /* the client keeps another backend, which is suspect */
	CHOICE_BEGUN = 1 << 1,	 /* the packet is the first one of a TCP connection */
};

/* Everything that a pick may depend on, beyond the table: Input in internal/algo. */
struct input {
	__u32 rand[5];
	__u32 seq;
	__u32 hash;
};

/* The address of a flow's source, all bits cleared that do not count. */
static __always_inline struct addr masked(const struct addr *a, const struct slot *prefixes)
{
	__u32 len = addr_is_v4(a) ? 96 + prefixes->prefix4 : prefixes->prefix6;
	struct addr m;

#pragma unroll
	for (__u32 i = 0; i < 4; i++) {
		__u32 bits = len > 32 * i ? len - 32 * i : 0;

		m.w[i] = a->w[i] & bpf_htonl(bits >= 32 ? ~0U : ~(~0U >> bits));
	}
	return m;
}

/* Hash of what should always lead to the same backend; prefixes is head 2. */
static __always_inline __u32 flow_hash(const struct tuple *flow, __u32 how,
				       const struct slot *prefixes)
{
	const struct settings *set = settings_of_node();
	__u64 seed = set ? set->hash_seed : 0;
	struct addr source = masked(&flow->saddr, prefixes);

	switch (how >> HOW_KEY_SHIFT & HOW_FIELD) {
	case HASH_SOURCE_PORT:
		return pick_hash_port(seed, source.w, bpf_ntohs(flow->sport));
	case HASH_TUPLE:
		return pick_hash_tuple(seed, source.w, flow->daddr.w, bpf_ntohs(flow->sport),
				       bpf_ntohs(flow->dport), flow->proto);
	}
	return pick_hash_source(seed, source.w);
}

/* Picks by order: element first holds its first four places. */
static __always_inline int order_pick(__u32 first, __u32 place)
{
	const struct slot *s = slot_at(first + place / 4);

	return s ? (int)pick_packed(*(const __u64 *)s, place) : -REASON_INTERNAL;
}

/* Draws a member: index i, or its alias. */
static __always_inline __u32 table_draw(const struct table *t, __u32 i, __u32 rand)
{
	const struct slot *s = slot_at(t->members + i);

	return s ? pick_aliased(i, s->alias, rand) : i;
}

/* Of two members at random, finds the one that costs less. */
static __always_inline void search_two(struct search *s, const struct input *in)
{
	__u32 i = pick_scale(in->rand[0], s->t.n), j;
	__u64 cost;

	if (s->t.how & HOW_ALIAS) {
		i = table_draw(&s->t, i, in->rand[1]);
		j = table_draw(&s->t, pick_scale(in->rand[2], s->t.n), in->rand[3]);
	} else {
		j = pick_second(i, in->rand[2], s->t.n);
	}
	s->index = i;
	s->best = table_cost(&s->t, i, table_factor(&s->t, i), s->now);
	cost = table_cost(&s->t, j, table_factor(&s->t, j), s->now);
	if (cost < s->best) {
		s->index = j;
		s->best = cost;
	}
}

/* Says if a backend in slow start takes the connection instead, and which. */
__noinline int starter_wins(struct search *s, __u32 starters, __u32 rand)
{
	__u32 word, i, factor;

	if (!s)
		return false;
	word = table_word(s->t.bounds - (starters + 1) / 2, pick_starter(rand, starters));
	i = word & 0xffff;
	if (!pick_starts(word, rand, starters))
		return false;
	factor = pick_factor(table_factor(&s->t, i));
	if (table_cost(&s->t, i, factor, s->now) > s->best)
		return false;
	s->index = i;
	return true;
}

/* Picks by load. */
static __always_inline int load_pick(const struct pool *p, const struct slot *head,
				     const struct input *in)
{
	const struct slot *more = slot_at(p->base + 1);
	struct search s = {};
	__u32 starters;

	if (!more)
		return -REASON_INTERNAL;
	starters = more->starters;
	s.t = table_at(p, head->how, starters);
	if (cost_kind(&s.t) == COST_TIME)
		s.now = now_ms();
	s.start = pick_scale(in->rand[0], p->n);
	if ((s.t.how & HOW_KIND) == KIND_TWO) {
		search_two(&s, in);
	} else {
		s.best = PICK_NONE;
		if ((s.t.how & HOW_KIND) == KIND_FEW)
			search_few(&s);
		if (s.best == PICK_NONE)
			search_least(&s);
		if (s.best == PICK_NONE)
			return -REASON_INTERNAL;
	}
	if (!(starters && starter_wins(&s, starters, in->rand[4])) &&
	    (s.t.how & HOW_KIND) == KIND_LEAST)
		search_taken(&s);
	return s.index;
}

/* Picks by a number, a sequence or a hash. Returns an index, or a negative reason. */
static __always_inline int static_pick(const struct pool *p, const struct slot *head,
				       const struct input *in)
{
	__u32 first = p->base + HEAD_SLOTS, how = head->how, i;
	const struct slot *s;

	switch (how & HOW_KIND) {
	case KIND_RAND:
		i = pick_scale(in->rand[0], p->n);
		if (!(how & HOW_ALIAS))
			return i;
		s = slot_at(first + i);
		return s ? (int)pick_aliased(i, s->alias, in->rand[1]) : -REASON_INTERNAL;
	case KIND_SEQ:
		if (!head->order_len)
			return pick_place(in->seq, p->n);
		return order_pick(first + p->n, pick_place(in->seq, head->order_len));
	case KIND_HASH:
		if (!head->order_len)
			return pick_scale(in->hash, p->n);
		return order_pick(first + p->n, pick_scale(in->hash, head->order_len));
	}
	return -REASON_INTERNAL;
}

/* Makes the input of one pick, as much of it as the kind reads. */
static __always_inline int static_input(const struct pool *p, const struct slot *head, __u32 *seq,
					const struct tuple *flow, struct input *in)
{
	const struct slot *more;

	switch (head->how & HOW_KIND) {
	case KIND_SEQ:
		more = slot_at(p->base + 1);
		in->seq = __sync_fetch_and_add(seq, 1) + (more ? more->seq_start : 0);
		return 0;
	case KIND_HASH:
		if (!flow)
			return NEEDS_FLOW;
		more = slot_at(p->base + 2);
		in->hash = more ? flow_hash(flow, head->how, more) : 0;
		return 0;
	case KIND_RAND:
		in->rand[0] = bpf_get_prandom_u32();
		in->rand[1] = in->rand[0] * p->n; /* what scaling leaves is random too */
		return 0;
	}
	return NEEDS_LOAD;
}

/* The number that a pick was made by. */
static __always_inline __u32 static_number(const struct slot *head, const struct input *in)
{
	switch (head->how & HOW_KIND) {
	case KIND_SEQ:
		return in->seq;
	case KIND_HASH:
		return in->hash;
	}
	return in->rand[0];
}

/* Up to here what scaling leaves of a random number does for another pick. */
#define SCALED_TWICE 4096

static __always_inline void load_input(const struct pool *p, const struct slot *head,
				       struct input *in)
{
	const struct slot *more = slot_at(p->base + 1);

	in->rand[0] = bpf_get_prandom_u32();
	in->rand[1] = in->rand[0] * p->n; /* what scaling leaves is random too */
	if ((head->how & HOW_KIND) == KIND_TWO) {
		if (head->how & HOW_ALIAS || p->n > SCALED_TWICE)
			in->rand[2] = bpf_get_prandom_u32();
		else
			in->rand[2] = in->rand[1];
		in->rand[3] = in->rand[2] * p->n;
	}
	if (more && more->starters)
		in->rand[4] = bpf_get_prandom_u32();
}

/* Fills out with member i of a pool, or counts that there is none. */
static __always_inline int choose_member(const struct pool *p, const struct slot *head, int i,
					 struct choice *out)
{
	const struct slot *s;
	struct backend *be;
	__u32 id;

	if (i < 0)
		return count_drop(-i);
	s = slot_at(p->base + HEAD_SLOTS + i);
	if (!s)
		return count_drop(REASON_INTERNAL);
	id = s->backend;
	be = bpf_map_lookup_elem(&backends, &id);
	if (!be)
		return count_drop(REASON_INTERNAL);
	out->backend = id;
	out->addr = be->addr;
	out->port = be->port;
	out->gen = be->gen;
	out->signal = head->how >> HOW_SIGNAL_SHIFT & HOW_FIELD;
	return 0;
}
