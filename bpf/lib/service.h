/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From an address to a backend. */
#pragma once

#include "maps.h"
#include "pick.h"
#include "bpf_endian.h"

#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))

/* Cookie of the network namespace that the agent runs in. */
const volatile __u64 host_netns = 0;

/* A backend that was chosen for a connection. */
struct choice {
	struct addr addr;
	__be16 port;
	__u32 backend;
	__u32 gen;
};

/* Counts one packet or call that was not served; returns -reason. */
static __always_inline int count_drop(__u32 reason)
{
	__u64 *n = bpf_map_lookup_elem(&drops, &reason);

	if (n)
		*n += 1;
	return -(int)reason;
}

static __always_inline bool addr_equal(const struct addr *a, const struct addr *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

static __always_inline bool addr_is_v4(const struct addr *a)
{
	return !a->w[0] && !a->w[1] && a->w[2] == V4_MAPPED;
}

static __always_inline bool addr_is_loopback(const struct addr *a)
{
	if (addr_is_v4(a))
		return (a->w[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !a->w[0] && !a->w[1] && !a->w[2] && a->w[3] == bpf_htonl(1);
}

/* Digest of a frontend's key, as the agent computes it. */
static __always_inline __u16 frontend_check(const struct frontend_key *k)
{
	__u32 w = k->addr.w[0] ^ k->addr.w[1] ^ k->addr.w[2] ^ k->addr.w[3];

	w ^= (__u32)k->port << 16 | k->proto;
	return w ^ w >> 16;
}

/* Looks key up; returns 0 and fills fe, or -ENOENT. */
static __always_inline int frontend_read(const struct frontend_key *key, struct frontend *fe)
{
	union {
		__u64 word;
		struct frontend fe;
	} u;

#pragma unroll
	for (int try = 0; try < 2; try++) {
		__u64 *v = bpf_map_lookup_elem(&frontends, key);

		if (!v)
			return -ENOENT;
		u.word = READ_ONCE(*v);
		if (u.fe.check == frontend_check(key)) {
			*fe = u.fe;
			return 0;
		}
	}
	return -ENOENT;
}

/* Looks up the NodePort of key, whose address is one of this node's. */
static __always_inline int frontend_nodeport(const struct frontend_key *key, struct frontend *fe)
{
	struct frontend_key any = {
		.port = key->port,
		.proto = key->proto,
	};

	if (addr_is_v4(&key->addr))
		any.addr.w[2] = V4_MAPPED;
	return frontend_read(&any, fe);
}

static __always_inline bool is_node_addr(const struct addr *a)
{
	return bpf_map_lookup_elem(&node_addrs, a);
}

static __always_inline bool is_pod_addr(const struct addr *a)
{
	struct prefix p = { .len = 128, .addr = *a };

	return bpf_map_lookup_elem(&pod_ranges, &p);
}

static __always_inline const struct slot *slot_at(__u32 i)
{
	return bpf_map_lookup_elem(&slots, &i);
}

/* Reads the pool's table; returns an index in [0, n), or a negative reason. */
static __always_inline int pick_index(const struct slot *head, __u32 base, __u32 n, __u32 *seq)
{
	const struct slot *s;
	__u32 i;

	switch (head->how & HOW_KIND) {
	case KIND_RAND:
		i = pick_scale(bpf_get_prandom_u32(), n);
		if (!(head->how & HOW_ALIAS))
			return i;
		s = slot_at(base + 1 + i);
		return s ? pick_aliased(i, s->alias, bpf_get_prandom_u32()) : -REASON_INTERNAL;
	case KIND_SEQ:
		i = __sync_fetch_and_add(seq, 1);
		if (!head->order_len)
			return pick_place(i, n);
		i = pick_place(i, head->order_len);
		s = slot_at(base + 1 + n + i / 4);
		return s ? pick_packed(*(const __u64 *)s, i) : -REASON_INTERNAL;
	}
	return -REASON_INTERNAL;
}

/* A pool as a program sees it: one read of the service's word. */
struct pool {
	__u32 base;
	__u32 n;
};

static __always_inline int pool_read(__u32 service, __u32 scope, struct pool *p)
{
	struct service *svc = bpf_map_lookup_elem(&services, &service);
	__u64 word;

	if (!svc || scope >= SCOPES)
		return -REASON_INTERNAL;
	word = READ_ONCE(svc->pool[scope]);
	p->base = word;
	p->n = word >> 32;
	return 0;
}

/* Says what callers of a pool get that has no backends: a negative reason. */
static __always_inline int pool_refusal(const struct pool *p)
{
	const struct slot *head = slot_at(p->base);

	if (head && (head->how >> HOW_VERDICT_SHIFT & 0xff) == VERDICT_DROP)
		return -REASON_NO_BACKEND_DROP;
	return -REASON_NO_BACKEND_REJECT;
}

/* Picks a backend from a pool that has some. */
static __always_inline int pool_pick(const struct pool *p, __u32 *seq, struct choice *out)
{
	const struct slot *head = slot_at(p->base), *s;
	struct backend *be;
	int i;

	if (!head)
		return -REASON_INTERNAL;
	i = pick_index(head, p->base, p->n, seq);
	if (i < 0)
		return i;
	s = slot_at(p->base + 1 + i);
	if (!s)
		return -REASON_INTERNAL;
	out->backend = s->backend;
	be = bpf_map_lookup_elem(&backends, &out->backend);
	if (!be)
		return -REASON_INTERNAL;
	out->addr = be->addr;
	out->port = be->port;
	out->gen = be->gen;
	return 0;
}

/*
 * Chooses a backend of a service for a new connection. Returns 0 and fills out,
 * or a negative reason. Everything that the pool's word leads to stays as it is
 * until this program has ended.
 */
static __always_inline int choose(__u32 service, __u32 scope, struct choice *out)
{
	struct service_state *st = bpf_map_lookup_elem(&service_states, &service);
	struct pool p = {};
	int err = pool_read(service, scope, &p);

	if (!st || err)
		return count_drop(REASON_INTERNAL);
	if (!p.n) {
		__sync_fetch_and_add(&st->rejected, 1);
		return count_drop(-pool_refusal(&p));
	}
	err = pool_pick(&p, &st->seq[scope], out);
	return err ? count_drop(-err) : 0;
}

/* Says whether a backend still takes new connections. */
static __always_inline bool backend_usable(__u32 id, __u32 gen)
{
	struct backend *be = bpf_map_lookup_elem(&backends, &id);

	return be && be->gen == gen && be->state == BACKEND_ACTIVE;
}

static __always_inline void count_opened(__u32 id)
{
	struct backend_stats *s = bpf_map_lookup_elem(&backend_stats, &id);

	if (s)
		__sync_fetch_and_add(&s->opened, 1);
}

static __always_inline void count_closed(__u32 id, bool failed)
{
	struct backend_stats *s = bpf_map_lookup_elem(&backend_stats, &id);

	if (!s)
		return;
	if (failed)
		__sync_fetch_and_add(&s->failed, 1);
	__sync_fetch_and_add(&s->closed, 1);
}
