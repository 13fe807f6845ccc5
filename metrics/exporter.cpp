#include "metrics/exporter.h"

#include <algorithm>
#include <boost/uuid/uuid_io.hpp>
#include <limits>
#include <optional>
#include <span>
#include <utility>

#include "metrics/process.h"
#include "metrics/text_writer.h"

namespace portway {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

/// Takes one family after another, and the series of each one after another.
class Sink {
 public:
  virtual ~Sink() = default;
  virtual void begin_family(MetricType type, std::string_view name, std::string_view help) = 0;
  /// The caller may change the metric afterwards and pass it again.
  virtual void add(const ClientMetric& metric) = 0;
};

class TextSink final : public Sink {
 public:
  explicit TextSink(std::string& out) : writer_(out) {}
  void begin_family(MetricType type, std::string_view name, std::string_view help) override {
    writer_.begin_family(type, name, help);
  }
  void add(const ClientMetric& metric) override { writer_.write(metric); }

 private:
  TextWriter writer_;
};

class FamilySink final : public Sink {
 public:
  void begin_family(MetricType type, std::string_view name, std::string_view help) override {
    MetricFamily& family = families.emplace_back();
    family.type = type;
    family.name = name;
    family.help = help;
  }
  void add(const ClientMetric& metric) override { families.back().metric.push_back(metric); }

  std::vector<MetricFamily> families;
};

/// A family of counters or gauges on its way to the sink. Its labels are named once, and one metric serves
/// for all of its series.
class Family {
 public:
  Family(Sink& sink, MetricType type, std::string_view name, std::string_view help,
         std::span<const std::string_view> labels)
      : sink_(sink), type_(type) {
    sink.begin_family(type, name, help);
    for (const std::string_view label : labels) metric_.label.push_back({std::string(label), {}});
  }
  Family(Sink& sink, MetricType type, std::string_view name, std::string_view help,
         std::initializer_list<std::string_view> labels = {})
      : Family(sink, type, name, help, std::span(labels.begin(), labels.size())) {}

  /// The value of the label of this index, for the series added from now on.
  Family& label(std::size_t index, std::string_view value) {
    metric_.label[index].value = value;
    return *this;
  }
  Family& label(std::size_t index, const ForwardId& id) {
    std::string& text = metric_.label[index].value;
    text.resize(36);
    boost::uuids::to_chars(id, text.begin());
    return *this;
  }
  void add(double value) {
    (type_ == MetricType::Counter ? metric_.counter.value : metric_.gauge.value) = value;
    sink_.add(metric_);
  }
  /// Exact up to 2^53: 9 PB, or nine quadrillion connections.
  void add(std::uint64_t value) { add(static_cast<double>(value)); }

