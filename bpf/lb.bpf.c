//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Programs on network devices: they serve packets of clients that have no socket
 * on this node. Ingress translates destinations before routing, egress sources
 * after it, so routing and netfilter see client and backend. Entry points only.
 */
#include "lib/icmp.h"
#include "lib/refuse.h"
#include "lib/snat.h"
#include "lib/sock.h"
#include "lib/sweep.h"

char __license[] SEC("license") = "Dual BSD/GPL";

#define NEXT TC_ACT_UNSPEC	     /* go on with other programs, then the stack */
#define FLOW_IDLE (3 * NSEC_PER_SEC) /* times are noted once a second */

/* Pods are known by the device that their packets come from, not by their addresses. */
const volatile __u32 pods_by_device = 0;

static __always_inline int drop(int err)
{
	count_drop(-err);
	return TC_ACT_SHOT;
}

/* Looks up what a packet was sent to. */
static __always_inline int packet_frontend(const struct packet *pkt, struct frontend *fe)
{
	struct frontend_key key = {
		.addr = pkt->t.daddr,
		.port = pkt->t.dport,
		.proto = pkt->t.proto,
	};

	if (!frontend_read(&key, fe))
		return 0;
	return is_node_addr(&key.addr) ? frontend_nodeport(&key, fe) : -ENOENT;
}

static __always_inline bool is_known(bool v4, enum known what)
{
	const struct settings *set = settings_of_node();

	return set && (v4 ? set->known[0] : set->known[1]) & what;
}

/* Says whether the source of a new connection is replaced by the node's. */
static __always_inline bool masquerades(const struct packet *pkt, const struct frontend *fe,
					const struct choice *c, bool inside)
{
	return fe->flags & FE_MASQ_ALWAYS ||
	       (fe->flags & FE_MASQ_OFFCLUSTER && !inside && is_known(pkt->v4, KNOWN_PODS)) ||
	       addr_equal(&pkt->t.saddr, &c->addr);
}

