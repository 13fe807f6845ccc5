// A forward as the data plane serves it: where its connections go, and its counts, one set for each worker.
//
// Shared by the control thread and every worker. What is not atomic and not a worker's own counters is
// constant after construction. It lives until the control plane has closed it and its last connection has
// ended.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "metrics/stats.h"
#include "proxy/admission.h"
#include "proxy/dataplane.h"

namespace portway {

struct ServedForward {
  /// `listening` is the index of the worker that has its listeners.
  ServedForward(ForwardRoute forward_route, std::size_t workers, std::size_t listening = 0)
      : route(std::move(forward_route)),
        counters(std::make_unique<ForwardCounters[]>(workers)),
        worker_count(workers),
        listening_worker(listening),
        source(route.source) {
    set_limits(route.limits);
  }

  ForwardStats stats() const;
  /// From the control thread; holds for what comes afterwards.
  void set_limits(const TrafficLimits& limits) {
    admission.set_limits(limits);
    for (ByteRate& each : rate) each.set_limit(limits.max_bytes_per_second);
  }

  const ForwardRoute route;
  const std::unique_ptr<ForwardCounters[]> counters;  // [w] is written by worker w only
  const std::size_t worker_count;
  const std::size_t listening_worker;
  Admission admission;
  ByteRate rate[2];                   // of the bytes that come from each side
  std::atomic<SourcePlan> source;     // set by the control thread
  std::atomic<bool> answered{false};  // a guest has answered a client's own address: there is a return path
  // On the monotonic clock: one has not, but has answered the node's. Until then it is not asked again.
  std::atomic<std::int64_t> unanswered_until_ns{0};
  std::atomic<bool> refusing{false};  // its guest port is closed: so are its listeners
  std::atomic<bool> closed{false};    // set by the control thread: nothing is accepted for it any more
};

using ServedForwardPtr = std::shared_ptr<ServedForward>;

}  // namespace portway
