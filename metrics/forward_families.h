// The metrics of a forward, portway_forward_*: one table row each.
#pragma once

#include <span>
#include <string_view>

#include "metrics/sink.h"
#include "metrics/sources.h"

namespace portway {

/// A family with series for each forward.
struct ForwardFamily {
  MetricType type;
  const char* name;
  const char* help;
  std::span<const std::string_view> labels;  // the first is the forward's id, already set
  void (*add)(Family& family, const Forward& forward, const ExporterSources& sources);
};

/// In the order of a scrape.
std::span<const ForwardFamily> forward_families();

}  // namespace portway
