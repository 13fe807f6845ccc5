#include "daemon/network_parts.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <cstdint>
#include <utility>

namespace portway {

std::unique_ptr<SteerProgram> load_steer_program(const Config::Proxy& proxy) {
  auto program = SteerProgram::load(std::uint32_t{1} << proxy.source_mark_bit);
  return program ? std::move(*program) : nullptr;  // start_return_path() finds out why, and says so
}

Result<StartedReturnPath> start_return_path(const Config::Proxy& proxy, bool succeeds,
                                            std::unique_ptr<SteerProgram> program) {
  const SourceMode mode = proxy.source_mode;
  const ReturnPathSettings settings{.rule_preference = proxy.source_rule_preference,
                                    .table = proxy.source_route_table,
                                    .mark_bit = proxy.source_mark_bit,
                                    .succeeds = succeeds};
  StartedReturnPath started;
  if (mode == SourceMode::kAuto || mode == SourceMode::kTransparent) {
    auto path = ReturnPath::start(ReturnPath::Kind::kProgram, settings, std::exchange(program, nullptr));
    if (path) {
      started.path = std::move(*path);
      if (started.path->kind() == ReturnPath::Kind::kRules) {
        spdlog::warn("using routing rules for the return path (at most {}); no source guard: {}",
                     ReturnPath::kPortsMax, started.path->why_rules());
      }
      return started;
    }
    if (mode == SourceMode::kTransparent) {
      return Error{
          path.error().code,
          fmt::format(
              "proxy.source_mode is transparent, and the node cannot show guests their clients' addresses: "
              "{}; give portwayd CAP_NET_ADMIN and CAP_BPF, or set proxy.source_mode to auto",
              path.error().detail),
          "proxy.source_mode"};
    }
    started.why_none = path.error().detail;
    spdlog::info("guests see the node's address as their clients': {}", started.why_none);
  }
  auto guard = ReturnPath::start(ReturnPath::Kind::kGuardOnly, settings, std::exchange(program, nullptr));
  if (guard) {
    started.path = std::move(*guard);
  } else {
    spdlog::info("guests can send with each other's addresses, unless rp_filter is 1: {}",
                 guard.error().detail);
  }
  return started;
}

std::unique_ptr<ClientRefusals> start_client_refusals_if_possible() {
  auto refusals = start_client_refusals();
  if (refusals) return std::move(*refusals);
  spdlog::info("clients that a guest refuses are accepted and reset, unless all of the forward's are: {}",
               refusals.error().detail);
  return nullptr;
}

}  // namespace portway
