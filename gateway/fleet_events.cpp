#include "gateway/fleet_events.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/error.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <charconv>

#include "base/into.h"
#include "fleet/claim.h"
#include "fleet/node_record.h"
#include "gateway/entries.h"

namespace portway {
namespace {

boost::json::object object_of(std::string_view json) {
  boost::system::error_code error;
  auto value = boost::json::parse(json, error);
  return !error && value.is_object() ? std::move(value.get_object()) : boost::json::object();
}

std::string_view text_of(const boost::json::object& object, std::string_view name) {
  const auto* value = object.if_contains(name);
  return value != nullptr && value->is_string() ? std::string_view(value->get_string()) : std::string_view();
}

std::string to_text(const FleetEventId& id) {
  return fmt::format("{}.{}", id.revision, id.change);
}

std::optional<FleetEventId> parse_event_id(std::string_view text) {
  FleetEventId id;
  const char* const end = text.data() + text.size();
  const auto [dot, bad_revision] = std::from_chars(text.data(), end, id.revision);
  if (bad_revision != std::errc() || dot == end || *dot != '.') return std::nullopt;
  const auto [last, bad_change] = std::from_chars(dot + 1, end, id.change);
  if (bad_change != std::errc() || last != end || id.revision < 0) return std::nullopt;
  return id;
}

/// What every event about an instance has.
boost::json::object data_of(std::string_view node, std::string_view instance_id,
                            const boost::json::object& instance) {
  boost::json::object data{{"time", to_rfc3339(now())}, {"node", node}, {"instance_id", instance_id}};
  for (const std::string_view name : {"session_id", "owner"}) {
    if (const auto text = text_of(instance, name); !text.empty()) data[name] = text;
  }
  return data;
}

/// What every event about a forward has besides.
void add_forward(boost::json::object& data, const ForwardId& id, const boost::json::object& forward) {
  data["forward_id"] = to_string(id);
  for (const std::string_view name : {"guest_port", "host_port", "label"}) {
    if (const auto* value = forward.if_contains(name)) data[name] = *value;
  }
}

std::string_view type_of_instance(const boost::json::object& before, const boost::json::object& after) {
  const bool is_running = text_of(after, "state") == "running";
  if (text_of(before, "session_id") != text_of(after, "session_id")) {
    return is_running ? "instance.started" : "instance.stopped";
  }
  if (is_running || text_of(before, "state") == text_of(after, "state")) return "instance.updated";
  return "instance.stopped";
}

std::size_t size_of(const FleetEvent& event) {
  return sizeof event + event.owner.size() + event.instance_id.size() + event.data.size();
}

constexpr std::string_view kNotKeptCode = "not_kept";
constexpr std::string_view kNotKept = "the next event is not kept any more";

}  // namespace

/// Reads on from a place in what is kept.
class FleetEvents::Subscription final : public SseSource {
 public:
  Subscription(FleetEvents& events, Principal caller, std::string_view last_event_id)
      : events_(events),
        caller_(std::move(caller)),
        next_(events.first_ + events.kept_.size()),
        position_(events.last_),
        gaps_(events.gaps_) {
    if (last_event_id.empty()) return;
    const auto asked = parse_event_id(last_event_id);
    if (!asked || *asked < events.known_after_ || asked->revision > events.last_.revision) {
      has_gap_ = true;
      return;
    }
    position_ = *asked;
    const auto first =
        std::ranges::upper_bound(events.kept_, *asked, std::less<FleetEventId>(), &FleetEvent::id);
    next_ = events.first_ + static_cast<std::uint64_t>(first - events.kept_.begin());
  }
  ~Subscription() override {
    if (place_) events_.subscriptions_.erase(*place_);
  }

  void on_event(std::function<void()> wake) override {
    wake_ = std::move(wake);
    place_ = events_.subscriptions_.insert(events_.subscriptions_.end(), this);
  }

  std::optional<SseItem> next() override {
    const std::uint64_t end = events_.first_ + events_.kept_.size();
    if (std::exchange(has_gap_, false) || gaps_ != events_.gaps_ || next_ < events_.first_) {
      gaps_ = events_.gaps_;
      next_ = end;
      position_ = events_.last_;
      return SseItem{.text = reset_event(position(), kNotKeptCode, kNotKept), .is_gap = true};
    }
    while (next_ < end) {
      const FleetEvent& event = events_.kept_[static_cast<std::size_t>(next_++ - events_.first_)];
      position_ = event.id;
      if (!may_see(event)) continue;
      return SseItem{.text = sse_event(to_text(event.id), event.type, event.data)};
    }
    is_waiting_ = true;
    return std::nullopt;
  }

