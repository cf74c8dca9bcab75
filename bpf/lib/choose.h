/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a pool to a backend. */
#pragma once

#include "count.h"

/* What choose_static() returns beyond reasons. */
#define NEEDS_FLOW (-(int)REASONS)     /* it was not told what is hashed */
#define NEEDS_LOAD (-(int)REASONS - 1) /* the kind compares loads */

/* A backend that was chosen for a connection. */
struct choice {
	union {
		struct addr addr;
		struct pool pool; /* until it was chosen: where from */
	};
	__be16 port;
	__u8 signal; /* enum signal: what is to be measured */
	__u32 backend;
	__u32 gen;
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

/* Chooses by load from the pool that choose_static() left in out. */
__noinline int choose_by_load(struct choice *out)
{
	const struct slot *head;
	struct input in = {};
	struct pool p;

	if (!out)
		return -REASON_INTERNAL;
	p = out->pool;
	head = slot_at(p.base);
	if (!head)
		return count_drop(REASON_INTERNAL);
	load_input(&p, head, &in);
	return choose_member(&p, head, load_pick(&p, head, &in), out);
}

/*
 * Chooses for kinds that need no load: see choose(). For others it returns
 * NEEDS_LOAD and leaves the pool in out.
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
	return choose_member(&p, head, static_pick(&p, head, &in), out);
}

/*
 * Finds the backend that a client keeps, if that takes connections in the pool that
 * this caller uses. Returns 0 and fills out, or -ENOENT.
 */
__noinline int affinity_find(__u32 service, __u32 scope, const struct addr *client,
			     struct choice *out)
{
	struct service *svc = bpf_map_lookup_elem(&services, &service);
	struct affinity_key key = { .service = service };
	const struct slot *head;
	struct affinity *a;
	struct backend *be;
	__s64 age;
	__u32 id;

	if (!svc || !client || !out || scope >= SCOPES)
		return -ENOENT;
	key.client = *client;
	a = bpf_map_lookup_elem(&affinities, &key);
	if (!a)
		return -ENOENT;
	/* Another CPU may renew it after the clock was read here: then it is not old. */
	age = bpf_ktime_get_ns() - READ_ONCE(a->last);
	if (age > (__s64)(svc->affinity * NSEC_PER_SEC))
		return -ENOENT;
	id = a->backend;
	be = bpf_map_lookup_elem(&backends, &id);
	head = slot_at((__u32)READ_ONCE(svc->pool[scope]));
	if (!be || !head || be->gen != a->gen || be->service != service ||
	    !(be->pools & 1 << scope))
		return -ENOENT;
	out->addr = be->addr;
	out->port = be->port;
	out->signal = head->how >> HOW_SIGNAL_SHIFT & HOW_FIELD;
	out->backend = id;
	out->gen = a->gen;
	return 0;
}

/*
 * Makes a client keep what was chosen, from now on. Of connections that begin at once
 * one decides: the others get its backend in c. What an entry says that nobody can use
 * any more is replaced by who finds it so first.
 */
__noinline int affinity_keep(__u32 service, __u32 scope, const struct addr *client,
			     struct choice *c)
{
	struct affinity_key key = { .service = service };
	struct affinity new = { .last = bpf_ktime_get_ns() };
	__u64 old = 0, *word;
	struct affinity *a;
	__u32 lost;

	if (!client || !c)
		return 0;
	lost = c->backend;
	key.client = *client;
	new.backend = lost;
	new.gen = c->gen;
	a = bpf_map_lookup_elem(&affinities, &key);
	word = (__u64 *)a; /* the backend and its generation */
	if (word)
		old = READ_ONCE(*word);
	if (affinity_find(service, scope, client, c)) {
		if (!word &&
		    (int)bpf_map_update_elem(&affinities, &key, &new, BPF_NOEXIST) != -EEXIST)
			return 0;
		if (word && __sync_val_compare_and_swap(word, old, *(__u64 *)&new) == old) {
			WRITE_ONCE(a->last, new.last);
			return 0;
		}
		if (affinity_find(service, scope, client, c))
			return 0; /* and it is gone again: this connection stays where it is */
	} else if (a) {
		WRITE_ONCE(a->last, new.last);
	}
	if (c->backend != lost)
		pick_undo(lost);
	return 0;
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

	return err == NEEDS_LOAD ? choose_by_load(out) : err;
}
