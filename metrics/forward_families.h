// The metrics of a forward: portway_forward_*. One row of a table each.
#pragma once

#include <span>
#include <string_view>

#include "metrics/sink.h"
#include "metrics/sources.h"

namespace portway {

/// A family with series of each forward.
struct ForwardFamily {
  MetricType type;
  const char* name;
  const char* help;
  std::span<const std::string_view> labels;  // the first one is the forward's id, and set
  void (*add)(Family& family, const Forward& forward, const ExporterSources& sources);
};

/// In the order of a scrape.
std::span<const ForwardFamily> forward_families();

}  // namespace portway
