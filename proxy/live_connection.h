// A live connection as the control plane sees it: plain values, made by its worker on request.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/endpoint.h"
#include "proxy/io.h"
#include "proxy/stats.h"

namespace portway {

/// Unique while the process lives; a worker's ids ascend. 0: none. Below 2^53, so a JSON number can hold
/// it.
using ConnectionId = std::uint64_t;
inline constexpr unsigned kConnectionIdWorkerBits = 12;  // the lowest ones

enum class LiveState : std::uint8_t {
  kConnecting,   // the guest has not answered yet
  kEstablished,  //
  kClientEnded,  // the client has sent FIN, the guest has not
  kGuestEnded,   // the guest has sent FIN, the client has not
  kClosing,      // being reset
};
inline constexpr std::size_t kLiveStates = 5;
std::string_view to_string(LiveState state);

/// A connection as its worker saw it a moment ago.
struct LiveConnection {
  ConnectionId id = 0;
  Endpoint client = {};
  LiveState state = LiveState::kConnecting;
  Nanos age{};
  Nanos idle{};  // since bytes last moved
  std::uint64_t received_bytes = 0;
  std::uint64_t sent_bytes = 0;
  // Bytes on their way through the node: unread, in a pipe, or not acknowledged by the receiver.
  std::uint64_t received_queued_bytes = 0;
  std::uint64_t sent_queued_bytes = 0;
  TcpSummary tcp[2] = {};
  std::uint16_t worker = 0;
  SourcePlan source = SourcePlan::kPlain;
};

}  // namespace portway