 private:
  Sink& sink_;
  const MetricType type_;
  ClientMetric metric_;
};

template <class Value>
void emit(Sink& sink, MetricType type, std::string_view name, std::string_view help, Value value) {
  Family(sink, type, name, help).add(value);
}

/// Adds up the histograms that `get` finds in each of `writers`.
template <std::size_t N, class Writers, class Get>
void emit_histogram(Sink& sink, std::string_view name, std::string_view help,
                    const std::array<double, N>& bounds_s, const Writers& writers, Get get) {
  ClientMetric metric;
  ClientMetric::Histogram& out = metric.histogram;
  for (std::size_t i = 0; i <= N; ++i) {
    for (const auto* writer : writers) out.sample_count += get(*writer).buckets[i].get();
    out.bucket.push_back({out.sample_count, i < N ? bounds_s[i] : std::numeric_limits<double>::infinity()});
  }
  for (const auto* writer : writers) out.sample_sum += static_cast<double>(get(*writer).sum_us.get()) * 1e-6;
  sink.begin_family(MetricType::Histogram, name, help);
  sink.add(metric);
}

// --- Forwards.

template <std::size_t N>
std::uint64_t sum(const std::array<std::uint64_t, N>& values) {
  std::uint64_t total = 0;
  for (const std::uint64_t value : values) total += value;
  return total;
}

/// A family with series of each forward.
struct ForwardFamily {
  MetricType type;
  const char* name;
  const char* help;
  std::span<const std::string_view> labels;  // the first one is the forward's id, and set
  void (*add)(Family& family, const Forward& forward, const ExporterSources& sources);
};

template <std::uint64_t ForwardStats::*kMember>
void add_member(Family& family, const Forward& forward, const ExporterSources& sources) {
  if (const auto stats = sources.forward_stats(forward.id)) family.add((*stats).*kMember);
}

void add_info(Family& family, const Forward& forward, const ExporterSources&) {
  family.label(1, forward.label).label(2, forward.instance_id);
  family.label(3, std::to_string(forward.guest_port)).label(4, std::to_string(forward.host_port));
  family.add(std::uint64_t{1});
}

void add_connections(Family& family, const Forward& forward, const ExporterSources& sources) {
  const auto stats = sources.forward_stats(forward.id);
  if (!stats) return;
  family.label(1, "established").add(stats->connections_established);
  family.label(1, "failed").add(sum(stats->connect_errors));
  family.label(1, "rejected").add(sum(stats->rejected));
}

void add_connect_errors(Family& family, const Forward& forward, const ExporterSources& sources) {
  const auto stats = sources.forward_stats(forward.id);
  if (!stats) return;
  for (std::size_t i = 0; i < kConnectErrors; ++i) {
    if (stats->connect_errors[i] == 0) continue;
    family.label(1, to_string(static_cast<ConnectError>(i))).add(stats->connect_errors[i]);
  }
}

constexpr std::array<std::string_view, 1> kForwardLabel = {"forward"};
constexpr std::array<std::string_view, 2> kResultLabels = {"forward", "result"};
constexpr std::array<std::string_view, 2> kReasonLabels = {"forward", "reason"};
constexpr std::array<std::string_view, 5> kInfoLabels = {"forward", "label", "instance_id", "guest_port",
                                                         "host_port"};

constexpr ForwardFamily kForwardFamilies[] = {
    {MetricType::Gauge, "portway_forward_info",
     "Always 1, one for each forward: what its id stands for. Join on it, as in "
     "rate(portway_forward_sent_bytes_total[5m]) * on(forward) "
     "group_left(label, instance_id) portway_forward_info.",
     kInfoLabels, add_info},
    {MetricType::Gauge, "portway_forward_connections_active",
     "Connections of the forward that exist now, those still connecting to the guest included.",
     kForwardLabel, add_member<&ForwardStats::connections_active>},
    {MetricType::Counter, "portway_forward_received_bytes_total",
     "Bytes from clients that the guest's socket took; rate() of it is the upload throughput.", kForwardLabel,
     add_member<&ForwardStats::received_bytes>},
    {MetricType::Counter, "portway_forward_sent_bytes_total",
     "Bytes from the guest that clients' sockets took; rate() of it is the download throughput.",
     kForwardLabel, add_member<&ForwardStats::sent_bytes>},
    {MetricType::Counter, "portway_forward_connections_total",
     "Connections by what became of them: established (the guest answered), failed (it could not "
     "be reached; portway_forward_connect_errors_total says why), rejected (a limit turned the "
     "client away). Clients that left before the guest answered are in none of these.",
     kResultLabels, add_connections},
    {MetricType::Counter, "portway_forward_connect_errors_total",
     "Connections to the guest that failed: refused (nothing listens on the guest's port), "
     "timeout (no answer), unreachable, device_gone (no tap), resources (this node lacks "
     "descriptors or memory), source_ports (no source port is free towards the guest's), other. A "
     "reason that never occurred has no series; "
     "portway_forward_connections_total{result=\"failed\"} starts at 0.",
     kReasonLabels, add_connect_errors},
};

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
    {MetricType::Counter, "portway_io_refusals_total",
     "Submissions to io_uring that the kernel refused for want of memory: they are made again, and events "
     "come "
     "late meanwhile.",
     &WorkerCounters::io_refusals},
    {MetricType::Counter, "portway_io_losses_total",
     "Times that the kernel had no memory for completions of io_uring: everything was armed again, but a "
     "client "
     "that had just been accepted may be lost.",
     &WorkerCounters::io_losses},
    {MetricType::Counter, "portway_pipes_exhausted_total",
     "Times that a relay had to go on without a pipe, at the bound on pipes or for want of descriptors.",
     &WorkerCounters::pipes_exhausted},
    {MetricType::Counter, "portway_pipe_writes_short_total",
     "Times that a pipe did not take all it has room for, since the kernel had no memory for it: bulk is "
     "slower "
     "for a second or more.",
     &WorkerCounters::pipe_writes_short},
    {MetricType::Gauge, "portway_forwards_refusing",
     "Refusals in force: one for each client that a guest refused, or for a forward's clients together "
     "where the guest sees the node's address.",
     &WorkerCounters::refusal_gates},
    {MetricType::Counter, "portway_forwards_refusing_total",
     "Refusals that began because a guest refused a connection.", &WorkerCounters::refusal_gates_total},
    {MetricType::Counter, "portway_forwards_refusing_skipped_total",
     "Refusals that did not begin, or ended early, because a worker, or a forward on it, had as many as are "
     "probed at a time; their clients are accepted and reset.",
     &WorkerCounters::refusal_gates_skipped},
    {MetricType::Counter, "portway_guest_probes_total",
     "SYNs sent to guests to see whether a closed port is open again; none becomes a connection.",
     &WorkerCounters::refusal_probes},
    {MetricType::Counter, "portway_close_records_dropped_total",
     "Connections whose end left no record, neither in memory nor in the access log, because the control "
     "thread did not keep up; should stay 0.",
     &WorkerCounters::close_records_dropped},
};

