// SPDX-License-Identifier: Apache-2.0

package server

// The labels. Label names of a metric are sorted, as they are in the output.
var (
	labelBackend  = Label{"backend", "address:port of each backend"}
	labelFamily   = Label{"family", "`IPv4`, `IPv6`"}
	labelIPFamily = Label{"ip_family", "`IPv4`, `IPv6`"}
	labelSpace    = Label{"namespace", "of the Service"}
	labelPort     = Label{"port", "the Service port's name, may be empty"}
	labelProtocol = Label{"protocol", "`TCP`, `UDP`, `SCTP`"}
	labelService  = Label{"service", "the Service's name"}

	labelMap  = Label{"map", "`services`, `frontends`, `backends`, `slots`, `conns`, `udp_flows`"}
	labelDrop = Label{"reason", "`no_backend_reject`, `no_backend_drop`, `connection_table_full`, `no_source_port`, `no_source_address`, " +
		"`fragment_without_first`, `malformed_packet`, `packet_rewrite_failed`, `socket_state_memory`, `udp_flow_table_full`, " +
		"`internal_inconsistency`, `source_range`, `unknown_port`"}
	labelKind      = Label{"kind", "kind of the object: `Service`, `EndpointSlice`, `Node`, `Pod`, `Manifest`"}
	labelProblem   = Label{"reason", "that of the Event, of a fixed set, such as `InvalidAlgorithm`"}
	labelAlgorithm = Label{"algorithm", "`hash`, `ip-hash`, `power-of-two`, `least-connection`, `least-time`"}
	labelState     = Label{"state", "`unknown`, `healthy`, `suspect`, `ejected`"}
	labelFrom      = Label{"from", labelState.Values}
	labelTo        = Label{"to", labelState.Values}
	labelEjected   = Label{"reason", "`probe`, `refused`, `unanswered`, `reset`"}
	labelProbe     = Label{"kind", "`tcp`, `http`, `https`, `grpc`, `exec`"}
	labelResult    = Label{"result", "`healthy`, `unhealthy`, `cannot`"}
	labelEndpoint  = Label{"endpoint", "`healthz`, `livez`, `readyz`"}
	labelCode      = Label{"code", "HTTP status codes that were answered"}
	labelVersion   = Label{"version", "one"}
	labelGo        = Label{"goversion", "one"}
	labelDataplane = Label{"dataplane", "`ebpf`, `iptables`: one of them"}
	labelBecause   = Label{"because", "one text, or none"}
	labelTable     = Label{"table", "`nat`, `filter`"}
	labelPolicy    = Label{"traffic_policy", "`internal`, `external`"}
	labelMethod    = Label{"method", "HTTP methods"}
	labelVerb      = Label{"verb", "HTTP methods"}
	labelHost      = Label{"host", "the API server's address"}
	labelName      = Label{"name", "`ping`"}
	labelType      = Label{"type", "`healthz`"}
	labelStatus    = Label{"status", "`success`"}

	ofService = []Label{labelFamily, labelSpace, labelPort, labelProtocol, labelService}
	ofBackend = append([]Label{labelBackend}, ofService...)
)

const (
	onlyEBPF     = "ebpf"
	onlyIPTables = "iptables"
)

