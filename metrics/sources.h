// What the exporter reads. Nothing is copied until a scrape asks for it.
#pragma once

#include <cstdint>

#include "api/http/server_stats.h"
#include "control/api_stats.h"
#include "control/port_allocator.h"
#include "control/registry.h"
#include "proxy/dataplane.h"

namespace portway {

/// Numbers whose owners only the daemon knows.
struct NodeNumbers {
  std::uint64_t access_log_dropped = 0;
  std::uint64_t log_lines_dropped = 0;
  // Forwards that exist but are not served.
  std::uint64_t forwards_failed = 0;
  // Running instances whose guests should see their clients' addresses but do not.
  std::uint64_t instances_without_return_path = 0;
  // Packets that the source guard dropped.
  std::uint64_t forged_packets = 0;
  ServerStats api_server = {};
  AnswerStats answers = {};
};

class NodeNumbersReader {
 public:
  virtual ~NodeNumbersReader() = default;
  virtual NodeNumbers read_numbers() const = 0;
};

/// All of it must outlive the exporter and its scrapes.
struct ExporterSources {
  const Registry& registry;
  const Dataplane& dataplane;
  const PortAllocator& ports;
  const ApiStats& api;
  const NodeNumbersReader& node;
};

}  // namespace portway
