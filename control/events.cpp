#include "control/events.h"

#include <fmt/format.h>

#include <boost/json/serialize.hpp>
#include <charconv>
#include <deque>
#include <list>
#include <optional>
#include <utility>

#include "base/forward.h"
#include "base/random.h"

namespace portway {
namespace {

// One read gives at most about this much: what waits for a slow client is not in our memory twice.
constexpr std::size_t kReadBytes = 64 * 1024;
constexpr std::string_view kRetry = "retry: 1000\n";  // a client's wait before it connects again, ms
constexpr std::string_view kComment = ":\n\n";        // what readers skip

}  // namespace

struct EventHub::State {
  struct Event {
    std::string owner;
    std::string text;  // as sent, without its id
  };

  std::uint64_t next() const { return first + events.size(); }
  /// "1f3a-42": an id of another run of the daemon is no id of this one.
  std::string id(std::uint64_t number) const { return fmt::format("{}-{}", epoch, number); }
  /// The event after the one with this id; nothing when it is not kept any more, or was never here.
  std::optional<std::uint64_t> after(std::string_view last_id) const;

  std::string epoch;
  std::uint64_t first = 1;  // number of events.front()
  std::deque<Event> events;
  std::list<std::function<void()>> wakes;  // one for each stream
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

class EventHub::Subscription final : public BodyStream {
 public:
  Subscription(std::shared_ptr<State> state, Principal caller, std::string_view last_event_id)
      : state_(std::move(state)), caller_(std::move(caller)), next_(state_->next()) {
    out_ = kRetry;
    if (last_event_id.empty()) {
      out_ += kComment;  // something to see at once that it is open
    } else if (const auto after = state_->after(last_event_id)) {
      next_ = *after;
      out_ += kComment;
    } else {
      say_reset("this event is not kept any more");
    }
  }
  ~Subscription() override {
    if (wake_) state_->wakes.erase(*wake_);
  }
  Subscription(const Subscription&) = delete;
  Subscription& operator=(const Subscription&) = delete;

  void on_ready(std::function<void()> wake) override {
    wake_ = state_->wakes.insert(state_->wakes.end(), std::move(wake));
  }

  std::optional<std::string> read() override {
    if (next_ < state_->first) {
      next_ = state_->first;
      say_reset("the client was too slow");
    }
    for (; next_ < state_->next() && out_.size() < kReadBytes; ++next_) {
      const State::Event& event = state_->events[next_ - state_->first];
      if (caller_.role != Role::kAdmin && caller_.owner != event.owner) continue;
      out_ += fmt::format("id: {}\n{}\n", state_->id(next_), event.text);
    }
    return std::exchange(out_, {});
  }

  std::string heartbeat() override { return std::string(kComment); }

 private:
  void say_reset(std::string_view why) {
    out_ += fmt::format(
        "id: {}\nevent: reset\ndata: {}\n\n", state_->id(next_ - 1),
        boost::json::serialize(boost::json::object{
            {"time", to_rfc3339(now())}, {"reason", std::string(why) + "; events are missing here"}}));
  }

  const std::shared_ptr<State> state_;
  const Principal caller_;
  std::uint64_t next_;
  std::string out_;
  std::optional<std::list<std::function<void()>>::iterator> wake_;
};

EventHub::EventHub() : state_(std::make_shared<State>()) {
  state_->epoch = fmt::format("{:08x}", random_below(0xffffffffU));
}
EventHub::~EventHub() = default;

void EventHub::publish(std::string_view type, std::string_view owner, const boost::json::object& data) {
  boost::json::object timed{{"time", to_rfc3339(now())}};
  for (const auto& [key, value] : data) timed[key] = value;
  state_->events.push_back(
      {std::string(owner), fmt::format("event: {}\ndata: {}\n", type, boost::json::serialize(timed))});
  if (state_->events.size() > kKept) {
    state_->events.pop_front();
    ++state_->first;
  }
  for (const auto& wake : state_->wakes) wake();
}

std::shared_ptr<BodyStream> EventHub::subscribe(const Principal& caller, std::string_view last_event_id) {
  return std::make_shared<Subscription>(state_, caller, last_event_id);
}

}  // namespace portway