// Connections of the node, of Service ports and of backends. A sum over backends does not
// fall when one of them is removed: the dataplane keeps what it had.
var (
	descOpened = describe(Metric{Name: "lbproxy_connections_opened_total", Kind: Counter, Only: onlyEBPF,
		Help: "Connections and UDP flows given to backends since the agent started."})
	descClosed = describe(Metric{Name: "lbproxy_connections_closed_total", Kind: Counter, Only: onlyEBPF,
		Help: "Connections and UDP flows that have ended since the agent started."})
	descFailed = describe(Metric{Name: "lbproxy_connections_failed_total", Kind: Counter, Only: onlyEBPF,
		Help: "Connections that ended before they were established since the agent started."})
	descTotal = describe(Metric{Name: "lbproxy_connections_active", Kind: Gauge,
		Help: "Connections and UDP flows that have not ended."})

	descServiceOpened = describe(Metric{Name: "lbproxy_service_connections_opened_total", Kind: Counter, Only: onlyEBPF, Labels: ofService, Detail: DetailService,
		Help: "Connections and UDP flows given to backends of a Service port since the agent started."})
	descServiceClosed = describe(Metric{Name: "lbproxy_service_connections_closed_total", Kind: Counter, Only: onlyEBPF, Labels: ofService, Detail: DetailService,
		Help: "Those of a Service port that have ended since the agent started."})
	descServiceFailed = describe(Metric{Name: "lbproxy_service_connections_failed_total", Kind: Counter, Only: onlyEBPF, Labels: ofService, Detail: DetailService,
		Help: "Those of a Service port that ended before they were established since the agent started."})
	descServiceActive = describe(Metric{Name: "lbproxy_service_connections_active", Kind: Gauge, Labels: ofService, Detail: DetailService,
		Help: "Connections and UDP flows of a Service port that have not ended."})
	descUnlisted = describe(Metric{Name: "lbproxy_services_unlisted", Kind: Gauge, Detail: DetailService,
		Help: "Service ports without metrics of their own, because there are more than metrics-max-services."})

	descBackendOpened = describe(Metric{Name: "lbproxy_backend_connections_opened_total", Kind: Counter, Only: onlyEBPF, Labels: ofBackend, Detail: DetailBackend,
		Help: "Connections and UDP flows given to a backend since it was added."})
	descBackendClosed = describe(Metric{Name: "lbproxy_backend_connections_closed_total", Kind: Counter, Only: onlyEBPF, Labels: ofBackend, Detail: DetailBackend,
		Help: "Those of a backend that have ended."})
	descBackendFailed = describe(Metric{Name: "lbproxy_backend_connections_failed_total", Kind: Counter, Only: onlyEBPF, Labels: ofBackend, Detail: DetailBackend,
		Help: "Those of a backend that ended before they were established."})
	descBackendActive = describe(Metric{Name: "lbproxy_backend_connections_active", Kind: Gauge, Labels: ofBackend, Detail: DetailBackend,
		Help: "Connections and UDP flows of a backend that have not ended."})
	descBackendTime = describe(Metric{Name: "lbproxy_backend_latency_seconds", Kind: Gauge, Labels: ofBackend, Detail: DetailBackend,
		Help: "Moving average of the time that least-time compares, of backends for which it is measured."})
)

// The dataplane and its tables.
var (
	descEntries = describe(Metric{Name: "lbproxy_map_entries", Kind: Gauge, Only: onlyEBPF, Labels: []Label{labelMap},
		Help: "Entries of a kernel table in use."})
	descCapacity = describe(Metric{Name: "lbproxy_map_capacity", Kind: Gauge, Only: onlyEBPF, Labels: []Label{labelMap},
		Help: "Entries that a kernel table has room for."})
	descDrops = describe(Metric{Name: "lbproxy_drops_total", Kind: Counter, Only: onlyEBPF, Labels: []Label{labelDrop},
		Help: "Packets and calls that were not served."})
	descCorrected = describe(Metric{Name: "lbproxy_connections_corrected_total", Kind: Counter,
		Help: "Connections by which a recount found the counts of backends wrong. Anything but 0 is a bug."})
	descWrites = describe(Metric{Name: "lbproxy_dataplane_writes_total", Kind: Counter,
		Help: "Changes made to kernel tables."})
	descErrors = describe(Metric{Name: "lbproxy_scrape_errors_total", Kind: Counter,
		Help: "Scrapes for which the dataplane's counters could not be read."})
	descBuild = describe(Metric{Name: "lbproxy_build_info", Kind: Gauge, Labels: []Label{labelGo, labelVersion},
		Help: "Always 1; the labels tell what runs."})
	descDataplane = describe(Metric{Name: "lbproxy_dataplane_info", Kind: Gauge, Labels: []Label{labelDataplane},
		Help: "Always 1; the label tells which dataplane serves."})
	descFallback = describe(Metric{Name: "lbproxy_dataplane_fallback", Kind: Gauge, Labels: []Label{labelBecause},
		Help: "1 if the dataplane serves because the better one cannot, which the label tells; else 0."})
)

