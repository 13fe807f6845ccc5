// The metrics of an HTTP API and of a process, whatever the process is.
#pragma once

#include <array>
#include <cstdint>

#include "api/http/server_stats.h"
#include "control/api_stats.h"
#include "control/node_faults.h"
#include "metrics/sink.h"

namespace portway {

struct ApiNumbers {
  const ApiStats& requests;
  ServerStats server;  // of all of its servers
  AnswerStats answers;
  AnswerStats bodies;
};

void emit_api(Sink& sink, const ApiNumbers& api);

/// Its version, what is wrong with it (NodeFaults::counts()), and what the kernel reports.
void emit_process(Sink& sink, const std::array<std::uint64_t, kFaultParts>& faults);

}  // namespace portway
