// The steps of a check (api/check.h) for a forward that leads to a Unix socket: connects, and asks
// Firecracker for the port of a vsock. A service behind it sees a connection that ends without a byte.
//
// Control thread. Does not block.
#pragma once

#include <chrono>
#include <utility>
#include <vector>

#include "api/check.h"
#include "base/fd.h"
#include "network/socket_target.h"

namespace portway {

class SocketCheck {
 public:
  explicit SocketCheck(SocketTarget target) : target_(std::move(target)) {}

  /// Continues: false while the answer is still to come. `over`: no longer to be waited for.
  bool poll(bool over);
  /// Once poll() was true: "socket", and for a vsock "guest" if that was reached.
  std::vector<CheckStep> steps(std::chrono::milliseconds after) const;

 private:
  bool ask(bool over);

  const SocketTarget target_;
  Fd fd_;
  bool connected_ = false;
  bool requested_ = false;
  int error_ = 0;  // an errno
};

}  // namespace portway
