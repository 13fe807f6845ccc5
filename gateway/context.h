// What the gateway's handlers answer from; all of it outlives them. One thread only.
#pragma once

#include <functional>
#include <string>

#include "api/http/message.h"
#include "config/config.h"
#include "control/api_stats.h"
#include "control/streams.h"
#include "fleet/fleet_follower.h"
#include "gateway/fleet_events.h"
#include "gateway/node_client.h"
#include "gateway/shared_keys.h"
#include "gateway/shared_profiles.h"

namespace portway {

struct GatewayContext {
  const Config& config;
  const FleetFollower& fleet;
  FleetEvents& events;
  NodeClient& nodes;
  Streams& streams;
  EtcdKeyAdmin& keys;
  SharedProfiles& profiles;
  ApiStats& stats;
  std::function<std::string()> metrics;  // the text of a scrape
};

}  // namespace portway
