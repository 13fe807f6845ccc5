#include "metrics/node_numbers.h"

namespace portway {

NodeNumbers NodeNumbersOf::read_numbers() const {
  const auto& [control, answers, log, access_log, api_server, handover] = owners_;
  return {.access_log_dropped = access_log ? access_log->dropped() : 0,
          .log_lines_dropped = log != nullptr ? log->dropped() : 0,
          .forwards_failed = control.forwards_failed(),
          .instances_without_return_path = control.instances_without_return_path(),
          .guest_namespaces = control.guest_namespaces(),
          .forged_packets = control.forged_packets(),
          .handover = handover,
          .api_server = api_server ? api_server->stats() : ServerStats{},
          .answers = answers.stats()};
}

}  // namespace portway