template <class Get>
std::uint64_t sum_over(const std::vector<const WorkerCounters*>& workers, Get get) {
  std::uint64_t total = 0;
  for (const WorkerCounters* worker : workers) total += get(*worker).get();
  return total;
}

void emit_closes(Sink& sink, const std::vector<const WorkerCounters*>& workers) {
  Family closed(sink, MetricType::Counter, "portway_connections_closed_total",
                "Connections that ended, by who ended them (client, guest, node) and how: fin (both "
                "directions ended cleanly; the side sent FIN first), reset, refused, a time-out, "
                "forward_deleted, instance_stopped, tap_gone, killed (by the API), shutdown, evicted "
                "(half-closed, where connections were short). The access log "
                "has the same words.",
                {"side", "how"});
  for (std::size_t side = 0; side < kCloseSides; ++side) {
    closed.label(0, to_string(static_cast<CloseSide>(side)));
    for (std::size_t how = 0; how < kCloseHows; ++how) {
      if (static_cast<CloseHow>(how) == CloseHow::kLimit) continue;  // portway_connections_rejected_total
      closed.label(1, to_string(static_cast<CloseHow>(how)));
      closed.add(sum_over(
          workers, [&](const WorkerCounters& w) -> auto& { return w.closed[side][how]; }));
    }
  }
  Family rejected(
      sink, MetricType::Counter, "portway_connections_rejected_total",
      "Clients that were reset as soon as they were accepted: connections_max (every slot is in "
      "use), forward_gone (its session has ended meanwhile), draining (the daemon is going down), "
      "source_not_allowed and the other limits of a forward, instance_share, forward_share and "
      "source_share (connections are short, and it has used up its share), source_address (the guest cannot "
      "be shown the client's address, and must not be shown the node's instead), client_gone (the client "
      "had already reset the connection).",
      {"reason"});
  for (std::size_t i = 0; i < kRejectReasons; ++i) {
    rejected.label(0, to_string(static_cast<RejectReason>(i)));
    rejected.add(sum_over(
        workers, [&](const WorkerCounters& w) -> auto& { return w.rejected[i]; }));
  }
}

void emit_node(Sink& sink, const NodeStats& node) {
  for (const WorkerMember& member : kWorkerMembers) {
    emit(sink, member.type, member.name, member.help,
         sum_over(
             node.workers, [&](const WorkerCounters& w) -> auto& { return w.*member.value; }));
  }
  emit(sink, MetricType::Counter, "portway_busy_poll_seconds_total",
       "Time that workers looked for events instead of sleeping (proxy.busy_poll_us), other threads running "
       "in between where there are any.",
       static_cast<double>(sum_over(
           node.workers, [](const WorkerCounters& w) -> auto& { return w.busy_poll_ns; })) /
           1e9);
  emit(sink, MetricType::Gauge, "portway_connections_max",
       "Connections that the node can have now: proxy.connections_max, or fewer where descriptors are short; "
       "each listener beyond those that descriptors are reserved for takes half of one.",
       node.connections_max);
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
  Family(sink, MetricType::Gauge, "portway_io_backend_info",
         "Always 1: where readiness comes from, uring or epoll, and if not from the preferred one, the "
         "reason.",
         {"backend", "reason"})
      .label(0, node.io_backend)
      .label(1, node.io_backend_reason)
      .add(std::uint64_t{1});
}

// --- The control plane and the process.

