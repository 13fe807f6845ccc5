#include "metrics/node_numbers.h"

namespace portway {

NodeNumbers NodeNumbersOf::read_numbers() const {
  const auto& [control, answers, bodies, log_dropped, access_log, audit_log, api_servers, handover, faults,
               refused, fleet] = owners_;
  return {.access_log_dropped = access_log ? access_log->dropped() : 0,
          .audit_log_dropped = audit_log ? audit_log->dropped() : 0,
          .log_lines_dropped = log_dropped(),
          .forwards_failed = control.forwards_failed(),
          .instances_without_return_path = control.instances_without_return_path(),
          .guest_namespaces = control.guest_namespaces(),
          .forged_packets = control.forged_packets(),
          .draining = control.is_draining() ? std::uint64_t{1} : 0,
          .faults = faults.counts(),
          .handover = handover,
          .refused_calls = refused != nullptr ? refused() : 0,
          .api_server = api_servers(),
          .answers = answers.stats(),
          .bodies = bodies.stats(),
          .fleet = fleet ? fleet() : std::nullopt};
}

}  // namespace portway
