// The metrics of an HTTP API and of a process, whatever the process is.
#pragma once

#include "api/http/server_stats.h"
#include "control/api_stats.h"
#include "metrics/sink.h"

namespace portway {

struct ApiNumbers {
  const ApiStats& requests;
  ServerStats server;  // of all of its servers
  AnswerStats answers;
  AnswerStats bodies;
};

void emit_api(Sink& sink, const ApiNumbers& api);

/// Its version, and what the kernel reports.
void emit_process(Sink& sink);

}  // namespace portway
