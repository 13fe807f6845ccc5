// What Prometheus sees of this node, read at the moment of the scrape.
//
// The exporter keeps no numbers of its own: it walks the registry's forwards and the workers' counters when
// asked, so no worker is stopped or messaged, and a deleted forward's series are gone with it. What is told
// of the node as a whole comes from the workers' own counters, which outlive every forward and never go
// backwards. A scrape is made piece by piece, as its reader takes it: it holds a piece, however many forwards
// there are, and what happens between two pieces is told in the later one. Control thread only, as are the
// sources.
#pragma once

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/http/server_stats.h"
#include "base/forward.h"
#include "control/api_stats.h"
#include "control/registry.h"
#include "proxy/stats.h"

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
  /// Calls the visitor with the forwards of the registry that come after a place, until it returns false. The
  /// order of two forwards never changes.
  std::function<void(const ForwardPlace& after, const std::function<bool(const Forward&)>& visit)>
      forwards_after;
  /// Nothing where it is not served.
  std::function<std::optional<ForwardStats>(const ForwardId&)> forward_stats;
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
  std::function<AnswerStats()> answers;
  const ApiStats* api = nullptr;
};

/// One scrape on its way.
class Scrape {
 public:
  /// More is added to a piece until it has this many bytes; the node's own series are one piece.
  static constexpr std::size_t kPieceBytes = 16 * 1024;

  /// `sources` must outlive it.
  Scrape(const ExporterSources& sources, MetricsScope scope);
  ~Scrape();
  Scrape(const Scrape&) = delete;
  Scrape& operator=(const Scrape&) = delete;

  /// What comes next of the Prometheus text format; empty: that was all.
  std::string next();

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

class Exporter : public prometheus::Collectable {
 public:
  static constexpr std::string_view kContentType = "text/plain; version=0.0.4; charset=utf-8";

  explicit Exporter(ExporterSources sources);

  /// Every family at once.
  std::vector<prometheus::MetricFamily> Collect() const override;

  /// A scrape, which must not outlive the exporter.
  std::unique_ptr<Scrape> scrape(MetricsScope scope = MetricsScope::kAll) const;
  /// The whole of one.
  std::string expose(MetricsScope scope = MetricsScope::kAll) const;

 private:
  const ExporterSources sources_;
};

}  // namespace portway