  /// `event`: null for a gap.
  void tell(const FleetEvent* event) {
    if (!is_waiting_ || (event != nullptr && !may_see(*event))) return;
    is_waiting_ = false;
    wake_();
  }

  std::string position() const override { return to_text(position_); }

 private:
  bool may_see(const FleetEvent& event) const {
    if (caller_.role == Role::kAdmin) return true;
    return !event.instance_id.empty() && caller_.sees(event.owner, event.instance_id);
  }

  FleetEvents& events_;
  const Principal caller_;
  std::uint64_t next_;
  FleetEventId position_;
  std::uint64_t gaps_;  // that this reader knows of
  bool has_gap_ = false;
  bool is_waiting_ = false;
  std::function<void()> wake_;
  std::optional<Subscriptions::iterator> place_;
};

void FleetEvents::on_change(const EtcdEvent& event, const std::string& before) {
  const std::int64_t revision = event.kv.mod_revision;
  last_ = {.revision = revision, .change = revision == last_.revision ? last_.change + 1 : 1};
  end_waiting();
  const auto key = keys_.parse(event.kv.key);
  if (!key) return;
  if (event.type == EtcdEvent::Type::kPut && event.kv.value == before) return;  // written twice
  switch (key->kind) {
    case FleetKey::Kind::kNode:
      return on_node(event, *key, before);
    case FleetKey::Kind::kClaim:
      return on_claim(event, *key, before);
    case FleetKey::Kind::kInstance:
      return on_instance(event, *key, before);
    case FleetKey::Kind::kForward:
      return on_forward(event, *key, before);
    default:
      return;
  }
}

void FleetEvents::on_relisted(std::int64_t revision) {
  kept_.clear();
  first_ = 0;
  bytes_ = 0;
  // A store that was restored begins again below what was told before: its readers must not go on there.
  const std::int64_t highest = std::max(revision, known_after_.revision);
  known_after_ = {.revision = std::max(highest, last_.revision), .change = UINT32_MAX};
  last_ = {.revision = revision, .change = UINT32_MAX};  // whatever was in it is in the listing
  ++gaps_;
  end_waiting();
  for (Subscription* each : subscriptions_) each->tell(nullptr);
}

/// The instance is another node's now, which may have published it before.
void FleetEvents::on_claim(const EtcdEvent& event, const FleetKey& key, const std::string& value_before) {
  const FleetViewInstance* instance = view_->find_instance(key.instance_id);
  if (instance == nullptr || event.type != EtcdEvent::Type::kPut || value_before.empty()) return;
  const auto before = parse_claim(value_before);
  if (before && before->node == instance->node) return;
  const auto object = entry_of(*view_, *instance);
  auto data = data_of(instance->node, instance->id, object);
  data["instance"] = object;
  keep({.type = "instance.started",
        .owner = instance->owner,
        .instance_id = instance->id,
        .data = boost::json::serialize(data)});
}

void FleetEvents::on_instance(const EtcdEvent& event, const FleetKey& key, const std::string& value_before) {
  const FleetViewInstance* shown = view_->find_instance(key.instance_id);
  const auto before = object_of(value_before);
  const bool is_put = event.type == EtcdEvent::Type::kPut;
  // What a node says that does not have the instance is no event: not yet, or not any more.
  if (is_put ? shown == nullptr || shown->node != key.node : shown != nullptr || before.empty()) return;
  const auto after = is_put ? object_of(event.kv.value) : boost::json::object();
  const bool has_new_owner = is_put && !before.empty() && text_of(before, "owner") != text_of(after, "owner");
  const bool same_session = is_put && text_of(before, "session_id") == shown->session_id;
  if (has_new_owner) tell_owner_before(key, before, same_session);
  auto data = data_of(key.node, key.instance_id, is_put ? after : before);
  if (is_put) data["instance"] = entry_of(*view_, *shown);
  keep({.type = is_put ? type_of_instance(before, after) : "instance.deleted",
        .owner = std::string(text_of(is_put ? after : before, "owner")),
        .instance_id = key.instance_id,
        .data = boost::json::serialize(data)});
  if (has_new_owner && same_session) tell_forwards(*shown);
}

/// It is over for that one: the instance with its session, or that it sees it.
void FleetEvents::tell_owner_before(const FleetKey& key, const boost::json::object& before,
                                    bool same_session) {
  auto data = data_of(key.node, key.instance_id, before);
  if (same_session) data["lost"] = true;
  keep({.type = same_session ? "instance.updated" : "instance.deleted",
        .owner = std::string(text_of(before, "owner")),
        .instance_id = key.instance_id,
        .data = boost::json::serialize(data)});
}

/// The forwards of an instance whose owner is another one now: to that one they are new.
void FleetEvents::tell_forwards(const FleetViewInstance& shown) {
  const auto data_of_instance = data_of(shown.node, shown.id, object_of(shown.json));
  for (const auto& [id, forward] : shown.forwards) {
    auto data = data_of_instance;
    auto entry = entry_of(*view_, shown, forward);
    add_forward(data, id, entry);
    data["port_forward"] = std::move(entry);
    keep({.type = "forward.updated",
          .owner = shown.owner,
          .instance_id = shown.id,
          .data = boost::json::serialize(data)});
  }
}

void FleetEvents::on_forward(const EtcdEvent& event, const FleetKey& key, const std::string& value_before) {
  const FleetViewInstance* shown = view_->find_instance(key.instance_id);
  if (shown == nullptr || shown->node != key.node) return;
  const auto before = object_of(value_before);
  const bool is_put = event.type == EtcdEvent::Type::kPut;
  const auto put = shown->forwards.find(key.forward);
  if (is_put && put == shown->forwards.end()) return;  // it was not understood, or is of another session
  const auto after = is_put ? object_of(event.kv.value) : boost::json::object();
  const auto& forward = is_put ? after : before;
  const auto instance = object_of(shown->json);
  // It has ended with its session, as its instance's event has said.
  if (!shown->has_session(text_of(forward, "session_id"))) return;
  if (!is_put && text_of(instance, "state") != "running") return;
  auto data = data_of(key.node, key.instance_id, instance);
  add_forward(data, key.forward, forward);
  std::string_view type = "forward.deleted";
  if (is_put) {
    data["port_forward"] = entry_of(*view_, *shown, put->second);
    type = before.empty()                                        ? "forward.created"
           : text_of(before, "state") != text_of(after, "state") ? "forward.state_changed"
                                                                 : "forward.updated";
  }
  keep({.type = type,
        .owner = shown->owner,
        .instance_id = key.instance_id,
        .data = boost::json::serialize(data)});
}

void FleetEvents::on_node(const EtcdEvent& event, const FleetKey& key, const std::string& value_before) {
  const auto before = parse_registered_node(value_before);
  const auto after =
      event.type == EtcdEvent::Type::kPut ? parse_registered_node(event.kv.value) : std::nullopt;
  std::string_view type;
  if (!after) {
    type = "node.lost";
  } else if (!before) {
    type = "node.up";
  } else if (before->record.draining != after->record.draining) {
    type = after->record.draining ? "node.draining" : "node.undrained";
  } else {
    return;  // its load
  }
  const boost::json::object data{{"time", to_rfc3339(now())}, {"node", key.node}};
  keep({.type = type, .data = boost::json::serialize(data)});
}

void FleetEvents::keep(FleetEvent event) {
  if (!kept_.empty() && !(kept_.back().id < last_)) ++last_.change;  // another one of the same change
  event.id = last_;
  bytes_ += size_of(event);
  kept_.push_back(std::move(event));
  while (kept_.size() > kKept || bytes_ > kBytesKept) {
    known_after_ = std::max(known_after_, kept_.front().id);
    bytes_ -= size_of(kept_.front());
    kept_.pop_front();
    ++first_;
  }
  for (Subscription* each : subscriptions_) each->tell(&kept_.back());
}

void FleetEvents::end_waiting() {
  for (auto& timer : waiting_) timer.cancel();
}

boost::asio::awaitable<bool> FleetEvents::next_change(std::chrono::steady_clock::time_point deadline) {
  const auto timer = waiting_.emplace(waiting_.end(), context_, deadline);
  boost::system::error_code error;
  co_await timer->async_wait(into(error));
  waiting_.erase(timer);
  co_return error == boost::asio::error::operation_aborted;
}

boost::asio::awaitable<void> FleetEvents::wait_until_at(std::string id,
                                                        std::chrono::steady_clock::time_point deadline) {
  const auto wanted = parse_event_id(id);
  while (wanted && wanted->revision > last_.revision) {
    if (!co_await next_change(deadline)) co_return;
  }
}

std::string FleetEvents::last_id() const {
  return to_text(last_);
}

std::unique_ptr<SseSource> FleetEvents::subscribe(const Principal& caller, std::string_view last_event_id) {
  return std::make_unique<Subscription>(*this, caller, last_event_id);
}

}  // namespace portway
