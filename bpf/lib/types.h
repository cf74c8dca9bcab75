/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Structs that more than one program, or a program and the agent, agree on.
 * The Go side is generated from here; sizes are asserted so that a change of
 * layout cannot go unnoticed.
 */
#pragma once

#include "uapi.h"

/* An address of either family; IPv4 is v4-mapped (::ffff:a.b.c.d). */
struct addr {
	__be32 w[4];
};

/* The families' spelling differs, the path does not. */
#define V4_MAPPED bpf_htonl(0xffff)

/* How a table is read. The values are those of Kind in internal/algo. */
enum kind {
	KIND_NONE,
	KIND_RAND,
	KIND_SEQ,
	KIND_HASH,
	KIND_TWO,
	KIND_LEAST,
	KIND_FEW,
};

/* What two, least and few compare. The values are those of Cost in internal/algo. */
enum cost {
	COST_NONE,
	COST_CONNS,
	COST_TIME,
};

/* What is hashed. The values are those of HashKey in internal/lb. */
enum hash_key {
	HASH_SOURCE,
	HASH_SOURCE_PORT,
	HASH_TUPLE,
};

/* Which time is measured: Signal in internal/lb, one more; 0 is none. */
enum signal {
	SIGNAL_NONE,
	SIGNAL_CONNECT,
	SIGNAL_FIRST_BYTE,
	SIGNAL_LAST_BYTE,
};

/* The two pools of a service; the values are those of Scope in internal/lb. */
enum scope {
	SCOPE_CLUSTER,
	SCOPE_LOCAL,
	SCOPES,
};

/* What callers of an empty pool get; the values are those of Verdict in internal/lb. */
enum verdict {
	VERDICT_REJECT,
	VERDICT_DROP,
};

/* Where a service answers. A NodePort has the unspecified address of its family. */
struct frontend_key {
	struct addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad;
};
_Static_assert(sizeof(struct frontend_key) == 20, "layout is shared with Go");

enum frontend_flags {
	FE_INSIDE_LOCAL = 1 << 0,    /* callers of this node use SCOPE_LOCAL */
	FE_OUTSIDE_LOCAL = 1 << 1,   /* all others use SCOPE_LOCAL */
	FE_MASQ_OFFCLUSTER = 1 << 2, /* masquerade callers outside the pod ranges */
	FE_MASQ_ALWAYS = 1 << 3,     /* masquerade every caller */
	FE_RANGED = 1 << 4,	     /* only callers in the service's source ranges */
	FE_AFFINITY = 1 << 5,	     /* callers keep their backend */
	FE_UNKNOWN = 1 << 6, /* no frontend: stands for the ports that a cluster IP has not */
};

/*
 * Which service a frontend belongs to. The check is a digest of the key: a hash
 * element that is deleted and reused between lookup and read is noticed by it.
 */
struct frontend {
	__u32 service;
	__u8 flags; /* enum frontend_flags */
	__u8 type;  /* FrontendType in internal/lb, for people */
	__u16 check;
};
_Static_assert(sizeof(struct frontend) == 8, "read as one word");

/*
 * A service's pools, each one word: region base in the lower half, number of
 * backends in the upper. Storing the word commits a new region.
 */
struct service {
	__u64 pool[SCOPES];
	__u32 affinity; /* seconds after a client's last connection; 0: it has none */
	__u32 suspect;	/* ms for which a backend that failed is avoided; 0: for no time */
	__u32 pad[2];
};
_Static_assert(sizeof(struct service) == 32, "layout is shared with Go");

/* What the kernel writes for a service; apart from struct service, which the agent writes. */
struct service_state {
	__u32 seq[SCOPES]; /* sequence numbers of KIND_SEQ */
	__u64 rejected;	   /* calls and packets that found no backend */
	__u64 pad[6];
};
_Static_assert(sizeof(struct service_state) == 64, "one cache line");

