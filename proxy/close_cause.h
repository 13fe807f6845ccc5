// Who ended a connection and how, derived from what the kernel reported or from why a client was rejected.
#pragma once

#include "proxy/connection_table.h"
#include "proxy/stats.h"

namespace portway {

constexpr CloseSide close_side(Side side) {
  return side == kDownstream ? CloseSide::kClient : CloseSide::kGuest;
}

/// Why a connect(2) to a guest failed; `error` is an errno.
ConnectError connect_error(int error);

/// Of a connection that was never established.
CloseCause cause_of(ConnectError error);
CloseHow close_how(RejectReason reason);

/// Of an established connection, by the errno that this side's socket reported.
CloseCause cause_of(Side side, int error);

/// The peer of an established connection has reset it. (A refused connect reports ECONNREFUSED.)
bool is_reset(int error);

/// The node ran short of memory; the peer is not at fault.
bool is_shortage(int error);

}  // namespace portway
