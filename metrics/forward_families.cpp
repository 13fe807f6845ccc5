#include "metrics/forward_families.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "proxy/stats.h"

namespace portway {
namespace {

template <std::size_t N>
std::uint64_t sum(const std::array<std::uint64_t, N>& values) {
  std::uint64_t total = 0;
  for (const std::uint64_t value : values) total += value;
  return total;
}

template <std::uint64_t ForwardStats::*kMember>
void add_member(Family& family, const Forward& forward, const ExporterSources& sources) {
  if (const auto stats = sources.dataplane.forward_stats(forward.id)) family.add((*stats).*kMember);
}

void add_info(Family& family, const Forward& forward, const ExporterSources&) {
  family.label(1, forward.label).label(2, forward.instance_id);
  family.label(3, std::to_string(forward.guest_port)).label(4, std::to_string(forward.host_port));
  family.add(std::uint64_t{1});
}

void add_connections(Family& family, const Forward& forward, const ExporterSources& sources) {
  const auto stats = sources.dataplane.forward_stats(forward.id);
  if (!stats) return;
  family.label(1, "established").add(stats->connections_established);
  family.label(1, "failed").add(sum(stats->connect_errors));
  family.label(1, "rejected").add(sum(stats->rejected));
}

void add_connect_errors(Family& family, const Forward& forward, const ExporterSources& sources) {
  const auto stats = sources.dataplane.forward_stats(forward.id);
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

constexpr ForwardFamily kFamilies[] = {
    {MetricType::Gauge, "portway_forward_info",
     "Always 1, one for each forward: what its id stands for. Join on it, as in "
     "rate(portway_forward_sent_bytes_total[5m]) * on(forward) group_left(label, instance_id) "
     "portway_forward_info.",
     kInfoLabels, add_info},
    {MetricType::Gauge, "portway_forward_connections_active",
     "Live connections of the forward, including those still connecting to the guest.", kForwardLabel,
     add_member<&ForwardStats::connections_active>},
    {MetricType::Counter, "portway_forward_received_bytes_total",
     "Bytes from clients that the guest's socket took; its rate() is the upload throughput.", kForwardLabel,
     add_member<&ForwardStats::received_bytes>},
    {MetricType::Counter, "portway_forward_sent_bytes_total",
     "Bytes from the guest that clients' sockets took; its rate() is the download throughput.", kForwardLabel,
     add_member<&ForwardStats::sent_bytes>},
    {MetricType::Counter, "portway_forward_connections_total",
     "Connections by result: established (the guest answered), failed (the guest could not be reached; "
     "portway_forward_connect_errors_total says why), rejected (a limit rejected the client). Clients that "
     "left before the guest answered are in none of these.",
     kResultLabels, add_connections},
    {MetricType::Counter, "portway_forward_connect_errors_total",
     "Failed connections to the guest: refused (nothing listens on the guest's port), timeout (no answer), "
     "unreachable, device_gone (no tap), resources (this node lacks descriptors or memory), source_ports (no "
     "source port is free for the guest's port), other. A reason that never occurred has no series; "
     "portway_forward_connections_total{result=\"failed\"} starts at 0.",
     kReasonLabels, add_connect_errors},
};

}  // namespace

std::span<const ForwardFamily> forward_families() {
  return kFamilies;
}

}  // namespace portway
