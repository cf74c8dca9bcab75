/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How a table is read for one new connection: the twin of Pick in internal/algo.
 * Pure: no maps and no helpers; randomness and counters are arguments.
 */
#pragma once

#include "types.h"

/* Maps a uniform 32-bit number onto [0, n). */
static __always_inline __u32 pick_scale(__u32 rand, __u32 n)
{
	return ((__u64)rand * n) >> 32;
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
