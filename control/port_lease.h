// A host port that is bound and counted as used, given back unless it is kept. Control thread.
#pragma once

#include <cstdint>
#include <utility>

#include "control/port_allocator.h"
#include "proxy/dataplane.h"

namespace portway {

class PortLease {
 public:
  PortLease(PortAllocator& ports, BoundPort port) : ports_(&ports), port_(std::move(port)) {}
  PortLease(PortLease&& other) noexcept
      : ports_(std::exchange(other.ports_, nullptr)), port_(std::move(other.port_)) {}
  PortLease& operator=(PortLease&&) = delete;
  ~PortLease() {
    if (ports_ != nullptr) ports_->give_back(port_.port());
  }

  std::uint16_t port() const { return port_.port(); }
  /// Nobody can connect any more; the port is still taken.
  void close() { port_ = BoundPort(port_.port(), {}); }
  BoundPort keep() {
    ports_ = nullptr;
    return std::move(port_);
  }

 private:
  PortAllocator* ports_;
  BoundPort port_;
};

}  // namespace portway
