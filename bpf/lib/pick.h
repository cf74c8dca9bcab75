/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How a table is read for one new connection: the twin of Pick in internal/algo.
 * Pure: no maps and no helpers; randomness, counters, loads and hashes are
 * arguments. It compiles for the kernel and for the host.
 */
#pragma once

#include "base.h"

#define FEW_MEMBERS 16		 /* members that Few compares */
#define PICK_GROUP 32		 /* members that Least visits at a time */
#define PICK_STARTING (1U << 31) /* marks the factor of a member in slow start */
#define PICK_NONE (~0ULL)	 /* costs more than any member */
#define PICK_ACTIVE_MAX ((1U << 24) - 1)
#define PICK_TIME_ACTIVE_MAX ((1U << 16) - 1)
#define PICK_LATENCY_MAX ((1U << 23) - 1) /* us */
#define PICK_HALF_LIFE 30000		  /* ms */
#define PICK_AGAIN 8			  /* other picks for a backend that is avoided */
#define PICK_WALK 32			  /* members that are looked at then */
#define PICK_AVERAGED 16		  /* a sample moves the average by 1/16 */

/* Maps a uniform 32-bit number onto [0, n). */
static __always_inline __u32 pick_scale(__u32 rand, __u32 n)
{
	return ((__u64)rand * n) >> 32;
}

/* Returns the k-th number that stands for x, a random one or a hash, when x will not do. */
static __always_inline __u32 pick_other(__u32 x, __u32 k)
{
	x += k * 0x9e3779b9;
	x = (x ^ x >> 16) * 0x85ebca6b;
	x = (x ^ x >> 13) * 0xc2b2ae35;
	return x ^ x >> 16;
}

/* Returns i or its alias. Of 65536 draws, the word's upper half keep i. */
static __always_inline __u32 pick_aliased(__u32 i, __u32 word, __u32 rand)
{
	return rand >> 16 < word >> 16 ? i : word & 0xffff;
}

/* Returns the place in an order of len entries for sequence number seq. len is not 0. */
static __always_inline __u32 pick_place(__u32 seq, __u32 len)
{
	return seq % len;
}

/* Returns entry place % 4 of four packed indexes. */
static __always_inline __u32 pick_packed(__u64 word, __u32 place)
{
	return (word >> (place % 4 * 16)) & 0xffff;
}

/* Returns Two's second column when there are no aliases: not i, unless n is 1. */
static __always_inline __u32 pick_second(__u32 i, __u32 rand, __u32 n)
{
	return (i + 1 + pick_scale(rand, n - 1)) % n;
}

/* Returns how many groups Least visits. */
static __always_inline __u32 pick_groups(__u32 n)
{
	return (n + PICK_GROUP - 1) / PICK_GROUP;
}

/* Returns the group that Least visits k-th, k < groups. */
static __always_inline __u32 pick_group(__u32 start, __u32 k, __u32 groups)
{
	return (start / PICK_GROUP + k) % groups;
}

/* Returns how many members a group has. */
static __always_inline __u32 pick_group_size(__u32 group, __u32 n)
{
	__u32 rest = n - group * PICK_GROUP;

	return rest < PICK_GROUP ? rest : PICK_GROUP;
}

/* Returns the member that is visited i-th in its group, i < size. */
static __always_inline __u32 pick_group_member(__u32 group, __u32 start, __u32 i, __u32 size)
{
	return group * PICK_GROUP + (start % PICK_GROUP + i) % size;
}

/* Says whether a member with this factor word takes part other than as a starter. */
static __always_inline bool pick_established(__u32 word)
{
	return word - 1 < PICK_STARTING - 1;
}

/* Returns the factor without its mark. */
static __always_inline __u32 pick_factor(__u32 word)
{
	return word & ~PICK_STARTING;
}

/* Returns the cost of one more connection to a member that has active. */
static __always_inline __u64 pick_cost_conns(__u32 active, __u32 factor)
{
	__u64 a = active >= PICK_ACTIVE_MAX ? PICK_ACTIVE_MAX : active + 1;

	return a * factor;
}

/* Halvings of what is known after idle ms. */
static __always_inline __u32 pick_halvings(__u32 idle)
{
	return idle / PICK_HALF_LIFE < 31 ? idle / PICK_HALF_LIFE : 31;
}

/*
 * Returns the cost of one more connection to a member that has active, whose
 * latency (us, 0: unknown) was last measured, and which last got a connection,
 * idle ms ago.
 */
static __always_inline __u64 pick_cost_time(__u32 active, __u32 latency, __u32 idle, __u32 factor)
{
	__u64 a = active >= PICK_TIME_ACTIVE_MAX ? PICK_TIME_ACTIVE_MAX : active + 1;
	__u32 t = latency >> pick_halvings(idle);
	__u32 below;

	if (!latency && active) /* it may never answer: one connection finds that out */
		t = PICK_LATENCY_MAX;
	if (!t)
		t = 1;
	if (t > PICK_LATENCY_MAX)
		t = PICK_LATENCY_MAX;
	below = t | t >> 1; /* all bits from the highest down */
	below |= below >> 2;
	below |= below >> 4;
	below |= below >> 8;
	below |= below >> 16;
	t &= ~(below >> 3);
	return t * a * factor;
}

