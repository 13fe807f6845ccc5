// What is reported of a connection that has ended: one record each.
//
// Made by its worker. It then goes through a bounded ring to the control thread, which writes the access log
// and keeps the last ones. If the ring is full, the record is dropped and counted.
#pragma once

#include <cstdint>

#include "proxy/close_cause.h"
#include "proxy/connection_table.h"
#include "proxy/io.h"
#include "proxy/live_connection.h"
#include "proxy/served_forward.h"
#include "proxy/stats.h"

namespace portway {

/// Times are the Io's monotonic clock.
struct CloseRecord {
  ServedForwardPtr forward = {};  // never null in a record that was pushed
  ConnectionId id = 0;            // 0: turned away when it was accepted
  PlainEndpoint client = {};
  Nanos accepted_at{};
  Nanos connected_at{};  // zero: the guest never answered
  Nanos ended_at{};
  std::uint64_t received_bytes = 0;  // from the client, taken by the guest's socket
  std::uint64_t sent_bytes = 0;      // from the guest, taken by the client's socket
  TcpSummary tcp[2] = {};            // of each side's socket, at the end
  CloseCause cause = {};
  std::int16_t error = 0;    // the errno that ended it; 0: none did
  std::uint16_t worker = 0;  // index
  SourcePlan source = SourcePlan::kPlain;

  /// The address and port that it was led to.
  const Endpoint& guest() const { return forward->route.upstream_of(to_endpoint(client).address()); }
  /// It ended before its instance came to the owner that it has: none of that one's business. Control thread.
  bool is_former_owners() const { return ended_at < forward->session->owned_since; }
};

}  // namespace portway
