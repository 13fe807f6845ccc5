// The report about a connection that has ended.
//
// The worker makes it and passes it through a bounded ring to the control thread, which writes the access
// log and keeps the latest records. If the ring is full, the record is dropped and counted.
#pragma once

#include <cstdint>
#include <optional>

#include "proxy/close_cause.h"
#include "proxy/connection_table.h"
#include "proxy/io.h"
#include "proxy/live_connection.h"
#include "proxy/served_forward.h"
#include "proxy/stats.h"

namespace portway {

/// Times are on the Io's monotonic clock.
struct CloseRecord {
  ServedForwardPtr forward = {};  // never null in a pushed record
  ConnectionId id = 0;            // 0: rejected when it was accepted
  PlainEndpoint client = {};
  Endpoint guest = {};  // the address and port that the client was connected to, or would have been
  Nanos accepted_at{};
  Nanos connected_at{};  // zero: the guest never answered
  Nanos ended_at{};
  std::uint64_t received_bytes = 0;  // from the client, taken by the guest's socket
  std::uint64_t sent_bytes = 0;      // from the guest, taken by the client's socket
  TcpSummary tcp[2] = {};            // of each side's socket, at the end
  CloseCause cause = {};
  std::optional<RejectReason> rejected = std::nullopt;  // when it was accepted
  std::int16_t error = 0;                               // the errno that ended it; 0: none
  std::uint16_t worker = 0;                             // index
  SourcePlan source = SourcePlan::kPlain;

  /// It ended before its instance got its present owner, who must not see it. Control thread.
  bool is_former_owners() const { return ended_at < forward->session->owned_since; }
};

}  // namespace portway
