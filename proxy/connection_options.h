// How connections are treated; the same for all of them. Constant once the workers run.
#pragma once

#include "config/config.h"

namespace portway {

class ClientRefusals;
class DeviceRequests;
class RoutedConnections;

struct ConnectionOptions {
  Config::Proxy config = {};
  // Null: single clients cannot be refused.
  ClientRefusals* client_refusals = nullptr;
  // Null: what clients' own routes carry is not known.
  const RoutedConnections* routed = nullptr;
  // Null: clients of sessions without a device are reset at once.
  DeviceRequests* device_requests = nullptr;
};

}  // namespace portway
