// Options that all connections share. Constant once the workers run.
#pragma once

#include "config/config.h"

namespace portway {

class ClientRefusals;
class DeviceRequests;
class RoutedConnections;

struct ConnectionOptions {
  Config::Proxy config = {};
  // Null: a single client cannot be refused.
  ClientRefusals* client_refusals = nullptr;
  // Null: connections by clients' own routes are not known.
  const RoutedConnections* routed = nullptr;
  // Null: clients of sessions without a device are reset at once.
  DeviceRequests* device_requests = nullptr;
};

}  // namespace portway
