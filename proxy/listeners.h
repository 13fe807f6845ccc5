// A worker's listeners: accepts from them in turn, pauses while descriptors are short, shuts them while a
// guest's port is closed, and closes them with their forward.
//
// All calls on the worker's thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "base/fd.h"
#include "proxy/io.h"
#include "proxy/served_forward.h"
#include "proxy/stats.h"
#include "proxy/timer_wheel.h"

namespace portway {

class Listeners {
 public:
  /// Clients accepted in a turn. The others wait in the backlog: a crowd at one forward delays nobody
  /// else.
  static constexpr int kAcceptsAtOnce = 8;

  /// `token_base` is or'ed into the tokens of its polls.
  Listeners(Io& io, WorkerCounters& counters, Token token_base)
      : io_(io), counters_(counters), token_base_(token_base) {}
  Listeners(const Listeners&) = delete;
  Listeners& operator=(const Listeners&) = delete;

  void add(const ServedForwardPtr& forward, std::vector<Fd> listeners);
  /// Closes the forward's listeners; each one's descriptor once its poll has ended.
  void close(const ServedForward& forward);
  /// Closes all listeners, and those that are added later.
  void close_all();
  /// No listener is left, nor the descriptor of one.
  bool empty() const { return open_ == 0; }

  /// A completion of a poll; `token` is what token_base was or'ed with.
  void on_poll(Token token, const Completion& completion);
  /// Clients may wait, and there are descriptors for them.
  bool may_accept() const {
    return !waiting_.empty() && (accept_again_at_ == Nanos::zero() || io_.now() >= accept_again_at_);
  }
  /// Accepts a client of the next listener, which goes to the end: a crowd at one of them does not delay the
  /// clients of the others. Its socket and forward, or -errno. Only if may_accept().
  int accept_next(ServedForwardPtr& forward);
  /// Descriptors were closed: accepting may work again.
  void resume() { accept_again_at_ = Nanos::zero(); }
  /// How long accept_next() will have nothing to do; TimerWheel::kNever if no client waits.
  Nanos until_next() const;

  // --- While a guest's port is closed. Of a forward's listeners: those whose clients go to the guest's
  // second address (GuestEndpoints::goes_v6) when they are shut, or the others.

  /// Refuses clients from now on, and keeps the port.
  void shut(ServedForward& forward, bool v6);
  /// False if a listener could not listen again: call reopen() again later.
  bool reopen(ServedForward& forward, bool v6);

 private:
  struct Listener {
    ServedForwardPtr forward;  // null: the entry is free
    int fd = -1;
    bool armed = false;        // its poll's last completion is still to come
    bool waiting = false;      // in waiting_
    std::optional<bool> shut;  // the guest's port is closed, at its second address or not
    bool closing = false;
  };

  void pause();
  void arm(std::uint32_t index);
  void close(std::uint32_t index);
  void release(std::uint32_t index);
  bool leads_v6(const Listener& listener) const;

  Io& io_;
  WorkerCounters& counters_;
  const Token token_base_;
  std::vector<Listener> listeners_;
  std::vector<std::uint32_t> free_;    // entries of listeners_
  std::deque<std::uint32_t> waiting_;  // entries that may have clients, the next one in front
  Nanos accept_again_at_{0};           // descriptors ran out: clients wait in the backlog until then
  std::size_t open_ = 0;
  bool closed_ = false;
};

}  // namespace portway