void emit_ports(Sink& sink, const PortPool& pool, const ApiStats& api) {
  emit(sink, MetricType::Gauge, "portway_ports_allocated",
       "Host ports of the configured range that forwards hold.", pool.allocated);
  emit(sink, MetricType::Gauge, "portway_ports_available",
       "Host ports of the configured range that no forward holds; at 0 a new forward is refused.",
       pool.available);
  Family errors(sink, MetricType::Counter, "portway_port_allocation_errors_total",
                "Host ports that could not be given: taken (the one asked for is in use), exhausted (none of "
                "the range is left), resources (descriptors or memory ran out).",
                {"reason"});
  for (std::size_t i = 0; i < kPortAllocationErrors; ++i) {
    errors.label(0, to_string(static_cast<PortAllocationError>(i))).add(api.port_allocation_errors[i]);
  }
}

void emit_api(Sink& sink, const ApiStats& api) {
  Family requests(sink, MetricType::Counter, "portway_api_requests_total",
                  "Answers of the API, by route pattern and HTTP status code; \"other\" is a path that no "
                  "route has. A pair that never occurred has no series.",
                  {"route", "code"});
  for (const auto& [key, count] : api.requests) {
    requests.label(0, key.first).label(1, std::to_string(key.second)).add(count);
  }
  const std::array writers = {&api};
  emit_histogram(
      sink, "portway_api_request_duration_seconds",
      "Time from a request read to its answer handed to the kernel, over all routes.", kRequestBoundsS,
      writers, [](const ApiStats& stats) -> auto& { return stats.request_duration; });
}

void emit_source_modes(Sink& sink, const NodeStats& node) {
  Family connections(
      sink, MetricType::Counter, "portway_source_mode_connections_total",
      "Connections to guests by the address the guest sees: transparent is the client's, proxy_v2 the node's "
      "with a PROXY header before the client's bytes, plain the node's. fallback says why it is not the mode "
      "that was asked for, or why the client's port is another; empty where neither is so.",
      {"mode", "fallback"});
  for (std::size_t i = 0; i < kSourcePlans; ++i) {
    std::uint64_t count = 0;
    for (const WorkerCounters* worker : node.workers) count += worker->sources[i].get();
    const auto plan = static_cast<SourcePlan>(i);
    connections.label(0, source_mode(plan)).label(1, source_fallback(plan)).add(count);
  }
}

void emit_api_server(Sink& sink, const ServerStats& server, const ApiStats& api) {
  emit(sink, MetricType::Gauge, "portway_api_connections", "Connections to the API that are open now.",
       server.connections);
  emit(sink, MetricType::Counter, "portway_api_connections_total",
       "Connections to the API, refused ones too.", server.connections_total);
  {
    Family refused(
        sink, MetricType::Counter, "portway_api_connections_refused_total",
        "Connections to the API that were refused: network (a guest's), limit (too many are open), "
        "tls (no handshake came about), streams (answered 503, too many streams are open).",
        {"reason"});
    refused.label(0, "network").add(server.connections_refused_network);
    refused.label(0, "limit").add(server.connections_refused_limit);
    refused.label(0, "tls").add(server.handshakes_failed);
    refused.label(0, "streams").add(server.streams_refused + api.streams_refused);
  }
  emit(sink, MetricType::Counter, "portway_api_requests_refused_total",
       "Requests that never reached a route: not HTTP, too large or too slow.", server.requests_refused);
  if (server.tls_certificate_expiry == 0) return;
  emit(sink, MetricType::Gauge, "portway_api_tls_certificate_expiry_timestamp_seconds",
       "When the certificate in use ends, in seconds since the epoch.",
       static_cast<double>(server.tls_certificate_expiry));
}

void emit_answers(Sink& sink, const AnswerStats& answers) {
  emit(sink, MetricType::Gauge, "portway_api_answer_bytes",
       "Memory of the answers that clients of the API and of metrics.listen have asked for and not read yet.",
       answers.bytes);
  emit(sink, MetricType::Gauge, "portway_api_answer_bytes_max",
       "The most that they may take together; nobody may have more of it than is left for all others.",
       answers.bytes_max);
  emit(sink, MetricType::Counter, "portway_api_answers_refused_total",
       "Answers of status 503 in place of one for which there was no memory left: somebody asks and does not "
       "read.",
       answers.refused);
}

