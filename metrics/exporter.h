// The metrics of this node for Prometheus, read at the moment of the scrape.
//
// The exporter keeps no numbers of its own: at a scrape it walks the registry's forwards
// (metrics/forward_families.h), the workers' counters (metrics/dataplane_families.h) and the rest
// (metrics/control_families.h). So no worker is stopped or messaged, and a deleted forward's series
// disappear with it. A scrape is produced piece by piece, as the reader takes it: only one piece is in
// memory, however many forwards there are. What changes between two pieces shows in the later one. Control
// thread only, as are the sources.
#pragma once

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "metrics/sources.h"

namespace portway {

/// Which part of the metrics a scrape asks for.
enum class MetricsScope : std::uint8_t {
  kAll,
  kNode,      // the node as a whole: the number of series does not depend on the number of forwards
  kForwards,  // portway_forward_*
};

/// A scrape in progress.
class Scrape {
 public:
  /// More is added to a piece until it has this many bytes; the node's own series are one piece.
  static constexpr std::size_t kPieceBytes = 16 * 1024;

  /// `sources` must outlive it.
  Scrape(const ExporterSources& sources, MetricsScope scope);
  ~Scrape();
  Scrape(const Scrape&) = delete;
  Scrape& operator=(const Scrape&) = delete;

  /// The next piece of the Prometheus text format; empty: the end.
  std::string next();

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

class Exporter : public prometheus::Collectable {
 public:
  static constexpr std::string_view kContentType = "text/plain; version=0.0.4; charset=utf-8";

  explicit Exporter(const ExporterSources& sources);

  /// Every family at once.
  std::vector<prometheus::MetricFamily> Collect() const override;

  /// A scrape, which must not outlive the exporter.
  std::unique_ptr<Scrape> scrape(MetricsScope scope = MetricsScope::kAll) const;
  /// A scrape as a function that returns its next piece.
  std::function<std::string()> pieces(MetricsScope scope) const;
  /// A whole scrape in one string.
  std::string expose(MetricsScope scope = MetricsScope::kAll) const;

 private:
  const ExporterSources sources_;
};

}  // namespace portway
