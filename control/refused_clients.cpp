#include "control/refused_clients.h"

#include <spdlog/spdlog.h>

#include <cerrno>

namespace portway {

bool RefusedClients::take_event(const std::string& instance_id) {
  const auto now = std::chrono::steady_clock::now();
  if (now >= period_end_) {
    period_end_ = now + kPeriod;
    events_ = 0;
    of_.clear();
  }
  int& events = of_[instance_id];
  if (events >= kEventsOfInstance || events_ >= kEventsMax) return false;
  ++events;
  ++events_;
  return true;
}

void RefusedClients::explain(const CloseRecord& record) {
  const auto now = std::chrono::steady_clock::now();
  if (record.error != EADDRNOTAVAIL || now < explain_again_) return;
  explain_again_ = now + std::chrono::minutes(1);
  spdlog::warn(
      "no source port is free towards {} of instance {}: its clients are reset. Each connection takes one of "
      "net.ipv4.ip_local_port_range, and without CAP_NET_ADMIN keeps it for a minute after its end; give "
      "portwayd CAP_NET_ADMIN, set net.ipv4.tcp_tw_reuse to 1, or widen the range",
      to_string(record.guest), record.forward->route.instance_id);
}

}  // namespace portway
