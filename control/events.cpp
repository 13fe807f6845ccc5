#include "control/events.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <charconv>
#include <deque>
#include <map>
#include <set>
#include <utility>
#include <variant>

#include "base/random.h"

namespace portway {
namespace {

constexpr std::size_t kEpochDigits = 8;

// What an event counts as at least, so that memory bounds the number of events as well.
constexpr std::size_t kLeastOfChange = 4096;
constexpr std::size_t kLeastOfRefusal = 1024;

std::size_t bytes_of(const Metadata& metadata) {
  constexpr std::size_t kOfWord = 128;  // beside its text
  std::size_t bytes = 0;
  for (const auto& [key, value] : metadata) bytes += kOfWord + key.size() + value.size();
  return bytes;
}

/// About what it takes while it is kept, with its text.
std::size_t bytes_of(const Event& event) {
  std::size_t bytes = sizeof(Event) + event.instance_id.size() + event.owner.size();
  if (event.instance != nullptr) {
    const Instance& instance = event.instance->instance;
    bytes += sizeof(InstanceStatus) + bytes_of(instance.metadata) + instance.netns.size() +
             instance.tap_netns.size() + instance.target.socket.size() + event.instance->tap_fault.size() +
             event.instance->source_reason.size();
  }
  if (event.forward != nullptr) {
    const Forward& forward = event.forward->forward;
    constexpr std::size_t kOfAddress = 64;
    bytes += sizeof(ForwardStatus) + bytes_of(forward.metadata) + forward.target.socket.size() +
             event.forward->reason.size() + kOfAddress * forward.limits.allowed_cidrs.size() +
             kOfAddress * (event.forward->bind_addresses.size() + event.forward->lost_addresses.size());
  }
  return 2 * bytes;
}

/// Events of one kind, shared by owner.
class Pool {
 public:
  Pool(std::size_t events, std::size_t least) : budget_(events * least), least_(least) {}

  /// Returns the numbers of those that go for it.
  std::vector<std::uint64_t> add(std::uint64_t number, const Event& event) {
    const auto [entry, is_new] = shares_.try_emplace(event.owner);
    auto& [owner, share] = *entry;
    if (is_new) share.last_dropped = forgotten_;
    const std::size_t bytes = std::max(least_, bytes_of(event));
    by_size_.erase({share.bytes, owner});
    share.events.push_back({number, bytes});
    share.bytes += bytes;
    by_size_.emplace(share.bytes, owner);
    bytes_ += bytes;
    std::vector<std::uint64_t> dropped;
    while (bytes_ > budget_) dropped.push_back(drop_one());
    return dropped;
  }

  /// The first one of this owner from there on; 0: there is none.
  std::uint64_t first_of(std::string_view owner, std::uint64_t from) const {
    const auto share = shares_.find(owner);
    if (share == shares_.end()) return 0;
    const auto& events = share->second.events;
    const auto found = std::ranges::lower_bound(events, from, {}, &Entry::number);
    return found == events.end() ? 0 : found->number;
  }

  /// Number of the last one that was dropped, of all owners; 0: none.
  std::uint64_t last_dropped() const { return last_dropped_; }
  /// Of this one. Perhaps another's, if this one has nothing here.
  std::uint64_t last_dropped_of(std::string_view owner) const {
    const auto share = shares_.find(owner);
    return share == shares_.end() ? forgotten_ : share->second.last_dropped;
  }

 private:
  struct Entry {
    std::uint64_t number;
    std::size_t bytes;
  };
  struct Share {
    std::deque<Entry> events;  // never empty
    std::size_t bytes = 0;
    std::uint64_t last_dropped = 0;
  };

  /// The oldest one of whoever has most.
  std::uint64_t drop_one() {
    const auto largest = std::prev(by_size_.end());
    const auto entry = shares_.find(largest->second);
    auto& [owner, share] = *entry;
    by_size_.erase(largest);
    const auto [number, bytes] = share.events.front();
    share.events.pop_front();
    share.bytes -= bytes;
    bytes_ -= bytes;
    share.last_dropped = number;
    last_dropped_ = std::max(last_dropped_, number);
    if (share.events.empty()) {
      forgotten_ = std::max(forgotten_, number);
      shares_.erase(entry);
    } else {
      by_size_.emplace(share.bytes, owner);
    }
    return number;
  }

  const std::size_t budget_;
  const std::size_t least_;
  std::size_t bytes_ = 0;
  std::map<std::string, Share, std::less<>> shares_;            // by owner; the node's is ""
  std::set<std::pair<std::size_t, std::string_view>> by_size_;  // bytes and owner of each of them
  std::uint64_t last_dropped_ = 0;
  std::uint64_t forgotten_ = 0;  // the last one that was dropped of owners that have nothing here now
};

}  // namespace

struct EventSubscription::Wake {
  const Principal* caller;
  std::function<void()> wake;
};

struct EventHub::State {
  /// "1f3a0b2c-42": an id of another run of the daemon is not an id of this one.
  std::string id(std::uint64_t number) const { return fmt::format("{}-{}", epoch, number); }
  /// The number of the event with this id; or why it is not known.
  std::variant<std::uint64_t, EventGap> number_of(std::string_view id) const;
  void keep(Event event);
  /// The number of the first event that the caller may see, from there on; 0: there is none.
  std::uint64_t first_for(const Principal& caller, std::uint64_t from) const;
  /// Of the last change that the caller could have seen and that is not kept; 0: none.
  std::uint64_t last_lost(const Principal& caller) const;

