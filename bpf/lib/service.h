/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From an address to a pool of backends. */
#pragma once

#include "maps.h"
#include "pick.h"
#include "bpf_endian.h"

#define NSEC_PER_SEC 1000000000ULL

#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))

/* Cookie of the network namespace that the agent runs in. */
const volatile __u64 host_netns = 0;

/* Counts one packet or call that was not served; returns -reason. */
static __always_inline int count_drop(__u32 reason)
{
	__u64 *n = bpf_map_lookup_elem(&drops, &reason);

	if (n)
		*n += 1;
	return -(int)reason;
}

static __always_inline struct addr addr_v4(__be32 a)
{
	struct addr r = {};

	r.w[2] = V4_MAPPED;
	r.w[3] = a;
	return r;
}

static __always_inline bool addr_is_zero(const struct addr *a)
{
	return !a->w[0] && !a->w[1] && !a->w[2] && !a->w[3];
}

static __always_inline bool addr_equal(const struct addr *a, const struct addr *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

static __always_inline bool addr_is_v4(const struct addr *a)
{
	return !a->w[0] && !a->w[1] && a->w[2] == V4_MAPPED;
}

static __always_inline bool addr_is_unspecified(const struct addr *a)
{
	return !a->w[0] && !a->w[1] && (!a->w[2] || a->w[2] == V4_MAPPED) && !a->w[3];
}

static __always_inline bool addr_is_loopback(const struct addr *a)
{
	if (addr_is_v4(a))
		return (a->w[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !a->w[0] && !a->w[1] && !a->w[2] && a->w[3] == bpf_htonl(1);
}

static __always_inline const struct settings *settings_of_node(void)
{
	const __u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
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

/* A pool as a program sees it: one read of the service's word. */
struct pool {
	__u32 base;
	__u32 n;
	__u32 suspect; /* of the service: 0 if nobody is avoided */
	__u32 scope;
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
	p->suspect = READ_ONCE(svc->suspect);
	p->scope = scope;
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

/* Says whether a backend takes new connections. */
static __always_inline bool backend_active(__u32 id, __u32 gen)
{
	struct backend *be = bpf_map_lookup_elem(&backends, &id);

	return be && be->gen == gen && be->state == BACKEND_ACTIVE && be->pools;
}

/* Says whether a backend serves the flows that it has. */
static __always_inline bool backend_serves(__u32 id, __u32 gen)
{
	struct backend *be = bpf_map_lookup_elem(&backends, &id);

	return be && be->gen == gen &&
	       (be->state == BACKEND_ACTIVE || be->state == BACKEND_LEAVING);
}

static __always_inline struct backend_stats *stats_of(__u32 id)
{
	return bpf_map_lookup_elem(&backend_stats, &id);
}
