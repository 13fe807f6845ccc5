// What Prometheus sees of this node, read at the moment of the scrape.
//
// The exporter keeps no numbers of its own: it walks the registry's forwards and the workers' counters when
// asked, so no worker is stopped or messaged, and a deleted forward's series are gone with it. What is told
// of the node as a whole comes from the workers' own counters, which outlive every forward and never go
// backwards. Control thread only, as are the sources.
#pragma once

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "config/forward.h"
#include "metrics/api_stats.h"
#include "metrics/stats.h"

namespace portway {

/// Host ports of the configured range.
struct PortPool {
  std::uint64_t allocated = 0;
  std::uint64_t available = 0;
};

/// Which part of the metrics a scrape asks for.
enum class MetricsScope : std::uint8_t {
  kAll,
  kNode,      // what is told of the node as a whole: as many series however many forwards there are
  kForwards,  // portway_forward_*
};

/// Where the exporter reads; every one must be set and stay callable as long as the exporter lives.
struct ExporterSources {
  /// Calls the visitor with each forward in the registry.
  std::function<void(const std::function<void(const Forward&)>& visit)> for_each_forward;
  std::function<std::vector<ForwardStats>()> forward_stats;
  std::function<NodeStats()> node_stats;
  std::function<PortPool()> port_pool;
  std::function<std::uint64_t()> access_log_dropped;
  std::function<std::uint64_t()> log_lines_dropped;
  /// Forwards that are promised and not served.
  std::function<std::uint64_t()> forwards_failed;
  /// Running instances whose guests should see their clients' addresses, and do not.
  std::function<std::uint64_t()> instances_without_return_path;
  /// Packets that the source guard has dropped.
  std::function<std::uint64_t()> forged_packets;
  std::function<ServerStats()> api_server;
  const ApiStats* api = nullptr;
};

class Exporter : public prometheus::Collectable {
 public:
  static constexpr std::string_view kContentType = "text/plain; version=0.0.4; charset=utf-8";

  explicit Exporter(ExporterSources sources);

  /// Every family at once.
  std::vector<prometheus::MetricFamily> Collect() const override;

  /// The Prometheus text format, written series by series: no family is ever held as a whole.
  std::string expose(MetricsScope scope = MetricsScope::kAll) const;

 private:
  const ExporterSources sources_;
  mutable std::size_t text_bytes_ = 0;  // of the largest scrape: the next one's string grows but once
};

}  // namespace portway
