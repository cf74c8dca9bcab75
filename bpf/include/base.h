/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Integer types under their kernel names, and nothing else. Unlike uapi.h this
 * header also compiles for the host, so pure headers (lib/pick.h) can be built
 * both into BPF programs and into the tests that compare them with Go.
 */
#ifndef __LBPROXY_BASE_H
#define __LBPROXY_BASE_H

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;

/* Byte order is part of the type: __be is network order, __le little endian. */
typedef __u16 __le16;
typedef __u16 __be16;
typedef __u32 __le32;
typedef __u32 __be32;
typedef __u64 __le64;
typedef __u64 __be64;

/* Internet checksums, folded (wire format) and unfolded (accumulator). */
typedef __u16 __sum16;
typedef __u32 __wsum;

#ifndef bool
#define bool _Bool
#endif

#ifndef true
#define true 1
#define false 0
#endif

#ifndef NULL
#define NULL ((void *)0)
#endif

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#endif /* __LBPROXY_BASE_H */
