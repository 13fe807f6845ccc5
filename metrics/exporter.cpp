#include "metrics/exporter.h"

#include <prometheus/text_serializer.h>

#include <limits>
#include <sstream>
#include <utility>

#include "metrics/process.h"

namespace portway {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;
using Sink = std::function<void(MetricFamily family)>;

MetricFamily make_family(MetricType type, std::string name, std::string help) {
  MetricFamily family;
  family.name = std::move(name);
  family.help = std::move(help);
  family.type = type;
  return family;
}

void add(MetricFamily& family, double value, Labels labels = {}) {
  ClientMetric& metric = family.metric.emplace_back();
  metric.label = std::move(labels);
  (family.type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
}

/// Exact up to 2^53: 9 PB, or nine quadrillion connections.
void add(MetricFamily& family, std::uint64_t value, Labels labels = {}) {
  add(family, static_cast<double>(value), std::move(labels));
}

template <class Value>
void emit(const Sink& sink, MetricType type, std::string name, std::string help, Value value,
          Labels labels = {}) {
  MetricFamily family = make_family(type, std::move(name), std::move(help));
  add(family, value, std::move(labels));
  sink(std::move(family));
}

/// Adds up the histograms that `get` finds in each of `writers`.
template <std::size_t N, class Writers, class Get>
void emit_histogram(const Sink& sink, std::string name, std::string help,
                    const std::array<double, N>& bounds_s, const Writers& writers, Get get) {
  MetricFamily family = make_family(MetricType::Histogram, std::move(name), std::move(help));
  ClientMetric::Histogram& out = family.metric.emplace_back().histogram;
  for (std::size_t i = 0; i <= N; ++i) {
    for (const auto* writer : writers) out.sample_count += get(*writer).buckets[i].get();
    out.bucket.push_back({out.sample_count, i < N ? bounds_s[i] : std::numeric_limits<double>::infinity()});
  }
  for (const auto* writer : writers) out.sample_sum += static_cast<double>(get(*writer).sum_us.get()) * 1e-6;
  sink(std::move(family));
}

// --- Forwards.

/// A family with one number of each forward.
struct ForwardMember {
  MetricType type;
  const char* name;
  const char* help;
  std::uint64_t ForwardStats::*value;
};

constexpr ForwardMember kForwardMembers[] = {
    {MetricType::Gauge, "portway_forward_connections_active",
     "Connections of the forward that exist now, those still connecting to the guest included.",
     &ForwardStats::connections_active},
    {MetricType::Counter, "portway_forward_received_bytes_total",
     "Bytes from clients that the guest's socket took; rate() of it is the upload throughput.",
     &ForwardStats::received_bytes},
    {MetricType::Counter, "portway_forward_sent_bytes_total",
     "Bytes from the guest that clients' sockets took; rate() of it is the download throughput.",
     &ForwardStats::sent_bytes},
};

template <std::size_t N>
std::uint64_t sum(const std::array<std::uint64_t, N>& values) {
  std::uint64_t total = 0;
  for (const std::uint64_t value : values) total += value;
  return total;
}

/// Forwards with their ids as text, which every series of theirs repeats.
using NamedStats = std::vector<std::pair<std::string, ForwardStats>>;

void emit_forward_connections(const Sink& sink, const NamedStats& forwards) {
  MetricFamily family = make_family(MetricType::Counter, "portway_forward_connections_total",
                                    "Connections by what became of them: established (the guest answered), "
                                    "failed (it could not be reached; "
                                    "portway_forward_connect_errors_total says why), rejected (a limit "
                                    "turned the client away). Clients that left "
                                    "before the guest answered are in none of these.");
  family.metric.reserve(forwards.size() * 3);
  for (const auto& [id, stats] : forwards) {
    add(family, stats.connections_established, {{"forward", id}, {"result", "established"}});
    add(family, sum(stats.connect_errors), {{"forward", id}, {"result", "failed"}});
    add(family, sum(stats.rejected), {{"forward", id}, {"result", "rejected"}});
  }
  sink(std::move(family));
}

void emit_forward_connect_errors(const Sink& sink, const NamedStats& forwards) {
  MetricFamily family = make_family(MetricType::Counter, "portway_forward_connect_errors_total",
                                    "Connections to the guest that failed: refused (nothing listens on the "
                                    "guest's port), timeout (no answer), "
                                    "unreachable, device_gone (no tap), resources (this node lacks "
                                    "descriptors, memory or source ports), other. A "
                                    "reason that never occurred has no series; "
                                    "portway_forward_connections_total{result=\"failed\"} starts at 0.");
  for (const auto& [id, stats] : forwards) {
    for (std::size_t i = 0; i < kConnectErrors; ++i) {
      if (stats.connect_errors[i] == 0) continue;
      const std::string_view reason = to_string(static_cast<ConnectError>(i));
      add(family, stats.connect_errors[i], {{"forward", id}, {"reason", std::string(reason)}});
    }
  }
  sink(std::move(family));
}

void emit_forwards(const Sink& sink, const ExporterSources& sources) {
  MetricFamily info = make_family(MetricType::Gauge, "portway_forward_info",
                                  "Always 1, one for each forward: what its id stands for. Join on it, as in "
                                  "rate(portway_forward_sent_bytes_total[5m]) * on(forward) "
                                  "group_left(label, instance_id) portway_forward_info.");
  sources.for_each_forward([&](const Forward& forward) {
    add(info, std::uint64_t{1},
        {{"forward", to_string(forward.id)},
         {"label", forward.label},
         {"instance_id", forward.instance_id},
         {"guest_port", std::to_string(forward.guest_port)},
         {"host_port", std::to_string(forward.host_port)}});
  });
  sink(std::move(info));

  NamedStats forwards;
  for (const ForwardStats& stats : sources.forward_stats()) forwards.emplace_back(to_string(stats.id), stats);
  for (const ForwardMember& member : kForwardMembers) {
    MetricFamily family = make_family(member.type, member.name, member.help);
    family.metric.reserve(forwards.size());
    for (const auto& [id, stats] : forwards) add(family, stats.*member.value, {{"forward", id}});
    sink(std::move(family));
  }
  emit_forward_connections(sink, forwards);
  emit_forward_connect_errors(sink, forwards);
}

// --- The data plane.

/// A family with one number: the sum over the workers.
struct WorkerMember {
  MetricType type;
  const char* name;
  const char* help;
  Counter WorkerCounters::*value;
};

constexpr WorkerMember kWorkerMembers[] = {
    {MetricType::Gauge, "portway_connections_active",
     "Connections that exist now, those of deleted forwards that run on included.",
     &WorkerCounters::connections_active},
    {MetricType::Counter, "portway_accept_pauses_total",
     "Times that accepting stopped for want of descriptors or memory, to resume by itself; should stay 0.",
     &WorkerCounters::accept_pauses},
    {MetricType::Counter, "portway_bytes_spliced_total",
     "Bytes relayed by splice(2), without entering user space: bulk transfers.",
     &WorkerCounters::spliced_bytes},
    {MetricType::Counter, "portway_bytes_copied_total",
     "Bytes relayed by recv(2) and send(2): small messages.", &WorkerCounters::copied_bytes},
    {MetricType::Gauge, "portway_pipes_open",
     "Pipes that exist now, held by a connection or waiting for the next one; each is two descriptors.",
     &WorkerCounters::pipes_open},
    {MetricType::Gauge, "portway_pipes_in_use",
     "Pipes that hold bytes for a connection now; near 0 unless receivers are slower than their senders.",
     &WorkerCounters::pipes_in_use},
    {MetricType::Gauge, "portway_pipes_clamped",
     "Pipes that the kernel made smaller than asked, for fs.pipe-user-pages-soft: raise it, bulk transfers "
     "are slower.",
     &WorkerCounters::pipes_clamped},
    {MetricType::Counter, "portway_pipes_exhausted_total",
     "Times that a relay had to go on without a pipe, at the bound on pipes or for want of descriptors.",
     &WorkerCounters::pipes_exhausted},
};

template <class Get>
std::uint64_t sum_over(const std::vector<const WorkerCounters*>& workers, Get get) {
  std::uint64_t total = 0;
  for (const WorkerCounters* worker : workers) total += get(*worker).get();
  return total;
}

void emit_closes(const Sink& sink, const std::vector<const WorkerCounters*>& workers) {
  MetricFamily closed =
      make_family(MetricType::Counter, "portway_connections_closed_total",
                  "Connections that ended, by who ended them (client, guest, node) and how: fin (both "
                  "directions ended cleanly; the "
                  "side sent FIN first), reset, refused, a time-out, forward_deleted, shutdown.");
  for (std::size_t side = 0; side < kCloseSides; ++side) {
    for (std::size_t how = 0; how < kCloseHows; ++how) {
      add(closed,
          sum_over(
              workers, [&](const WorkerCounters& w) -> auto& { return w.closed[side][how]; }),
          {{"side", std::string(to_string(static_cast<CloseSide>(side)))},
           {"how", std::string(to_string(static_cast<CloseHow>(how)))}});
    }
  }
  sink(std::move(closed));

  MetricFamily rejected = make_family(MetricType::Counter, "portway_connections_rejected_total",
                                      "Clients that were reset as soon as they were accepted: "
                                      "connections_max (every slot is in use), forward_gone (it "
                                      "was deleted meanwhile), draining (the daemon is going down).");
  for (std::size_t i = 0; i < kRejectReasons; ++i) {
    add(rejected,
        sum_over(
            workers, [&](const WorkerCounters& w) -> auto& { return w.rejected[i]; }),
        {{"reason", std::string(to_string(static_cast<RejectReason>(i)))}});
  }
  sink(std::move(rejected));
}

void emit_node(const Sink& sink, const NodeStats& node) {
  for (const WorkerMember& member : kWorkerMembers) {
    emit(sink, member.type, member.name, member.help,
         sum_over(
             node.workers, [&](const WorkerCounters& w) -> auto& { return w.*member.value; }));
  }
  emit_closes(sink, node.workers);
  emit_histogram(
      sink, "portway_connect_duration_seconds",
      "Time from accepting a client to the guest's answer: what the forward adds to the client's wait.",
      kConnectBoundsS, node.workers, [](const WorkerCounters& w) -> auto& { return w.connect_duration; });
  emit_histogram(
      sink, "portway_connection_duration_seconds",
      "Life of the connections that ended, from accept to the last byte; running ones are not in it yet.",
      kConnectionBoundsS, node.workers,
      [](const WorkerCounters& w) -> auto& { return w.connection_duration; });
  emit(sink, MetricType::Gauge, "portway_io_backend_info",
       "Always 1: where readiness comes from, uring or epoll, and if not from the preferred one, the reason.",
       std::uint64_t{1}, {{"backend", node.io_backend}, {"reason", node.io_backend_reason}});
}

// --- The control plane and the process.

void emit_ports(const Sink& sink, const PortPool& pool, const ApiStats& api) {
  emit(sink, MetricType::Gauge, "portway_ports_allocated",
       "Host ports of the configured range that forwards hold.", pool.allocated);
  emit(sink, MetricType::Gauge, "portway_ports_available",
       "Host ports of the configured range that no forward holds; at 0 a new forward is refused.",
       pool.available);
  MetricFamily errors = make_family(MetricType::Counter, "portway_port_allocation_errors_total",
                                    "Host ports that could not be given: taken (the one asked for is in "
                                    "use), exhausted (none of the range is left), "
                                    "resources (descriptors or memory ran out).");
  for (std::size_t i = 0; i < kPortAllocationErrors; ++i) {
    add(errors, api.port_allocation_errors[i],
        {{"reason", std::string(to_string(static_cast<PortAllocationError>(i)))}});
  }
  sink(std::move(errors));
}

void emit_api(const Sink& sink, const ApiStats& api) {
  MetricFamily requests = make_family(MetricType::Counter, "portway_api_requests_total",
                                      "Answers of the API, by route pattern and HTTP status code.");
  for (const auto& [key, count] : api.requests) {
    add(requests, count, {{"route", key.first}, {"code", std::to_string(key.second)}});
  }
  sink(std::move(requests));
  const std::array writers = {&api};
  emit_histogram(
      sink, "portway_api_request_duration_seconds",
      "Time from a request read to its answer handed to the kernel, over all routes.", kRequestBoundsS,
      writers, [](const ApiStats& stats) -> auto& { return stats.request_duration; });
}

void emit_api_server(const Sink& sink, const ServerStats& server) {
  emit(sink, MetricType::Gauge, "portway_api_connections", "Connections to the API that are open now.",
       server.connections);
  emit(sink, MetricType::Counter, "portway_api_connections_total",
       "Connections to the API, refused ones too.", server.connections_total);
  MetricFamily refused =
      make_family(MetricType::Counter, "portway_api_connections_refused_total",
                  "Connections to the API that were refused: network (a guest's), limit (too many are open), "
                  "tls (no handshake came about), streams (answered 503, too many streams are open).");
  add(refused, server.connections_refused_network, {{"reason", "network"}});
  add(refused, server.connections_refused_limit, {{"reason", "limit"}});
  add(refused, server.handshakes_failed, {{"reason", "tls"}});
  add(refused, server.streams_refused, {{"reason", "streams"}});
  sink(std::move(refused));
  emit(sink, MetricType::Counter, "portway_api_requests_refused_total",
       "Requests that never reached a route: not HTTP, too large or too slow.", server.requests_refused);
  if (server.tls_certificate_expiry == 0) return;
  emit(sink, MetricType::Gauge, "portway_api_tls_certificate_expiry_timestamp_seconds",
       "When the certificate in use ends, in seconds since the epoch.",
       static_cast<double>(server.tls_certificate_expiry));
}

void emit_process(const Sink& sink) {
  emit(sink, MetricType::Gauge, "portway_build_info",
       "Always 1: the version that runs and what it was built with.", std::uint64_t{1},
       {{"version", PORTWAY_VERSION}, {"compiler", __VERSION__}});
  const ProcessStats process = read_process_stats();
  emit(sink, MetricType::Gauge, "process_open_fds", "Open descriptors; a relayed connection is two.",
       process.open_fds);
  emit(sink, MetricType::Gauge, "process_max_fds", "The limit on open descriptors (RLIMIT_NOFILE).",
       process.max_fds);
  emit(sink, MetricType::Gauge, "process_resident_memory_bytes",
       "Resident memory of user space; the buffers of sockets and pipes are the kernel's and come on top.",
       process.resident_bytes);
  emit(sink, MetricType::Counter, "process_cpu_seconds_total",
       "User and system time of all threads; rate() of it is the number of cores in use.",
       process.cpu_seconds);
  emit(sink, MetricType::Gauge, "process_start_time_seconds",
       "When the process started, in seconds since the epoch; counters began at 0 then.",
       process.start_time_seconds);
}

}  // namespace

Exporter::Exporter(ExporterSources sources) : sources_(std::move(sources)) {}

void Exporter::collect_each(const Sink& sink) const {
  emit_forwards(sink, sources_);
  emit_node(sink, sources_.node_stats());
  emit_ports(sink, sources_.port_pool(), *sources_.api);
  emit_api(sink, *sources_.api);
  emit_api_server(sink, sources_.api_server());
  emit_process(sink);
}

std::vector<MetricFamily> Exporter::Collect() const {
  std::vector<MetricFamily> families;
  collect_each([&](MetricFamily family) { families.push_back(std::move(family)); });
  return families;
}

std::string Exporter::expose() const {
  const prometheus::TextSerializer serializer;
  std::ostringstream out;
  std::vector<MetricFamily> one(1);
  collect_each([&](MetricFamily family) {
    one.front() = std::move(family);
    serializer.Serialize(out, one);
  });
  return std::move(out).str();
}

}  // namespace portway
