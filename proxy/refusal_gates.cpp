#include "proxy/refusal_gates.h"

#include <sys/socket.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <utility>

#include "network/proxy_header.h"
#include "proxy/timer_wheel.h"

namespace portway {
namespace {

constexpr Nanos kIntervalMin = std::chrono::milliseconds(10);
// A guest that does not even refuse any more is no reason to refuse clients.
constexpr Nanos kAnswerMax = std::chrono::seconds(1);

}  // namespace

RefusalGates::RefusalGates(Io& io, Nanos interval_max, WorkerCounters& counters, Token token_base, Open open)
    : io_(io),
      interval_max_(interval_max),
      counters_(counters),
      token_base_(token_base),
      open_(std::move(open)) {}

RefusalGates::~RefusalGates() {
  assert(in_use_ == 0 && "forget_all() and turn until empty first");
}

bool RefusalGates::add(const ServedForwardPtr& forward) {
  if (interval_max_ == Nanos::zero()) return false;
  const auto known = [&forward](const Gate& gate) {
    return gate.forward == forward && gate.verdict != Verdict::kForgotten;
  };
  if (std::ranges::any_of(gates_, known)) return false;
  auto place = std::ranges::find(gates_, State::kFree, &Gate::state);
  if (place == gates_.end() && gates_.size() < kGatesMax) place = gates_.emplace(gates_.end());
  Gate* gate = place == gates_.end() ? nullptr : &*place;
  if (gate == nullptr) {
    // A client has just asked for this one; nobody may ask for the other ever again.
    gate = longest_waiting();
    if (gate == nullptr || !open_(gate->forward)) {
      counters_.refusal_gates_skipped.add();
      return false;
    }
    release(*gate);
  }
  const Nanos now = io_.now();
  const Nanos interval = std::min(kIntervalMin, interval_max_);
  *gate = {.forward = forward,
           .state = State::kWaiting,
           .since = now,
           .due = now + interval,
           .interval = interval};
  ++in_use_;
  counters_.refusal_gates.add();
  counters_.refusal_gates_total.add();
  return true;
}

RefusalGates::Gate* RefusalGates::longest_waiting() {
  Gate* longest = nullptr;
  for (Gate& gate : gates_) {
    if (gate.state == State::kWaiting && (longest == nullptr || gate.since < longest->since)) longest = &gate;
  }
  return longest;
}

void RefusalGates::forget(const ServedForwardPtr& forward) {
  for (std::uint32_t index = 0; index < gates_.size(); ++index) {
    Gate& gate = gates_[index];
    if (gate.forward != forward) continue;
    if (gate.state == State::kProbing) {
      end_probe(index, Verdict::kForgotten);
    } else if (gate.state == State::kEnding) {
      gate.verdict = Verdict::kForgotten;
    } else if (gate.state == State::kWaiting) {
      release(gate);
    }
  }
}

void RefusalGates::forget_all() {
  for (std::uint32_t index = 0; index < gates_.size(); ++index) {
    // forget() may free what it is given.
    if (const ServedForwardPtr forward = gates_[index].forward) forget(forward);
  }
}

void RefusalGates::run() {
  const Nanos now = io_.now();
  for (std::uint32_t index = 0; index < gates_.size(); ++index) {
    if (gates_[index].due > now) continue;
    if (gates_[index].state == State::kWaiting) {
      probe(index);
    } else if (gates_[index].state == State::kProbing) {
      end_probe(index, Verdict::kOpen);
    }
  }
}

Nanos RefusalGates::until_next() const {
  Nanos next = TimerWheel::kNever;
  for (const Gate& gate : gates_) {
    if (gate.state == State::kWaiting || gate.state == State::kProbing) next = std::min(next, gate.due);
  }
  return next == TimerWheel::kNever ? Nanos(-1) : std::max(Nanos::zero(), next - io_.now());
}

void RefusalGates::probe(std::uint32_t index) {
  Gate& gate = gates_[index];
  const ForwardRoute& route = gate.forward->route;
  counters_.refusal_probes.add();
  gate.state = State::kProbing;
  gate.due = io_.now() + kAnswerMax;
  gate.fd = io_.socket(route.upstream.address().is_v6() ? AF_INET6 : AF_INET);
  int result = gate.fd;
  const int device = gate.forward->session->device.load(std::memory_order_relaxed);
  if (gate.fd >= 0 && device != kAnyDevice) result = io_.bind_to_device(gate.fd, device);
  if (result >= 0) result = io_.connect(gate.fd, route.upstream);
  if (result == 0 || result == -EINPROGRESS) {
    gate.armed = true;
    io_.poll(token_base_ | index, gate.fd);
  } else {
    // Without a descriptor nothing is known; other errors are for clients to see.
    const bool try_again = result == -ECONNREFUSED || gate.fd < 0;
    end_probe(index, try_again ? Verdict::kRefused : Verdict::kOpen);
  }
}

void RefusalGates::on_poll(Token token, const Completion& completion) {
  const auto index = static_cast<std::uint32_t>(token);
  Gate& gate = gates_[index];
  gate.armed = completion.more;
  if (gate.state == State::kProbing) {
    const auto events = completion.result < 0 ? 0U : static_cast<std::uint32_t>(completion.result);
    if ((events & (POLLERR | POLLHUP)) != 0) {
      const bool refused = io_.socket_error(gate.fd) == -ECONNREFUSED;
      end_probe(index, refused ? Verdict::kRefused : Verdict::kOpen);
    } else if ((events & POLLOUT) != 0) {
      if (gate.forward->source.load(std::memory_order_relaxed).plan == SourcePlan::kProxyV2) {
        const ProxyHeader header = local_proxy_header();
        io_.send(gate.fd, header.bytes.data(), header.size, MSG_NOSIGNAL);
      }
      end_probe(index, Verdict::kOpen);
    } else if (!gate.armed) {
      end_probe(index, Verdict::kOpen);  // the poll could not be armed, for want of memory
    }
  } else if (!gate.armed) {
    settle(index);
  }
}

void RefusalGates::end_probe(std::uint32_t index, Verdict verdict) {
  Gate& gate = gates_[index];
  gate.verdict = verdict;
  gate.state = State::kEnding;
  if (gate.armed) {
    io_.cancel(token_base_ | index, gate.fd);
  } else {
    settle(index);
  }
}

/// The probe is over, and its descriptor is nobody's any more.
void RefusalGates::settle(std::uint32_t index) {
  Gate& gate = gates_[index];
  if (gate.fd >= 0) io_.close(std::exchange(gate.fd, -1));
  if (gate.verdict == Verdict::kForgotten || (gate.verdict == Verdict::kOpen && open_(gate.forward))) {
    release(gate);
    return;
  }
  gate.state = State::kWaiting;
  gate.interval = std::min(2 * gate.interval, interval_max_);
  gate.due = io_.now() + gate.interval;
}

void RefusalGates::release(Gate& gate) {
  gate = Gate{};
  --in_use_;
  counters_.refusal_gates.sub();
}

}  // namespace portway