/*
 * Element of a region. A region is a head of HEAD_SLOTS, n backends, and then what
 * the kind needs: the order, packed four indexes to an element; a factor for each
 * backend, packed two to an element; starters, packed the same; bounds, see
 * lib/least.h.
 */
struct slot {
	union {
		__u32 backend;	 /* backend: index into backends */
		__u32 order_len; /* head 0: entries of the order, or 0 */
		__u32 seq_start; /* head 1: added to the sequence number */
		__u32 prefix4;	 /* head 2: leading bits of an IPv4 source that are hashed */
	};
	union {
		__u32 alias;	/* backend: threshold << 16 | other index */
		__u32 how;	/* head 0: enum kind and HOW_* */
		__u32 starters; /* head 1: how many are in slow start */
		__u32 prefix6;	/* head 2: the same of IPv6 */
	};
};
_Static_assert(sizeof(struct slot) == 8, "layout is shared with Go");

#define HEAD_SLOTS 5 /* the last two are the algorithm's name, for people */

#define HOW_KIND 0xff
#define HOW_VERDICT_SHIFT 8
#define HOW_ALIAS (1 << 16)   /* backends carry alias words */
#define HOW_FACTORS (1 << 17) /* there are factors; else each is 1 */
#define HOW_BOUNDS (1 << 18)  /* there are bounds */
#define HOW_COST_SHIFT 20     /* enum cost, 2 bits */
#define HOW_SIGNAL_SHIFT 22   /* enum signal, 2 bits */
#define HOW_KEY_SHIFT 24      /* enum hash_key, 2 bits */
#define HOW_FIELD 3

enum backend_state {
	BACKEND_FREE,
	BACKEND_ACTIVE,
	BACKEND_LEAVING, /* takes no new connection, those it has go on */
	BACKEND_GONE,	 /* the same, but flows of UDP move, and sockets connected to it end */
	BACKEND_RESET,	 /* the same, and connections of TCP are reset */
};

/* One backend of one service. Written by the agent, read by every program. */
struct backend {
	struct addr addr;
	__be16 port;
	__u8 pools; /* 1 << scope: it may get new connections there */
	__u8 state; /* enum backend_state */
	__u32 gen;  /* grows when the element is reused */
	__u32 service;
	__u16 place[SCOPES]; /* its index in pools with bounds, NO_PLACE in others */
};
_Static_assert(sizeof(struct backend) == 32, "layout is shared with Go");

#define NO_PLACE 0xffff

/*
 * What speaks against a backend. Written by the kernel and by the agent; all times are
 * ns, monotonic, and 0 or past mean nothing.
 */
struct suspect {
	__u64 until;	/* new connections avoid it before then */
	__u64 calm;	/* the kernel suspects nothing before then */
	__u64 reset;	/* the agent is told of no other reset before then */
	__u64 answered; /* connections so far, whether anything is suspected or not */
};
_Static_assert(sizeof(struct suspect) == 32, "layout is shared with Go");

/* What became of a connection; the values are those of SymptomKind in internal/lb. */
enum symptom_kind {
	SYMPTOM_NONE,
	SYMPTOM_REFUSED,    /* a reset was the answer to its first packet */
	SYMPTOM_UNANSWERED, /* its first packet was sent again */
	SYMPTOM_RESET,	    /* the backend reset it when it was established */
};

/* What the agent is told of. */
struct symptom {
	__u64 at; /* ns, monotonic */
	__u32 backend;
	__u32 gen;
	__u32 kind; /* enum symptom_kind */
	__u32 pad;
};
_Static_assert(sizeof(struct symptom) == 24, "layout is shared with Go");

/* A moving average, written as one word. */
struct latency {
	__u32 us; /* 0: unknown */
	__u32 at; /* ms, monotonic, of the last sample */
};

/* Counters of a backend. Written by the kernel; by the agent at birth. */
struct backend_stats {
	__u64 opened;
	__u64 closed;
	__u32 failed; /* wraps */
	__u32 given;  /* ms, monotonic, when it last got a connection that is measured */
	struct latency latency;
};
_Static_assert(sizeof(struct backend_stats) == 32, "layout is shared with Go");

