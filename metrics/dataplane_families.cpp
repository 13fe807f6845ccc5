#include "metrics/dataplane_families.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace portway {
namespace {

/// A family with one number: the sum over the workers.
struct WorkerMember {
  MetricType type;
  const char* name;
  const char* help;
  Counter WorkerCounters::*value;
};

constexpr WorkerMember kWorkerMembers[] = {
    {MetricType::Gauge, "portway_connections_active",
     "Live connections, including those of deleted forwards that continue.",
     &WorkerCounters::connections_active},
    {MetricType::Counter, "portway_accept_pauses_total",
     "Times that accepting paused for lack of descriptors or memory, and resumed by itself; should stay 0.",
     &WorkerCounters::accept_pauses},
    {MetricType::Counter, "portway_bytes_spliced_total",
     "Bytes relayed by splice(2), without entering user space: bulk transfers.",
     &WorkerCounters::spliced_bytes},
    {MetricType::Counter, "portway_bytes_copied_total",
     "Bytes relayed by recv(2) and send(2): small messages.", &WorkerCounters::copied_bytes},
    {MetricType::Gauge, "portway_pipes_open",
     "Open pipes, held by a connection or idle; each uses two descriptors.", &WorkerCounters::pipes_open},
    {MetricType::Gauge, "portway_pipes_in_use",
     "Pipes that hold bytes of a connection; near 0 unless receivers are slower than their senders.",
     &WorkerCounters::pipes_in_use},
    {MetricType::Gauge, "portway_pipes_clamped",
     "Pipes that the kernel made smaller than requested because of fs.pipe-user-pages-soft: raise it, or "
     "bulk transfers are slower.",
     &WorkerCounters::pipes_clamped},
    {MetricType::Counter, "portway_io_refusals_total",
     "Submissions to io_uring that the kernel refused for lack of memory. They are retried; until then "
     "events arrive late.",
     &WorkerCounters::io_refusals},
    {MetricType::Counter, "portway_io_losses_total",
     "Times that the kernel had no memory for io_uring completions. Everything was armed again, but a client "
     "that had just been accepted may be lost.",
     &WorkerCounters::io_losses},
    {MetricType::Counter, "portway_pipes_exhausted_total",
     "Times that a relay had to do without a pipe, because of the bound on pipes, its instance's share of "
     "them, or "
     "for lack of descriptors.",
     &WorkerCounters::pipes_exhausted},
    {MetricType::Counter, "portway_pipe_writes_short_total",
     "Times that a pipe took less than it had room for, because the kernel had no memory: bulk transfers are "
     "slower for a second or more.",
     &WorkerCounters::pipe_writes_short},
    {MetricType::Gauge, "portway_forwards_refusing",
     "Refusals in force: one per client that a guest refused, or one for all clients of a forward if the "
     "guest sees the node's address.",
     &WorkerCounters::refusal_gates},
    {MetricType::Counter, "portway_forwards_refusing_total",
     "Refusals that began because a guest refused a connection.", &WorkerCounters::refusal_gates_total},
    {MetricType::Counter, "portway_forwards_refusing_skipped_total",
     "Refusals that did not begin, or ended early, because a worker, or a forward on it, already probed as "
     "many as it may; their clients are accepted and reset.",
     &WorkerCounters::refusal_gates_skipped},
    {MetricType::Counter, "portway_guest_probes_total",
     "SYNs sent to guests to check whether a closed port is open again; none becomes a connection.",
     &WorkerCounters::refusal_probes},
    {MetricType::Counter, "portway_close_records_dropped_total",
     "Ended connections without a record, neither in memory nor in the access log, because the control "
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
  Family closed(
      sink, MetricType::Counter, "portway_connections_closed_total",
      "Ended connections, by who ended them (client, guest, node) and how: fin (both directions "
      "ended cleanly; the side sent FIN first), reset, refused, a timeout, forward_deleted, "
      "forward_disabled, forward_expired, "
      "instance_stopped, tap_gone, device_gone, address_changed (of the guest), killed (by the API), "
      "shutdown, evicted (half-closed, when connections were short). The access log uses the same words.",
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
  Family rejected(sink, MetricType::Counter, "portway_connections_rejected_total",
                  "Clients that were reset as soon as they were accepted: connections_max (every slot is in "
                  "use), forward_gone (its session has ended meanwhile), draining (the daemon is shutting "
                  "down), source_not_allowed and the other limits of a forward, instance_share, "
                  "forward_share and source_share (connections are short, and the share is used up), "
                  "owner_connections_max (the instance's owner has owners.max_connections), "
                  "source_address (the guest cannot see the client's address, and must not see the node's "
                  "instead), client_gone (the client had already reset the connection).",
                  {"reason"});
  for (std::size_t i = 0; i < kRejectReasons; ++i) {
    rejected.label(0, to_string(static_cast<RejectReason>(i)));
    rejected.add(sum_over(
        workers, [&](const WorkerCounters& w) -> auto& { return w.rejected[i]; }));
  }
}

void emit_source_modes(Sink& sink, const NodeStats& node) {
  Family connections(
      sink, MetricType::Counter, "portway_source_mode_connections_total",
      "Connections to guests by the address that the guest sees: transparent is the client's, plain the "
      "node's, proxy_v2 the node's with a PROXY header before the client's bytes. fallback says why it is "
      "not the requested mode, or why the client's port differs; else it is empty.",
      {"mode", "fallback"});
  for (std::size_t i = 0; i < kSourcePlans; ++i) {
    std::uint64_t count = 0;
    for (const WorkerCounters* worker : node.workers) count += worker->sources[i].get();
    const auto plan = static_cast<SourcePlan>(i);
    connections.label(0, source_mode(plan)).label(1, source_fallback(plan)).add(count);
  }
}

}  // namespace

void emit_dataplane(Sink& sink, const NodeStats& node) {
  for (const WorkerMember& member : kWorkerMembers) {
    emit(sink, member.type, member.name, member.help,
         sum_over(
             node.workers, [&](const WorkerCounters& w) -> auto& { return w.*member.value; }));
  }
  emit(sink, MetricType::Counter, "portway_busy_poll_seconds_total",
       "Time that workers polled for events instead of sleeping (proxy.busy_poll_us); other threads can run "
       "in between.",
       static_cast<double>(sum_over(
           node.workers, [](const WorkerCounters& w) -> auto& { return w.busy_poll_ns; })) /
           1e9);
  emit(sink, MetricType::Gauge, "portway_connections_max",
       "Connections that the node can have now: proxy.connections_max, or fewer if descriptors are short. "
       "Each listener beyond those with reserved descriptors costs half a connection.",
       node.connections_max);
  emit_closes(sink, node.workers);
  emit_histogram(
      sink, "portway_connect_duration_seconds",
      "Time from accepting a client to the guest's answer: what the forward adds to the client's wait.",
      kConnectBoundsS, node.workers, [](const WorkerCounters& w) -> auto& { return w.connect_duration; });
  emit_histogram(
      sink, "portway_connection_duration_seconds",
      "Lifetime of ended connections, from accept to the last byte; running ones are not included yet.",
      kConnectionBoundsS, node.workers,
      [](const WorkerCounters& w) -> auto& { return w.connection_duration; });
  Family(sink, MetricType::Gauge, "portway_io_backend_info",
         "Always 1: the source of readiness, uring or epoll, and the reason if it is not the preferred one.",
         {"backend", "reason"})
      .label(0, node.io_backend)
      .label(1, node.io_backend_reason)
      .add(std::uint64_t{1});
  emit_source_modes(sink, node);
}

}  // namespace portway