// The agent.
var (
	descSynced = describe(Metric{Name: "lbproxy_synced", Kind: Gauge,
		Help: "Whether everything the cluster said at start was written once."})
	descSuccess = describe(Metric{Name: "lbproxy_sync_last_success_timestamp_seconds", Kind: Gauge,
		Help: "When changes were last applied without an error of the dataplane."})
	descServices = describe(Metric{Name: "lbproxy_services", Kind: Gauge,
		Help: "Service ports, per IP family, in the kernel."})
	descUnserved = describe(Metric{Name: "lbproxy_services_failed", Kind: Gauge,
		Help: "Service ports, per IP family, that are not what they should be."})
	descBackends = describe(Metric{Name: "lbproxy_backends", Kind: Gauge,
		Help: "Backends of all Service ports."})
	descSyncs = describe(Metric{Name: "lbproxy_syncs_total", Kind: Counter,
		Help: "Sets of changes handed to the dataplane."})
	descFailures = describe(Metric{Name: "lbproxy_sync_failures_total", Kind: Counter,
		Help: "Those of them that failed for one Service or all."})
	descSyncTime = describe(Metric{Name: "lbproxy_sync_duration_seconds", Kind: Histogram,
		Help: "Time the dataplane took to apply a set of changes."})
	descProgramming = describe(Metric{Name: "lbproxy_programming_latency_seconds", Kind: Histogram,
		Help: "Time from the event of a change until the change was in the kernel."})
	descProblems = describe(Metric{Name: "lbproxy_endpoints_problems", Kind: Gauge, Labels: []Label{labelKind, labelProblem},
		Help: "What objects ask for that is not served, or not as asked."})
	descApprox = describe(Metric{Name: "lbproxy_services_approximated", Kind: Gauge, Only: onlyIPTables, Labels: []Label{labelAlgorithm},
		Help: "Service ports, per IP family, for which the dataplane only approximates what their algorithm says."})
	descAudits = describe(Metric{Name: "lbproxy_audit_runs_total", Kind: Counter,
		Help: "Times that everything in the kernel was compared with what should be there."})
	descDifferences = describe(Metric{Name: "lbproxy_audit_differences_total", Kind: Counter,
		Help: "Differences that were found and repaired. Anything but 0 is a bug, or somebody else wrote to the tables."})
	descUnaudited = describe(Metric{Name: "lbproxy_audit_failures_total", Kind: Counter,
		Help: "Parts of an audit that could not be done."})
)

// Health.
var (
	descAnswers = describe(Metric{Name: "lbproxy_health_answers_total", Kind: Counter, Labels: []Label{labelCode, labelEndpoint},
		Help: "Answers of the health server by endpoint and HTTP code."})
	descProbes = describe(Metric{Name: "lbproxy_health_probe_duration_seconds", Kind: Histogram, Labels: []Label{labelProbe, labelResult},
		Help: "Time that probes of backends took, by kind and by result: healthy, unhealthy, or cannot, which says nothing of the backend."})
	descHealth = describe(Metric{Name: "lbproxy_health_backends", Kind: Gauge, Labels: []Label{labelState},
		Help: "Backends that are watched, by what is thought of them."})
	descTransitions = describe(Metric{Name: "lbproxy_health_transitions_total", Kind: Counter, Labels: []Label{labelFrom, labelTo},
		Help: "Changes of what is thought of a backend."})
	descEjections = describe(Metric{Name: "lbproxy_health_ejections_total", Kind: Counter, Labels: []Label{labelEjected},
		Help: "Backends that were put out, by what was found against them."})
	descIgnored = describe(Metric{Name: "lbproxy_health_ignored_backends", Kind: Gauge,
		Help: "Backends that are ejected and take new connections all the same, because too few others are left."})
	descLost = describe(Metric{Name: "lbproxy_health_symptoms_lost_total", Kind: Counter,
		Help: "Connections that did not fare well, which the agent was too slow to hear of."})
)
