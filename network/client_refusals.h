// Refuses single clients at a listener of the node, as DNAT shows a guest's RST to the client whom the
// guest's own filter refuses, and to no other: the kernel answers the client's SYN with RST, so that
// connect(2) says ECONNREFUSED, and nothing is accepted.
//
// Any thread may call it.
#pragma once

#include <chrono>
#include <memory>

#include "base/endpoint.h"
#include "base/error.h"

namespace portway {

class ClientRefusals {
 public:
  virtual ~ClientRefusals() = default;

  /// From now on the client's SYNs to `local` are answered with RST, from any source port; existing
  /// connections continue. `local` is the address and port that the client connects to, not a wildcard.
  /// False if the table is full (4,096 entries) or the kernel refuses; then nothing changes. A second call
  /// for the same pair starts again: last_asked() is zero.
  virtual bool refuse(const Endpoint& local, const IpAddress& client) = 0;
  /// Undoes refuse(); idempotent.
  virtual void allow(const Endpoint& local, const IpAddress& client) = 0;
  /// When the client was last refused, on the monotonic clock; zero: not since refuse(), or it is not
  /// refused.
  virtual std::chrono::nanoseconds last_asked(const Endpoint& local, const IpAddress& client) = 0;
};

/// A program in the calling thread's network namespace (refuse.bpf.c), removed with the object, or with
/// the process, however that ends. kResourceExhausted if the kernel refuses; the detail says why, and what
/// would help: it needs CAP_BPF and CAP_NET_ADMIN, and Linux 5.9. An IPv4 address may be written as
/// ::ffff:a.b.c.d too.
Result<std::unique_ptr<ClientRefusals>> start_client_refusals();

}  // namespace portway
