#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Compares every struct size, field offset, bit-field position and constant in
# uapi.h with the kernel headers of this machine (linux-libc-dev).
set -euo pipefail
cd "$(dirname "$0")"

cc=${CC:-cc}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# Names that the kernel has, but not in its UAPI: their layout is fixed by an RFC.
internal='vlan_hdr|frag_hdr|sctphdr|IP_CE|IP_DF|IP_MF|IP_OFFSET|IP6_MF|IP6_OFFSET'

# One macro call for each fact: C(constant), S(struct), O(struct, field), B(struct, bit-field).
awk '
	function fact(s) { if (!(s in seen)) { seen[s] = 1; print s } }
	{ gsub(/\/\*.*\*\//, ""); gsub(/__attribute__.*/, ";") }
	/^#define [A-Z0-9_]+ / { fact("C(" $2 ")"); next }
	/^enum .*{$|^enum {$/ { in_enum = 1; next }
	in_enum && /^}/ { in_enum = 0; next }
	in_enum && NF { sub(/,.*/, "", $1); fact("C(" $1 ")"); next }
	/^struct [a-z0-9_]+ {$/ { name = $2; depth = 1; n = 0; fact("S(" name ")"); next }
	!name || /^#/ { next }
	/{$/ { start[++depth] = n; next }
	/^\t*}/ { # the name of a nested block comes after its fields
		if (--depth == 0) {
			for (i = 0; i < n; i++)
				fact(kind[i] "(" name ", " field[i] ")")
			name = ""
			next
		}
		sub(/;.*/, "", $2)
		for (i = start[depth + 1]; i < n && $2; i++)
			field[i] = $2 "." field[i]
		next
	}
	/__bpf_md_ptr\(/ { sub(/.*, /, ""); sub(/\).*/, ""); kind[n] = "O"; field[n++] = $0; next }
	/ : [0-9]+;/ { if ($2 != ":") { kind[n] = "B"; field[n++] = $2 } next }
	/;[ \t]*$/ { f = $NF; sub(/[\[;].*/, "", f); sub(/^\*/, "", f); kind[n] = "O"; field[n++] = f }
' uapi.h | grep -vE "\b($internal)\b" >"$tmp/facts.h"

cat >"$tmp/print.h" <<'END'
extern int printf(const char *, ...);
#define C(c) printf(#c " = %lld\n", (long long)(c));
#define S(s) printf("sizeof(struct " #s ") = %d\n", (int)sizeof(struct s));
#define O(s, f)                                                                            \
	printf("struct " #s " ." #f " at %d, %d bytes\n", (int)__builtin_offsetof(struct s, f), \
	       (int)sizeof(((struct s *)0)->f));
#define B(s, f)                                                                            \
	{                                                                                  \
		static const union { struct s v; unsigned char b[sizeof(struct s)]; } u =  \
			{.v = {.f = 1}};                                                   \
		for (int i = 0; i < (int)sizeof(u.b); i++)                                 \
			if (u.b[i])                                                        \
				printf("struct " #s " ." #f " is byte %d, bit %#x\n", i, u.b[i]); \
	}
int main(void)
{
#include "facts.h"
}
END

cat >"$tmp/ours.c" <<'END'
#include "uapi.h"
#include "print.h"
END
cat >"$tmp/host.c" <<'END'
#include <errno.h>
#include <sys/socket.h>
#include <linux/bpf.h>
#include <linux/icmp.h>
#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include "print.h"
END

"$cc" -nostdinc -fno-builtin -I. -I"$tmp" -o "$tmp/ours" "$tmp/ours.c"
"$cc" -I"$tmp" -o "$tmp/host" "$tmp/host.c"
"$tmp/ours" >"$tmp/ours.txt"
"$tmp/host" >"$tmp/host.txt"
diff -u --label uapi.h --label "host headers" "$tmp/ours.txt" "$tmp/host.txt"
echo "bpf/include/uapi.h: $(wc -l <"$tmp/ours.txt") facts agree with the host's kernel headers"