/* A socket's assignment, kept with the socket. */
struct sock_state {
	struct addr vip;  /* what the process asked for */
	struct addr peer; /* what it got */
	__be16 vip_port;
	__be16 peer_port;
	__u32 backend;
	__u32 gen;
	__u32 count;	      /* enum sock_count, changed by compare and swap */
	__u64 opened;	      /* ns, monotonic */
	struct addr flow_vip; /* of its first entry in udp_flows */
	__be16 flow_port;     /* 0: it has none */
	__u8 signal;	      /* enum signal: what is measured */
	__u8 round;	      /* low bits of the recount that counted it last, if by files */
	__u8 pad[4];
};
_Static_assert(sizeof(struct sock_state) == 80, "no hidden padding");

enum sock_count {
	SOCK_UNCOUNTED,
	SOCK_OPEN,
	SOCK_CLOSED,
};

enum udp_direction {
	UDP_TO_VIP,	  /* key: the VIP; value: the backend */
	UDP_FROM_BACKEND, /* key: the backend; value: the VIP */
};

/* A flow of an unconnected UDP socket. */
struct udp_flow_key {
	__u64 cookie;
	struct addr addr;
	__be16 port;
	__u16 direction; /* enum udp_direction */
	__u32 pad;
};
_Static_assert(sizeof(struct udp_flow_key) == 32, "layout is shared with Go");

struct udp_flow {
	__u64 last; /* ns, monotonic */
	struct addr addr;
	__be16 port;
	__u16 pad;
	__u32 backend;
	__u32 gen;
	__u32 closed; /* 1 after it was counted as closed */
};
_Static_assert(sizeof(struct udp_flow) == 40, "layout is shared with Go");

enum hook {
	HOOK_INGRESS, /* destination is translated */
	HOOK_EGRESS,  /* source is translated */
};

/* A packet as one hook sees it. */
struct tuple {
	struct addr saddr;
	struct addr daddr;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 hook; /* enum hook */
	__u16 pad;
};
_Static_assert(sizeof(struct tuple) == 40, "layout is shared with Go");

enum conn_flags {
	CONN_FORWARD = 1 << 0, /* client to VIP, at ingress: holds the state */
	CONN_SNAT = 1 << 1,    /* the source is replaced at egress */
	CONN_SIGNAL = 3 << 2,  /* enum signal, until it was measured */
	CONN_WATCH = 1 << 4,   /* no translation: the time of a socket is measured */
	CONN_BEGUN = 1 << 5,   /* forward: it was seen from its first packet on */
};

#define CONN_SIGNAL_SHIFT 2

enum conn_state {
	CONN_REPLIED = 1 << 0, /* the backend answered */
	CONN_FIN_CLIENT = 1 << 1,
	CONN_FIN_BACKEND = 1 << 2,
	CONN_CLOSED = 1 << 3,	/* counted as closed */
	CONN_ACKED = 1 << 4,	/* the client answered the backend's SYN-ACK */
	CONN_MEASURED = 1 << 5, /* its time was taken */
	CONN_RESET = 1 << 6,	/* the client's next packet is answered with a reset */
};

/*
 * One translation of a tracked connection. Each connection has two to four:
 *   forward  ingress  client -> VIP       destination becomes the backend
 *   snat     egress   client -> backend   source becomes the node
 *   unsnat   ingress  backend -> node     destination becomes the client
 *   reply    egress   backend -> client   source becomes the VIP
 * At ingress addr:port replaces the destination and other_port the source port;
 * at egress it is the other way round.
 */
struct conn {
	struct addr addr;
	__be16 port;
	__be16 other_port;
	__u32 flags; /* enum conn_flags */
	__u32 state; /* enum conn_state; only in the forward entry */
	__u32 backend;
	__u32 gen;
	__u32 start; /* with CONN_SIGNAL: us, monotonic; ms until the last byte */
	__u64 last;  /* ns, monotonic, to the second */
};
_Static_assert(sizeof(struct conn) == 48, "layout is shared with Go");

