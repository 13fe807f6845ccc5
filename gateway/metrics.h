// The gateway's metrics for Prometheus, read at the moment of the scrape.
#pragma once

#include <array>
#include <cstdint>

#include "control/node_faults.h"
#include "fleet/fleet_follower.h"
#include "gateway/node_client.h"
#include "metrics/api_families.h"
#include "metrics/sink.h"

namespace portway {

struct GatewayNumbers {
  ApiNumbers api;
  const FleetView& view;
  FollowerStats fleet;
  NodeClientStats nodes;
  std::array<std::uint64_t, kFaultParts> faults = {};
};

void emit_gateway(Sink& sink, const GatewayNumbers& numbers);

}  // namespace portway