void emit_process(Sink& sink) {
  Family(sink, MetricType::Gauge, "portway_build_info",
         "Always 1: the version that runs and what it was built with.", {"version", "compiler"})
      .label(0, PORTWAY_VERSION)
      .label(1, __VERSION__)
      .add(std::uint64_t{1});
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

/// What is told of the node as a whole.
void emit_whole(Sink& sink, const ExporterSources& sources) {
  emit_node(sink, sources.node_stats());
  emit_source_modes(sink, sources.node_stats());
  emit(sink, MetricType::Counter, "portway_access_log_dropped_total",
       "Lines of the access log that were lost because the disk was too slow or refused them; should stay 0.",
       sources.access_log_dropped());
  emit(sink, MetricType::Counter, "portway_log_lines_dropped_total",
       "Lines of the daemon's own log, on standard error, that were lost because they were not read fast "
       "enough "
       "or could not be written; should stay 0.",
       sources.log_lines_dropped());
  emit(sink, MetricType::Gauge, "portway_forwards_failed",
       "Forwards that are promised and not served: another program has the port, or the guest's address is "
       "not "
       "allowed any more; should be 0.",
       sources.forwards_failed());
  emit(sink, MetricType::Gauge, "portway_instances_without_return_path",
       "Running instances whose guests see the node's address instead of their clients', because something "
       "on the node stands in the way of their answers; should be 0. Where source_mode transparent was asked "
       "for by name, clients are turned away instead.",
       sources.instances_without_return_path());
  emit(sink, MetricType::Counter, "portway_forged_packets_dropped_total",
       "Packets of guests that were dropped because their source is the address of another guest of the "
       "node.",
       sources.forged_packets());
  emit_ports(sink, sources.port_pool(), *sources.api);
  emit_api(sink, *sources.api);
  emit_api_server(sink, sources.api_server(), *sources.api);
  emit_answers(sink, sources.answers());
  emit_process(sink);
}

}  // namespace

struct Scrape::State {
  State(const ExporterSources& from, MetricsScope wanted) : sources(from), scope(wanted) {
    if (scope == MetricsScope::kNode) next_family = std::end(kForwardFamilies);
  }

  /// False when there is nothing more.
  bool go_on() {
    if (next_family != std::end(kForwardFamilies)) {
      go_on_with_forwards();
      return true;
    }
    if (scope == MetricsScope::kForwards || whole_is_told) return false;
    whole_is_told = true;
    emit_whole(sink, sources);
    return true;
  }

  /// A family's forwards until the piece is full.
  void go_on_with_forwards() {
    const ForwardFamily& what = *next_family;
    if (!family) family.emplace(sink, what.type, what.name, what.help, what.labels);
    const Forward* last = nullptr;
    bool full = false;
    sources.forwards_after(place, [&](const Forward& forward) {
      what.add(family->label(0, forward.id), forward, sources);
      last = &forward;
      full = text.size() >= kPieceBytes;
      return !full;
    });
    if (full) {
      place = {last->instance_id, last->id};
      return;
    }
    place = {};
    family.reset();
    ++next_family;
  }

  const ExporterSources& sources;
  const MetricsScope scope;
  std::string text;  // of the piece
  TextSink sink{text};
  const ForwardFamily* next_family = std::begin(kForwardFamilies);
  std::optional<Family> family;  // while it is told
  ForwardPlace place;            // in it
  bool whole_is_told = false;
};

Scrape::Scrape(const ExporterSources& sources, MetricsScope scope)
    : state_(std::make_unique<State>(sources, scope)) {}

Scrape::~Scrape() = default;

std::string Scrape::next() {
  while (state_->text.size() < kPieceBytes && state_->go_on()) {
  }
  return std::exchange(state_->text, {});
}

Exporter::Exporter(ExporterSources sources) : sources_(std::move(sources)) {
  (void)read_process_stats();  // by the clock as it is now, not as it is set until the first scrape
}

std::vector<MetricFamily> Exporter::Collect() const {
  FamilySink sink;
  for (const ForwardFamily& what : kForwardFamilies) {
    Family family(sink, what.type, what.name, what.help, what.labels);
    sources_.forwards_after({}, [&](const Forward& forward) {
      what.add(family.label(0, forward.id), forward, sources_);
      return true;
    });
  }
  emit_whole(sink, sources_);
  return std::move(sink.families);
}

std::unique_ptr<Scrape> Exporter::scrape(MetricsScope scope) const {
  return std::make_unique<Scrape>(sources_, scope);
}

std::string Exporter::expose(MetricsScope scope) const {
  Scrape scrape(sources_, scope);
  std::string text;
  for (std::string piece = scrape.next(); !piece.empty(); piece = scrape.next()) text += piece;
  return text;
}

}  // namespace portway
