// What the exporter reads. Nothing is copied until a scrape asks for it.
#pragma once

#include "control/api_stats.h"
#include "control/port_allocator.h"
#include "control/registry.h"
#include "metrics/node_numbers.h"
#include "proxy/dataplane.h"

namespace portway {

/// All of it must outlive the exporter and its scrapes.
struct ExporterSources {
  const Registry& registry;
  const Dataplane& dataplane;
  const PortAllocator& ports;
  const ApiStats& api;
  const NodeNumbersReader& node;
};

}  // namespace portway
