#include "control/events.h"

#include <fmt/format.h>

#include <charconv>
#include <deque>
#include <utility>

#include "base/random.h"

namespace portway {

struct EventHub::State {
  /// The number of the event that comes next.
  std::uint64_t next() const { return first + events.size(); }
  /// "1f3a-42": an id of another run of the daemon is not an id of this one.
  std::string id(std::uint64_t number) const { return fmt::format("{}-{}", epoch, number); }
  /// The number after the event with this id; nothing if that is not kept any more, or was never here.
  std::optional<std::uint64_t> after(std::string_view last_id) const;

  std::string epoch;
  std::uint64_t first = 1;  // number of events.front()
  std::deque<Event> events;
  std::list<std::function<void()>> wakes;  // at most one for each subscription
};

std::optional<std::uint64_t> EventHub::State::after(std::string_view last_id) const {
  const std::string prefix = epoch + "-";
  if (!last_id.starts_with(prefix)) return std::nullopt;
  last_id.remove_prefix(prefix.size());
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(last_id.data(), last_id.data() + last_id.size(), number);
  if (error != std::errc() || end != last_id.data() + last_id.size()) return std::nullopt;
  if (number + 1 < first || number >= next()) return std::nullopt;
  return number + 1;
}

EventHub::EventHub() : state_(std::make_shared<State>()) {
  state_->epoch = fmt::format("{:08x}", random_below(0xffffffffU));
}
EventHub::~EventHub() = default;

void EventHub::publish(Event event) {
  state_->events.push_back(std::move(event));
  if (state_->events.size() > kKept) {
    state_->events.pop_front();
    ++state_->first;
  }
  for (const auto& wake : state_->wakes) wake();
}

std::unique_ptr<EventSubscription> EventHub::subscribe(const Principal& caller,
                                                       std::string_view last_event_id) {
  return std::make_unique<EventSubscription>(state_, caller, last_event_id);
}

EventSubscription::EventSubscription(std::shared_ptr<EventHub::State> state, Principal caller,
                                     std::string_view last_event_id)
    : state_(std::move(state)), caller_(std::move(caller)), next_(state_->next()) {
  if (last_event_id.empty()) return;
  const auto after = state_->after(last_event_id);
  next_ = after.value_or(next_);
  lost_its_place_ = !after;
}

EventSubscription::~EventSubscription() {
  if (wake_) state_->wakes.erase(*wake_);
}

void EventSubscription::on_event(std::function<void()> wake) {
  wake_ = state_->wakes.insert(state_->wakes.end(), std::move(wake));
}

std::optional<EventSubscription::Item> EventSubscription::next() {
  if (std::exchange(lost_its_place_, false)) return gap("this event is not kept any more");
  if (next_ < state_->first) {
    next_ = state_->first;
    return gap("the client was too slow");
  }
  while (next_ < state_->next()) {
    const std::uint64_t number = next_++;
    const Event& event = state_->events[number - state_->first];
    if (caller_.role != Role::kAdmin && caller_.owner != event.owner) continue;
    return Item{.id = state_->id(number), .event = &event};
  }
  return std::nullopt;
}

EventSubscription::Item EventSubscription::gap(std::string_view reason) const {
  return {.id = state_->id(next_ - 1), .event = nullptr, .gap_reason = reason};
}

}  // namespace portway