/* Says whether a packet may be the first of a connection, as any datagram may. */
static __always_inline bool may_begin(const struct packet *pkt)
{
	return pkt->t.proto == IPPROTO_UDP || (pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/*
 * A client may use one port for a VIP and for one of its backends directly: then
 * the backend could not tell the two apart, and neither could we its replies.
 * Says if a packet starts such a direct connection.
 */
static __noinline bool collides(const struct packet *pkt)
{
	struct tuple reply = tuple_inverse(&pkt->t, HOOK_EGRESS);
	struct conn *c;

	if ((pkt->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return false;
	c = bpf_map_lookup_elem(&conns, &reply);
	return c && !(c->flags & CONN_WATCH);
}

/*
 * The same of datagrams, as far as it can be told: a flow to a VIP is remembered after
 * its socket's end, and a socket that takes the port again and sends to the backend
 * itself would get answers from the VIP. A datagram that comes when the flow has been
 * idle for a while ends it. One that comes earlier may be the flow's own, on its way
 * through a second device.
 */
static __noinline int flow_outlived(const struct packet *pkt)
{
	struct tuple key = tuple_inverse(&pkt->t, HOOK_EGRESS);
	struct conn *c = bpf_map_lookup_elem(&conns, &key);
	__u64 now = bpf_ktime_get_coarse_ns();

	if (!c || c->flags & (CONN_WATCH | CONN_SNAT) || !is_idle(now, c->last, FLOW_IDLE))
		return 0;
	key = forward_key(&key, c);
	c = bpf_map_lookup_elem(&conns, &key);
	if (c && is_idle(now, c->last, FLOW_IDLE))
		conn_remove(&key, c);
	return 0;
}

/* Says whether a packet is from a pod. */
static __always_inline bool is_inside(struct __sk_buff *skb, const struct packet *pkt)
{
	__u32 ifindex = skb->ifindex;
	struct device *dev;

	if (!pods_by_device)
		return is_pod_addr(&pkt->t.saddr);
	dev = bpf_map_lookup_elem(&devices, &ifindex);
	return dev && dev->pods;
}

/* Chooses a backend for the first packet of a connection. Returns 0 or a negative reason. */
static __always_inline int ingress_choose(struct __sk_buff *skb, const struct packet *pkt,
					  const struct frontend *fe, struct choice *c, bool *snat)
{
	bool inside = is_inside(skb, pkt);
	__u8 local = inside ? FE_INSIDE_LOCAL : FE_OUTSIDE_LOCAL;
	__u32 scope = fe->flags & local ? SCOPE_LOCAL : SCOPE_CLUSTER;
	int err = -ENOENT;

	if (fe->flags & FE_RANGED && !source_allowed(fe->service, &pkt->t.saddr))
		return count_drop(REASON_SOURCE_RANGE);
	if (fe->flags & FE_AFFINITY)
		err = affinity_find(fe->service, scope, &pkt->t.saddr, c);
	if (err)
		err = choose(fe->service, scope, &pkt->t, c);
	if (err)
		return err;
	if (fe->flags & FE_AFFINITY)
		affinity_keep(fe->service, scope, &pkt->t.saddr, c);
	if (pkt->t.proto != IPPROTO_TCP) /* as with sockets */
		c->signal = SIGNAL_NONE;
	*snat = masquerades(pkt, fe, c, inside);
	return 0;
}

/*
 * Says whether a packet is to a port that its cluster IP has not. One in the middle of
 * a connection may belong to what was there before lbproxy.
 */
static __noinline bool unknown_port(const struct packet *pkt)
{
	if (!may_begin(pkt))
		return false;
	if (!is_cluster_ip(&pkt->t.daddr))
		return false;
	count_drop(REASON_UNKNOWN_PORT);
	return true;
}

/*
 * Says whether a packet of no connection of ours is in the middle of one that netfilter
 * may translate: that began while another proxy served this node.
 */
static __always_inline bool is_translated(const struct packet *pkt)
{
	return !may_begin(pkt) && is_known(pkt->v4, KNOWN_TRANSLATED);
}

/*
 * Serves the first packet of a connection, if it is to one of our frontends. A
 * direct connection that collides gets another port, as any other that does.
 */
static __always_inline int ingress_new(struct __sk_buff *skb, const struct packet *pkt,
				       struct translation *tr)
{
	struct choice c = {};
	struct frontend fe;
	bool snat = false;
	int err = 0;

	if (pkt->tcp_flags & TCP_RST || is_translated(pkt))
		return NEXT;
	if (!packet_frontend(pkt, &fe)) {
		err = ingress_choose(skb, pkt, &fe, &c, &snat);
	} else {
		if (unknown_port(pkt))
			return refuse_packet(skb, pkt);
		if (pkt->t.proto == IPPROTO_UDP)
			flow_outlived(pkt);
		if (!collides(pkt))
			return NEXT;
		c.addr = pkt->t.daddr;
		c.port = pkt->t.dport;
	}
	if (err == -REASON_NO_BACKEND_REJECT)
		return refuse_packet(skb, pkt);
	if (err)
		return TC_ACT_SHOT;
	if ((pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		c.flags |= CHOICE_BEGUN;
	err = conn_create(&pkt->t, &c, snat, tr);
	if (err)
		pick_undo(c.backend);
	if (err >= 0)
		err = rewrite(skb, pkt, tr);
	return err ? drop(err) : NEXT;
}

static __always_inline int ingress(struct __sk_buff *skb, __u32 l3)
{
	struct packet pkt = {};
	struct translation tr = {};
	struct conn *c;
	int err;

	if (skb->pkt_type == PACKET_OTHERHOST) /* flooded, or on its way through a bridge */
		return NEXT;
	err = parse(skb, l3, HOOK_INGRESS, &pkt);
	if (err < 0)
		count_drop(-err);
	if (err)
		return NEXT;
	if (pkt.icmp_error) {
		err = icmp_translate(skb, &pkt);
		return err ? drop(err) : NEXT;
	}
	c = bpf_map_lookup_elem(&conns, &pkt.t);
	if (c && c->flags & CONN_FORWARD && conn_restarts(&pkt, c)) {
		conn_remove(&pkt.t, c);
		c = NULL;
	}
	if (!c)
		return ingress_new(skb, &pkt, &tr);
	if (c->flags & CONN_WATCH)
		return conn_watch(skb, &pkt, c);
	if (c->flags & CONN_FORWARD) {
		if (c->state & CONN_RESET && !(pkt.tcp_flags & TCP_RST)) /* a backend may learn */
			return refuse_packet(skb, &pkt);
		conn_request(&pkt, c);
	}
	tr = (struct translation){ c->addr, c->port, c->other_port };
	err = rewrite(skb, &pkt, &tr);
	return err ? drop(err) : NEXT;
}

/*
 * A process of this node may send to a frontend whose answer is silence; the
 * socket programs leave that to here.
 */
static __noinline int egress_own(struct __sk_buff *skb, const struct packet *pkt)
{
	struct pool p = {};
	struct frontend fe;

	if (skb->ingress_ifindex || (pkt->t.proto != IPPROTO_UDP && !(pkt->tcp_flags & TCP_SYN)))
		return NEXT;
	if (packet_frontend(pkt, &fe))
		return NEXT;
	if (fe.flags & FE_RANGED && !source_allowed(fe.service, &pkt->t.saddr))
		return drop(-REASON_SOURCE_RANGE);
	if (pool_read(fe.service, inside_scope(&fe), &p) || p.n)
		return NEXT;
	return pool_refusal(&p) == -REASON_NO_BACKEND_DROP ? drop(-REASON_NO_BACKEND_DROP) : NEXT;
}

static __always_inline int egress(struct __sk_buff *skb, __u32 l3)
{
	struct packet pkt = {};
	struct translation tr;
	struct conn *c;
	int err;

	err = parse(skb, l3, HOOK_EGRESS, &pkt);
	if (err < 0)
		count_drop(-err);
	if (err)
		return NEXT;
	if (pkt.icmp_error) {
		err = icmp_translate(skb, &pkt);
		return err ? drop(err) : NEXT;
	}
	c = bpf_map_lookup_elem(&conns, &pkt.t);
	if (!c)
		return egress_own(skb, &pkt);
	if (c->flags & CONN_WATCH)
		return conn_watch(skb, &pkt, c);
	if (c->flags & CONN_SNAT) {
		if (!c->port && snat_late(&pkt))
			return NEXT;
		err = c->port ? 0 : snat_allocate(skb, &pkt, c);
		if (err)
			return drop(err);
	} else {
		conn_reply(skb, &pkt, c);
	}
	tr = (struct translation){ c->addr, c->port, c->other_port };
	err = rewrite(skb, &pkt, &tr);
	return err ? drop(err) : NEXT;
}

/* Devices with an Ethernet header. */
SEC("tc")
int lb_ingress(struct __sk_buff *skb)
{
	return ingress(skb, ETH_HLEN);
}

SEC("tc")
int lb_egress(struct __sk_buff *skb)
{
	return egress(skb, ETH_HLEN);
}

/* Devices whose packets start with the IP header: tunnels, WireGuard. */
SEC("tc")
int lb_ingress_l3(struct __sk_buff *skb)
{
	return ingress(skb, 0);
}

SEC("tc")
int lb_egress_l3(struct __sk_buff *skb)
{
	return egress(skb, 0);
}

/* Run by the agent now and then. */
SEC("syscall")
int lb_sweep(struct sweep *ctx)
{
	struct sweep s = { .now = ctx->now, .recount = ctx->recount };

	bpf_for_each_map_elem(&conns, sweep_conn, &s, 0);
	bpf_for_each_map_elem(&udp_flows, sweep_flow, &s, 0);
	*ctx = s;
	return 0;
}

/* Run by the agent for every socket that has an assignment. */
SEC("iter/bpf_sk_storage_map")
int lb_recount(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	recount_sock(ctx->sk, ctx->value);
	return 0;
}

SEC("iter/task_file")
int lb_recount_file(struct bpf_iter__task_file *ctx)
{
	struct sock *sk = sock_of_file(ctx);

	recount_file(sk, state_of(sk));
	return 0;
}

/* Keeps the enums in the type information, from which the Go side is generated. */
const struct {
	enum kind kind;
	enum cost cost;
	enum hash_key hash_key;
	enum signal signal;
	enum scope scope;
	enum verdict verdict;
	enum frontend_flags frontend_flags;
	enum backend_state backend_state;
	enum udp_direction udp_direction;
	enum hook hook;
	enum conn_flags conn_flags;
	enum conn_state conn_state;
	enum reason reason;
	enum known known;
	enum symptom_kind symptom_kind;
	struct symptom symptom;
	struct sweep sweep;
	struct range range;
} *types_for_go __attribute__((unused));