  std::string epoch;
  std::uint64_t next = 1;  // the number of the event that comes next
  std::map<std::uint64_t, Event> events;
  Pool changes{kKept, kLeastOfChange};
  Pool refusals{kRefusalsKept, kLeastOfRefusal};
  std::list<EventSubscription::Wake> wakes;  // at most one for each subscription
};

std::variant<std::uint64_t, EventGap> EventHub::State::number_of(std::string_view id) const {
  const std::string_view run = id.substr(0, kEpochDigits);
  const bool is_id = run.size() == kEpochDigits &&
                     run.find_first_not_of("0123456789abcdef") == std::string_view::npos &&
                     id.substr(kEpochDigits).starts_with('-');
  if (!is_id) return EventGap::kUnknownId;
  id.remove_prefix(kEpochDigits + 1);
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(id.data(), id.data() + id.size(), number);
  if (error != std::errc() || end != id.data() + id.size()) return EventGap::kUnknownId;
  if (run != epoch) return EventGap::kRestarted;
  if (number >= next) return EventGap::kUnknownId;
  return number;
}

void EventHub::State::keep(Event event) {
  const bool is_refusal = std::holds_alternative<event::ConnectionRefused>(event.kind);
  const std::uint64_t number = next++;
  const auto kept = events.emplace_hint(events.end(), number, std::move(event));
  Pool& pool = is_refusal ? refusals : changes;
  for (const std::uint64_t dropped : pool.add(number, kept->second)) events.erase(dropped);
}

std::uint64_t EventHub::State::first_for(const Principal& caller, std::uint64_t from) const {
  if (caller.role == Role::kAdmin) {
    const auto found = events.lower_bound(from);
    return found == events.end() ? 0 : found->first;
  }
  for (;;) {
    const std::uint64_t change = changes.first_of(caller.owner, from);
    const std::uint64_t refusal = refusals.first_of(caller.owner, from);
    const std::uint64_t first =
        change == 0 || refusal == 0 ? std::max(change, refusal) : std::min(change, refusal);
    if (first == 0) return 0;
    const Event& event = events.at(first);
    if (caller.sees(event.owner, event.instance_id)) return first;
    from = first + 1;
  }
}

std::uint64_t EventHub::State::last_lost(const Principal& caller) const {
  return caller.role == Role::kAdmin ? changes.last_dropped() : changes.last_dropped_of(caller.owner);
}

EventHub::EventHub() : state_(std::make_shared<State>()) {
  state_->epoch = fmt::format("{:08x}", random_below(0xffffffffU));
}
EventHub::~EventHub() = default;

void EventHub::publish(Event event) {
  const std::string owner = event.owner;
  const std::string instance_id = event.instance_id;
  state_->keep(std::move(event));
  for (const auto& [caller, wake] : state_->wakes) {
    if (caller->sees(owner, instance_id)) wake();
  }
}

std::string EventHub::last_id() const {
  return state_->id(state_->next - 1);
}

std::unique_ptr<EventSubscription> EventHub::subscribe(const Principal& caller,
                                                       std::string_view last_event_id) {
  return std::make_unique<EventSubscription>(state_, caller, last_event_id);
}

EventSubscription::EventSubscription(std::shared_ptr<EventHub::State> state, Principal caller,
                                     std::string_view last_event_id)
    : state_(std::move(state)), caller_(std::move(caller)), next_(state_->next) {
  if (last_event_id.empty()) return;
  const auto last = state_->number_of(last_event_id);
  if (const auto* number = std::get_if<std::uint64_t>(&last)) {
    next_ = *number + 1;
  } else {
    gap_first_ = std::get<EventGap>(last);
  }
}

EventSubscription::~EventSubscription() {
  if (wake_) state_->wakes.erase(*wake_);
}

void EventSubscription::on_event(std::function<void()> wake) {
  assert(!wake_);  // both would be called
  wake_ = state_->wakes.insert(state_->wakes.end(), {&caller_, std::move(wake)});
}

std::optional<EventSubscription::Item> EventSubscription::next() {
  std::optional<EventGap> gap = std::exchange(gap_first_, std::nullopt);
  if (!gap && state_->last_lost(caller_) >= next_) gap = EventGap::kNotKept;
  const std::uint64_t number = gap ? 0 : state_->first_for(caller_, next_);
  next_ = number == 0 ? state_->next : number + 1;
  if (gap) return Item{.id = position(), .event = nullptr, .gap = *gap};
  if (number == 0) return std::nullopt;
  return Item{.id = position(), .event = &state_->events.at(number)};
}

std::string EventSubscription::position() const {
  return state_->id(next_ - 1);
}

}  // namespace portway