/* The addresses that agree with bits where mask has ones. */
struct range {
	struct addr mask;
	struct addr bits;
};

enum known {
	KNOWN_PODS = 1 << 0,	   /* who is no pod of the family comes from elsewhere */
	KNOWN_TRANSLATED = 1 << 1, /* netfilter translates connections to frontends, too */
};

/* What all programs should know. Written by the agent. */
struct settings {
	__u64 hash_seed;     /* the same on every node of a cluster */
	__u64 node;	     /* a number of this node's own */
	struct addr host[2]; /* of sockets of this node: IPv4, IPv6; all zero: to be found out */
	struct range cluster[2]; /* has all cluster IPs, of IPv4 and IPv6 */
	__u32 localhost[2];	 /* 1: NodePorts answer at loopback addresses, of IPv4 and IPv6 */
	__u32 known[2];		 /* enum known, of IPv4 and IPv6 */
};
_Static_assert(sizeof(struct settings) == 128, "layout is shared with Go");

/* What is known of a device. */
struct device {
	struct addr v4; /* source addresses for packets that leave through it */
	struct addr v6;
	__u32 pods; /* 1: packets that come from it are those of pods */
};
_Static_assert(sizeof(struct device) == 36, "layout is shared with Go");

/* Ports of a fragmented packet, from its first fragment. */
struct frag_key {
	struct addr saddr;
	struct addr daddr;
	__u32 id;
	__u8 proto;
	__u8 hook; /* enum hook */
	__u16 pad;
};
_Static_assert(sizeof(struct frag_key) == 40, "no hidden padding");

struct frag_ports {
	__be16 sport;
	__be16 dport;
};

/* Longest-prefix key of a pod range. */
struct prefix {
	__u32 len; /* bits, 96 more for IPv4 */
	struct addr addr;
};
_Static_assert(sizeof(struct prefix) == 20, "layout is shared with Go");

/* Longest-prefix key of a service's source range. */
struct source_range {
	__u32 len; /* bits: 32 of the service, then as in struct prefix */
	__u32 service;
	struct addr addr;
};
_Static_assert(sizeof(struct source_range) == 24, "layout is shared with Go");

/* Whose backend a client keeps. */
struct affinity_key {
	struct addr client;
	__u32 service;
};
_Static_assert(sizeof(struct affinity_key) == 20, "layout is shared with Go");

struct affinity {
	__u32 backend;
	__u32 gen;
	__u64 last; /* ns, monotonic, of the client's last new connection */
};
_Static_assert(sizeof(struct affinity) == 16, "layout is shared with Go");

/* Why a packet or a call was not served. Names are in internal/dataplane/ebpf. */
enum reason {
	REASON_NONE,
	REASON_NO_BACKEND_REJECT,
	REASON_NO_BACKEND_DROP,
	REASON_CONN_TABLE_FULL,
	REASON_NO_SNAT_PORT,
	REASON_NO_SNAT_ADDRESS,
	REASON_FRAGMENT,
	REASON_MALFORMED,
	REASON_REWRITE,
	REASON_SOCK_STATE,
	REASON_UDP_FLOWS_FULL,
	REASON_INTERNAL,
	REASON_SOURCE_RANGE,
	REASON_UNKNOWN_PORT,
	REASONS,
};

/* What one sweep of the flow tables found. */
struct sweep {
	__u64 now;     /* in: ns, monotonic */
	__u64 recount; /* in: 1 to add connections that are open to recounts */
	__u64 conns;   /* out: connections alive */
	__u64 entries; /* out: table entries alive */
	__u64 expired; /* out: connections and flows removed */
	__u64 stale;   /* out: of those, whose backend or frontend is gone */
	__u64 flows;   /* out: UDP flows alive */
};