/*
 * Returns the moving average of latencies, us, after one more sample, idle ms after
 * the one before. BPF has no signed division; the result stays between old and
 * sample.
 */
static __always_inline __u32 pick_latency(__u32 old, __u32 sample, __u32 idle)
{
	__u32 stale = pick_halvings(idle);

	if (!sample)
		sample = 1;
	if (sample > PICK_LATENCY_MAX)
		sample = PICK_LATENCY_MAX;
	if (!old)
		return sample;
	if (old > PICK_LATENCY_MAX)
		old = PICK_LATENCY_MAX;
	if (sample < old)
		return sample + ((old - (old - sample) / PICK_AVERAGED - sample) >> stale);
	return sample - ((sample - (old + (sample - old) / PICK_AVERAGED)) >> stale);
}

/* Returns which of k starters has its chance; k is not 0. */
static __always_inline __u32 pick_starter(__u32 rand, __u32 k)
{
	return pick_scale(rand, k);
}

/*
 * Says whether the starter with this word (chance << 16 | member) takes its
 * chance. It is picked if it costs no more than the regular choice.
 */
static __always_inline bool pick_starts(__u32 word, __u32 rand, __u32 k)
{
	return (__u32)(rand * k) >> 16 < word >> 16;
}

static __always_inline __u64 pick_rotate(__u64 x, __u32 n)
{
	return x << n | x >> (64 - n);
}

/*
 * SipHash-1-3 of a key's words, two at a time, a word being four bytes, the
 * lowest first. An address is four words as they lie in memory.
 */
struct pick_sip {
	__u64 a, b, c, d;
};

static __always_inline void pick_sip_round(struct pick_sip *s)
{
	s->a += s->b;
	s->c += s->d;
	s->b = pick_rotate(s->b, 13) ^ s->a;
	s->d = pick_rotate(s->d, 16) ^ s->c;
	s->a = pick_rotate(s->a, 32);
	s->c += s->b;
	s->a += s->d;
	s->b = pick_rotate(s->b, 17) ^ s->c;
	s->d = pick_rotate(s->d, 21) ^ s->a;
	s->c = pick_rotate(s->c, 32);
}

static __always_inline void pick_sip_add(struct pick_sip *s, __u64 m)
{
	s->d ^= m;
	pick_sip_round(s);
	s->a ^= m;
}

static __always_inline void pick_sip_addr(struct pick_sip *s, const __u32 *w)
{
	pick_sip_add(s, (__u64)w[1] << 32 | w[0]);
	pick_sip_add(s, (__u64)w[3] << 32 | w[2]);
}

static __always_inline void pick_sip_start(struct pick_sip *s, __u64 seed)
{
	__u64 k1 = seed ^ 0x9e3779b97f4a7c15ULL;

	s->a = seed ^ 0x736f6d6570736575ULL;
	s->b = k1 ^ 0x646f72616e646f6dULL;
	s->c = seed ^ 0x6c7967656e657261ULL;
	s->d = k1 ^ 0x7465646279746573ULL;
}

/* Returns the upper half of the hash of n words, of which an odd one is rest. */
static __always_inline __u32 pick_sip_end(struct pick_sip *s, __u32 n, __u32 rest)
{
	pick_sip_add(s, (__u64)n * 4 << 56 | rest);
	s->c ^= 0xff;
	pick_sip_round(s);
	pick_sip_round(s);
	pick_sip_round(s);
	return (s->a ^ s->b ^ s->c ^ s->d) >> 32;
}

/* Returns the hash of a source address. */
static __always_inline __u32 pick_hash_source(__u64 seed, const __u32 *src)
{
	struct pick_sip s;

	pick_sip_start(&s, seed);
	pick_sip_addr(&s, src);
	return pick_sip_end(&s, 4, 0);
}

/* Returns the hash of a source address and port, in host order, or any number. */
static __always_inline __u32 pick_hash_port(__u64 seed, const __u32 *src, __u32 port)
{
	struct pick_sip s;

	pick_sip_start(&s, seed);
	pick_sip_addr(&s, src);
	return pick_sip_end(&s, 5, port);
}

/* Returns the hash of a 5-tuple; ports are in host order, 16 bits of each count. */
static __always_inline __u32 pick_hash_tuple(__u64 seed, const __u32 *src, const __u32 *dst,
					     __u32 sport, __u32 dport, __u32 proto)
{
	struct pick_sip s;

	pick_sip_start(&s, seed);
	pick_sip_addr(&s, src);
	pick_sip_addr(&s, dst);
	pick_sip_add(&s, (__u64)proto << 32 | (sport << 16 | (dport & 0xffff)));
	return pick_sip_end(&s, 10, 0);
}
