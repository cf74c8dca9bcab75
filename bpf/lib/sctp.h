/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * SCTP: its checksum is a CRC32c of the packet (RFC 9260, appendix A) without any
 * address, so only a change of ports changes it. A CRC is linear: the checksum changes
 * by the CRC of the ports' change, followed by as many zeros as the packet has bytes.
 */
#pragma once

#include "bpf_helpers.h"

#define CRC32C_POLY 0x82f63b78 /* reflected */

enum sctp_chunk {
	SCTP_INIT = 1,
	SCTP_INIT_ACK = 2,
	SCTP_ABORT = 6,
	SCTP_SHUTDOWN = 7,
	SCTP_SHUTDOWN_ACK = 8,
	SCTP_SHUTDOWN_COMPLETE = 14,
};

/* x to the 8 * 2^k, modulo the polynomial: 2^k bytes of zeros. */
static const __u32 crc32c_zeros[16] = {
	0x00800000, 0x00008000, 0x82f63b78, 0x6ea2d55c, 0x18b8ea18, 0x510ac59a,
	0xb82be955, 0xb8fdb1e7, 0x88e56f72, 0x74c360a4, 0xe4172b16, 0x0d65762a,
	0x35d73a62, 0x28461564, 0xbf455269, 0xe2ea32dc,
};

/* Multiplies a and b modulo the polynomial, without branches: one path to verify. */
static __always_inline __u32 crc32c_mul(__u32 a, __u32 b)
{
	__u32 product = 0;

	for (int i = 0; i < 32; i++) {
		product ^= b & -(a >> 31);
		a <<= 1;
		b = b >> 1 ^ (CRC32C_POLY & -(b & 1));
	}
	return product;
}

/* By what the checksum of a packet of len bytes changes when its first word does. */
__noinline __u32 crc32c_first_word(__u32 diff, __u32 len)
{
	for (int k = 0; k < 16; k++) {
		if (len & 1U << k)
			diff = crc32c_mul(diff, crc32c_zeros[k]);
	}
	return diff;
}
