// Refuses clients while a guest's port is closed, as DNAT does: a forward whose guest refused a connection
// shuts its listeners, so that the node answers a SYN with RST, and the guest's port is probed until it is
// open.
//
// The client whose connection was refused by the guest has been accepted already, and sees a reset. Those
// after it see "connection refused". A probe is a connection to the guest, and the one that gets through is
// closed at once. At most kGatesMax forwards of a worker are probed, at intervals of 10 ms up to
// `interval_max`: with 80 ms, 800 probes a second. A forward more than that takes the place of the one that
// waits longest, which goes on accepting and resetting.
//
// Belongs to one worker's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "metrics/stats.h"
#include "proxy/io.h"
#include "proxy/served_forward.h"

namespace portway {

class RefusalGates {
 public:
  static constexpr std::size_t kGatesMax = 64;

  /// Opens the forward's listeners; false when it could not, and is to be asked again.
  using Open = std::function<bool(const ServedForwardPtr&)>;

  /// `token_base` is or'ed into the tokens of its polls. `interval_max` zero: nothing is ever added.
  RefusalGates(Io& io, Nanos interval_max, WorkerCounters& counters, Token token_base, Open open);
  ~RefusalGates();
  RefusalGates(const RefusalGates&) = delete;
  RefusalGates& operator=(const RefusalGates&) = delete;

  /// The guest refused: from now on it is probed. False where it is already, or cannot be.
  bool add(const ServedForwardPtr& forward);
  /// Without opening it.
  void forget(const ServedForwardPtr& forward);
  void forget_all();

  /// A completion of a probe's poll; `token` is what token_base was or'ed with.
  void on_poll(Token token, const Completion& completion);
  /// Probes what is due.
  void run();
  /// Zero when something is due.
  Nanos until_next() const;

  /// No forward is in it, and no descriptor.
  bool empty() const { return in_use_ == 0; }

 private:
  enum class State : std::uint8_t {
    kFree,
    kWaiting,  // until due, for the next probe
    kProbing,  // until due, for the guest's answer
    kEnding,   // for the last completion of the probe's poll
  };
  enum class Verdict : std::uint8_t { kRefused, kOpen, kForgotten };

  struct Gate {
    ServedForwardPtr forward;
    State state = State::kFree;
    Verdict verdict = Verdict::kRefused;
    bool armed = false;
    int fd = -1;
    Nanos since{};
    Nanos due{};
    Nanos interval{};
  };

  void probe(std::uint32_t index);
  void end_probe(std::uint32_t index, Verdict verdict);
  void settle(std::uint32_t index);
  void release(Gate& gate);
  Gate* longest_waiting();

  Io& io_;
  const Nanos interval_max_;
  WorkerCounters& counters_;
  const Token token_base_;
  const Open open_;
  std::vector<Gate> gates_;  // kGatesMax at most
  std::size_t in_use_ = 0;
};

}  // namespace portway
