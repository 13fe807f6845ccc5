#include "proxy/refusal_gates.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <mutex>
#include <utility>

#include "proxy/timer_wheel.h"

namespace portway {
namespace {

constexpr Nanos kIntervalMin = std::chrono::milliseconds(10);
// If the guest does not answer a probe at all within this time, clients are let in.
constexpr Nanos kAnswerMax = std::chrono::seconds(1);
// Interval for checking a probe whose answer no event reports.
constexpr Nanos kAskEvery = std::chrono::milliseconds(2);

/// Whether the guest has refused at the second of its addresses.
bool is_v6_of(const Refusal& refusal) {
  return refusal.guest == refusal.forward->guest().endpoint_v6;
}

}  // namespace

RefusalGates::RefusalGates(Io& io, Nanos interval_max, ClientRefusals* refusals, WorkerCounters& counters,
                           Token token_base, Hooks hooks, std::span<NotedRefusal> notes)
    : io_(io),
      interval_max_(interval_max),
      refusals_(refusals),
      counters_(counters),
      token_base_(token_base),
      hooks_(std::move(hooks)),
      notes_(notes) {}

RefusalGates::~RefusalGates() {
  assert(in_use_ == 0 && "forget_all() and turn until empty first");
}

void RefusalGates::add(const Refusal& refusal) {
  const bool all = refusal.concerns_all;
  if (interval_max_ == Nanos::zero() || (!all && refusals_ == nullptr)) return;
  if (!refusal.forward->guest().has(refusal.guest)) return;  // it has another address or port by now
  Gate* gate = find(refusal);
  if (gate != nullptr) {
    if (gate->state == State::kOpen) refused_again(*gate);
    return;
  }
  gate = place_for(refusal);
  if (gate == nullptr) {
    counters_.refusal_gates_skipped.add();
    return;
  }
  const Nanos now = io_.now();
  *gate = Gate{};
  gate->forward = refusal.forward;
  gate->v6 = is_v6_of(refusal);
  if (!all) gate->client = refusal;
  gate->state = State::kWaiting;
  gate->since = gate->probed = gate->due = now;
  ++in_use_;
}

void RefusalGates::adopt(const Refusal& refusal) {
  add(refusal);
  Gate* gate = find(refusal);
  if (gate != nullptr && (gate->shut || shut(*gate))) return;
  if (!refusal.concerns_all) return;
  // There is no gate for it: clients are let in.
  const bool v6 = is_v6_of(refusal);
  hooks_.shut(refusal.forward, v6);
  hooks_.open(refusal.forward, v6);
}

RefusalGates::Gate* RefusalGates::find(const Refusal& refusal) {
  const bool all = refusal.concerns_all;
  const bool v6 = is_v6_of(refusal);
  const auto same = [&](const Gate& gate) {
    if (gate.forward != refusal.forward || gate.verdict == Verdict::kForgotten) return false;
    if (gate.v6 != v6) return false;
    if (all || !gate.client) return all == !gate.client;
    return gate.client->client == refusal.client && gate.client->local == refusal.local;
  };
  const auto found = std::ranges::find_if(gates_, same);
  return found == gates_.end() ? nullptr : &*found;
}

/// A free gate, or that which has waited longest, from the same forward if the forward has used up its
/// share; null if none can be had.
RefusalGates::Gate* RefusalGates::place_for(const Refusal& refusal) {
  const auto of_forward = [&](const Gate& gate) { return gate.forward == refusal.forward; };
  const bool has_share =
      static_cast<std::size_t>(std::ranges::count_if(gates_, of_forward)) >= kGatesPerForward;
  if (!has_share) {
    const auto free = std::ranges::find(gates_, State::kFree, &Gate::state);
    if (free != gates_.end()) return &*free;
    if (gates_.size() < kGatesMax) return &gates_.emplace_back();
  }
  Gate* longest = nullptr;
  for (Gate& gate : gates_) {
    if ((gate.state != State::kWaiting && gate.state != State::kOpen) || (has_share && !of_forward(gate)))
      continue;
    // First a gate that refuses nobody.
    const auto rank = [](const Gate& each) { return std::pair(each.shut, each.since); };
    if (longest == nullptr || rank(gate) < rank(*longest)) longest = &gate;
  }
  // A client has just been refused here; the other gate's client may never come back.
  if (longest == nullptr || !open(*longest)) return nullptr;
  if (longest->state == State::kWaiting) counters_.refusal_gates_skipped.add();
  release(*longest);
  return longest;
}

/// False if that is impossible.
bool RefusalGates::shut(Gate& gate) {
  if (gate.client) {
    const std::lock_guard lock(gate.forward->listeners_mutex);
    if (gate.forward->phase.load() != ForwardPhase::kOpen) return false;
    // Another worker may already refuse this client.
    auto& refused = gate.forward->refused_clients;
    const std::pair entry(gate.client->local, gate.client->client);
    if (std::ranges::find(refused, entry) == refused.end() && !refusals_->refuse(entry.first, entry.second))
      return false;
    refused.push_back(entry);
    note_of(gate) = {.forward = gate.forward->route.id,
                     .client = to_plain({gate.client->client, 0}),
                     .guest = to_plain(gate.client->guest),
                     .local = to_plain(gate.client->local),
                     .own_address = gate.client->own_address};
  } else {
    hooks_.shut(gate.forward, gate.v6);
  }
  gate.shut = true;
  counters_.refusal_gates.add();
  counters_.refusal_gates_total.add();
  return true;
}

/// False: try again later.
bool RefusalGates::open(Gate& gate) {
  if (!gate.shut) return true;
  if (gate.client) {
    note_of(gate) = {};
    const std::lock_guard lock(gate.forward->listeners_mutex);
    auto& refused = gate.forward->refused_clients;
    const std::pair entry(gate.client->local, gate.client->client);
    const auto found = std::ranges::find(refused, entry);
    // If it is not there, the forward was closed, and another forward may have the port.
    if (found != refused.end()) {
      refused.erase(found);
      if (std::ranges::find(refused, entry) == refused.end()) refusals_->allow(entry.first, entry.second);
    }
  } else if (!hooks_.open(gate.forward, gate.v6)) {
    return false;
  }
  gate.shut = false;
  counters_.refusal_gates.sub();
  return true;
}

void RefusalGates::forget(const ServedForwardPtr& forward) {
  for (std::uint32_t index = 0; index < gates_.size(); ++index) {
    Gate& gate = gates_[index];
    if (gate.forward != forward) continue;
    if (gate.state == State::kProbing) {
      end_probe(index, Verdict::kForgotten);
    } else if (gate.state == State::kEnding) {
      gate.verdict = Verdict::kForgotten;
    } else if (gate.state != State::kFree) {
      release(gate);
    }
  }
}

void RefusalGates::forget_all() {
  for (std::uint32_t index = 0; index < gates_.size(); ++index) {
    // forget() may free its argument.
    if (const ServedForwardPtr forward = gates_[index].forward) forget(forward);
  }
}

void RefusalGates::lift(const ServedForwardPtr& forward) {
  for (std::uint32_t index = 0; index < gates_.size(); ++index) {
    Gate& gate = gates_[index];
    if (gate.forward != forward || gate.verdict == Verdict::kForgotten) continue;
    // If it cannot be opened now, its next probe goes to the new address.
    const Verdict verdict = open(gate) ? Verdict::kForgotten : Verdict::kLetIn;
    if (gate.state == State::kProbing) {
      end_probe(index, verdict);
    } else if (gate.state == State::kEnding) {
      gate.verdict = verdict;
    } else if (verdict == Verdict::kForgotten) {
      release(gate);
    }
  }
}

void RefusalGates::run() {
  const Nanos now = io_.now();
  for (std::uint32_t index = 0; index < gates_.size(); ++index) {
    if (gates_[index].due > now) continue;
    if (gates_[index].state == State::kWaiting) {
      on_due(index);
    } else if (gates_[index].state == State::kProbing) {
      ask(index);
    } else if (gates_[index].state == State::kOpen) {
      release(gates_[index]);
    }
  }
}

Nanos RefusalGates::until_next() const {
  Nanos next = TimerWheel::kNever;
  for (const Gate& gate : gates_) {
    if (gate.state != State::kFree && gate.state != State::kEnding) next = std::min(next, gate.due);
  }
  return next == TimerWheel::kNever ? Nanos(-1) : std::max(Nanos::zero(), next - io_.now());
}

/// When a client last tried to connect, as far as is known.
Nanos RefusalGates::last_asked(const Gate& gate) const {
  if (!gate.client) return gate.since;
  return std::max(gate.since, Nanos(refusals_->last_asked(gate.client->local, gate.client->client)));
}

void RefusalGates::on_due(std::uint32_t index) {
  Gate& gate = gates_[index];
  const Nanos patience = gate.client ? Nanos(kForgetAfter) : Nanos(kForwardGateMax);
  if (io_.now() - last_asked(gate) < patience) {
    probe(index);
  } else if (open(gate)) {
    release(gate);
  } else {
    wait(gate);
  }
}

void RefusalGates::probe(std::uint32_t index) {
  Gate& gate = gates_[index];
  counters_.refusal_probes.add();
  // If no client has come since the last probe, probe half as often, until the gate is forgotten.
  gate.asked = !gate.client || last_asked(gate) >= gate.probed;
  gate.probed = io_.now();
  gate.give_up = gate.probed + kAnswerMax;
  gate.state = State::kProbing;
  const GuestEndpoints& guest = gate.forward->guest();
  const auto netns = gate.forward->session->netns.get();
  if (!netns) return end_probe(index, Verdict::kLetIn);  // the session is over: the gate is about to go
  SynProbeTarget target{.guest = gate.v6 ? guest.endpoint_v6.value_or(guest.endpoint) : guest.endpoint,
                        .device = gate.forward->session->device.load(std::memory_order_relaxed),
                        .source = std::nullopt,
                        .source_ports = {},
                        .netns = netns->get()};
  if (gate.client && gate.client->own_address) {
    target.source = gate.client->client;
  } else {
    target.source_ports = hooks_.source_ports();
  }
  int error = 0;
  gate.probe = io_.probe(target, error);
  if (gate.probe == nullptr) {
    // Without a descriptor nothing is known: a gate that is shut stays shut, one that is not does not
    // become so. Other errors are left for clients to see.
    const bool unknown = error == -EMFILE || error == -ENFILE;
    const bool refused = error == -ECONNREFUSED || (unknown && gate.shut);
    return end_probe(index, refused ? Verdict::kRefused : Verdict::kLetIn);
  }
  gate.armed = true;
  io_.poll(token_base_ | index, gate.probe->fd());
  gate.due = gate.probe->needs_asking() ? gate.probed + kAskEvery : gate.give_up;
}

void RefusalGates::ask(std::uint32_t index) {
  Gate& gate = gates_[index];
  const int answer = gate.probe->answer();
  if (answer != -EAGAIN) {
    end_probe(index, answer == -ECONNREFUSED ? Verdict::kRefused : Verdict::kLetIn);
  } else if (io_.now() >= gate.give_up) {
    end_probe(index, Verdict::kLetIn);
  } else {
    gate.due = gate.probe->needs_asking() ? io_.now() + kAskEvery : gate.give_up;
  }
}

void RefusalGates::on_poll(Token token, const Completion& completion) {
  const auto index = static_cast<std::uint32_t>(token);
  Gate& gate = gates_[index];
  gate.armed = completion.more;
  if (gate.state == State::kProbing) {
    ask(index);
    if (gate.state != State::kProbing || gate.armed) return;
    if (completion.result < 0) return end_probe(index, Verdict::kLetIn);  // for lack of memory
    gate.armed = true;
    io_.poll(token_base_ | index, gate.probe->fd());
  } else if (!gate.armed) {
    settle(index);
  }
}

void RefusalGates::end_probe(std::uint32_t index, Verdict verdict) {
  Gate& gate = gates_[index];
  gate.verdict = verdict;
  gate.state = State::kEnding;
  if (gate.armed) {
    io_.cancel(token_base_ | index, gate.probe->fd());
  } else {
    settle(index);
  }
}

/// The probe has ended, and its descriptors are released.
void RefusalGates::settle(std::uint32_t index) {
  Gate& gate = gates_[index];
  gate.probe.reset();
  if (gate.verdict == Verdict::kForgotten ||
      (gate.verdict == Verdict::kRefused && !gate.shut && !shut(gate))) {
    release(gate);
  } else if (gate.verdict == Verdict::kLetIn && open(gate)) {
    let_in(gate);
  } else {
    wait(gate);
  }
}

void RefusalGates::let_in(Gate& gate) {
  gate.state = State::kOpen;
  gate.served = gate.forward->stats().connections_established;
  gate.told = false;
  gate.open_until = io_.now();
  gate.due = gate.open_until + kForgetAfter;
}

/// The guest has refused a client that was let in.
void RefusalGates::refused_again(Gate& gate) {
  const Nanos now = io_.now();
  if (!std::exchange(gate.told, true)) {
    const bool in_vain = gate.forward->stats().connections_established == gate.served;
    gate.in_vain = in_vain ? std::min(gate.in_vain + 1, kInVainMax) : gate.in_vain / 2;
    if (in_vain) {
      gate.open_until = now + kLetInMin * (1 << (gate.in_vain - 1));
      gate.due = gate.open_until + kForgetAfter;
    }
  }
  if (now < gate.open_until) return;
  gate.state = State::kWaiting;
  gate.since = gate.probed = gate.due = now;
}

void RefusalGates::wait(Gate& gate) {
  const Nanos now = io_.now();
  const Nanos interval = std::max(kIntervalMin, (now - gate.since) / (gate.asked ? 8 : 2));
  gate.state = State::kWaiting;
  gate.due = now + std::min(interval, std::max(kIntervalMin, interval_max_));
}

void RefusalGates::release(Gate& gate) {
  if (gate.shut) {
    // Its forward is closed: the listeners stay as they are, and the refused client is no longer listed.
    gate.shut = false;
    note_of(gate) = {};
    counters_.refusal_gates.sub();
  }
  gate = Gate{};
  --in_use_;
}

NotedRefusal& RefusalGates::note_of(const Gate& gate) {
  return notes_[static_cast<std::size_t>(&gate - gates_.data())];
}

}  // namespace portway
