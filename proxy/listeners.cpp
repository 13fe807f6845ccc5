#include "proxy/listeners.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <utility>

namespace portway {
namespace {

/// Other parts free descriptors too, so accepting is tried again after this time.
constexpr Nanos kPause = std::chrono::milliseconds(100);

}  // namespace

void Listeners::add(const ServedForwardPtr& forward, std::vector<Fd> listeners) {
  for (Fd& fd : listeners) {
    std::uint32_t index;
    if (!free_.empty()) {
      index = free_.back();
      free_.pop_back();
    } else {
      index = static_cast<std::uint32_t>(listeners_.size());
      listeners_.emplace_back();
    }
    listeners_[index].forward = forward;
    listeners_[index].fd = fd.release();
    forward->listener_slots.push_back(index);
    ++open_;
    if (closed_) {
      release(index);
    } else {
      arm(index);
    }
  }
}

void Listeners::close(const ServedForward& forward) {
  const std::vector<std::uint32_t> indices = forward.listener_slots;  // close() may erase from these
  for (const std::uint32_t index : indices) close(index);
}

void Listeners::close_all() {
  closed_ = true;
  for (std::uint32_t index = 0; index < listeners_.size(); ++index) {
    if (listeners_[index].forward) close(index);
  }
}

void Listeners::on_poll(Token token, const Completion& completion) {
  const auto index = static_cast<std::uint32_t>(token);
  Listener& listener = listeners_[index];
  listener.armed = completion.more;
  if (listener.closing) {
    if (!listener.armed) release(index);
    return;
  }
  if (completion.result < 0) {
    pause();  // it could not be armed for lack of memory
  } else if (!listener.armed) {
    arm(index);
  }
  if (!std::exchange(listener.waiting, true)) waiting_.push_back(index);
}

int Listeners::accept_next(ServedForwardPtr& forward) {
  accept_again_at_ = Nanos::zero();
  const std::uint32_t index = waiting_.front();
  waiting_.pop_front();
  Listener& listener = listeners_[index];
  if (!listener.armed) arm(index);
  const int downstream = io_.accept(listener.fd);
  if (downstream == -EAGAIN || downstream == -EINVAL) {
    listener.waiting = false;  // no client is left, or we have shut it down
    return downstream;
  }
  waiting_.push_back(index);
  if (downstream >= 0) {
    forward = listener.forward;
  } else if (downstream != -ECONNABORTED && downstream != -EINTR) {
    pause();  // EMFILE, ENFILE, ENOMEM, ...
  }
  return downstream;
}

Nanos Listeners::until_next() const {
  if (waiting_.empty()) return TimerWheel::kNever;
  return std::max(Nanos::zero(), accept_again_at_ - io_.now());
}

void Listeners::pause() {
  counters_.accept_pauses.add();
  if (accept_again_at_ == Nanos::zero()) accept_again_at_ = io_.now() + kPause;
}

void Listeners::arm(std::uint32_t index) {
  listeners_[index].armed = true;
  io_.poll(token_base_ | index, listeners_[index].fd);
}

void Listeners::close(std::uint32_t index) {
  Listener& listener = listeners_[index];
  if (listener.closing) return;
  listener.closing = true;
  if (std::exchange(listener.waiting, false)) std::erase(waiting_, index);
  if (listener.armed) {
    io_.cancel(token_base_ | index, listener.fd);  // released with its last completion
  } else {
    release(index);
  }
}

void Listeners::release(std::uint32_t index) {
  ServedForward& forward = *listeners_[index].forward;
  std::erase(forward.listener_slots, index);
  if (forward.listener_slots.empty()) forward.accepting.store(false, std::memory_order_release);
  io_.close(listeners_[index].fd);
  listeners_[index] = Listener{};
  free_.push_back(index);
  --open_;
}

// --- A guest's closed port.

/// Whether its clients go to the guest's second address.
bool Listeners::leads_v6(const Listener& listener) const {
  Endpoint local;
  return listener.forward->guest().endpoint_v6 && io_.local_endpoint(listener.fd, local) == 0 &&
         is_genuine_v6(local.address());
}

/// Clears SO_REUSEADDR, or another program could take the port while nobody listens on it.
void Listeners::shut(ServedForward& forward, bool v6) {
  const std::lock_guard lock(forward.listeners_mutex);
  if (forward.phase.load() != ForwardPhase::kOpen) return;
  forward.refusing[v6].store(true, std::memory_order_relaxed);
  for (const std::uint32_t index : forward.listener_slots) {
    Listener& listener = listeners_[index];
    if (listener.closing || leads_v6(listener) != v6) continue;
    listener.shut = v6;
    io_.set_option(listener.fd, SOL_SOCKET, SO_REUSEADDR, 0);
    io_.shutdown(listener.fd, SHUT_RD);
  }
}

bool Listeners::reopen(ServedForward& forward, bool v6) {
  const std::lock_guard lock(forward.listeners_mutex);
  if (forward.phase.load() != ForwardPhase::kOpen) return true;  // it is about to be closed
  bool open = true;
  for (const std::uint32_t index : forward.listener_slots) {
    Listener& listener = listeners_[index];
    if (listener.closing || listener.shut != v6) continue;
    io_.set_option(listener.fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (io_.listen_again(listener.fd) < 0) {
      io_.set_option(listener.fd, SOL_SOCKET, SO_REUSEADDR, 0);
      open = false;
      continue;
    }
    listener.shut.reset();
  }
  if (open) forward.refusing[v6].store(false, std::memory_order_relaxed);
  return open;
}

}  // namespace portway
