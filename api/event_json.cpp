#include "api/event_json.h"

#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "api/json.h"
#include "api/preconditions.h"
#include "api/sse.h"

namespace portway {
namespace {

template <class Kind>
concept IsAboutAForward = requires(const Kind& kind) {
  kind.forward;
};

// The fields that a type of event has beside its forward's: none, unless one of these says so.
template <class Kind>
void add_fields(boost::json::object& /*data*/, const Kind& /*kind*/) {}

void add_fields(boost::json::object& data, const event::InstanceUpdated& updated) {
  data["changed"] = boost::json::array(updated.changed.begin(), updated.changed.end());
  if (updated.lost) data["lost"] = true;
}

void add_fields(boost::json::object& data, const event::InstanceTapRenamed& renamed) {
  data["tap"] = renamed.tap;
  data["name"] = renamed.name;
}

void add_fields(boost::json::object& data, const event::InstanceSourceModeChanged& changed) {
  data["source_mode"] = source_mode(changed.plan);
  if (!changed.reason.empty()) data["reason"] = changed.reason;
}

void add_fields(boost::json::object& data, const event::InstanceStopped& stopped) {
  data["reason"] = to_string(stopped.reason);
  data["port_forwards"] = stopped.port_forwards;
}

void add_fields(boost::json::object& data, const event::ForwardDeleted& deleted) {
  data["reason"] = deleted.expired ? "expired" : "requested";
}

void add_fields(boost::json::object& data, const event::ForwardFailed& failed) {
  data["reason"] = failed.reason;
}

void add_fields(boost::json::object& data, const event::ForwardStateChanged& changed) {
  data["state"] = to_string(changed.state);
  if (changed.cause != ForwardCause::kNone) data["cause"] = to_string(changed.cause);
  if (!changed.reason.empty()) data["reason"] = changed.reason;
}

void add_fields(boost::json::object& data, const event::ConnectionRefused& refused) {
  data["client"] = to_string(refused.client);
  data["side"] = to_string(refused.cause.side);
  data["how"] = to_string(refused.cause.how);
}

void add_fields(boost::json::object& data, const event::NodeTakenOver& taken) {
  data["end"] = taken.from_living ? "upgrade" : "crash";
  data["connections"] = taken.connections;
  data["adopted"] = taken.adopted;
}

void add_fields(boost::json::object& data, const event::NodeUpgradeFailed& failed) {
  data["reason"] = failed.reason;
}

std::string_view type_of(const Event& event) {
  return std::visit([]<class Kind>(const Kind&) { return Kind::kType; }, event.kind);
}

std::string_view code_of(EventGap gap) {
  switch (gap) {
    case EventGap::kNotKept:
      return "not_kept";
    case EventGap::kRestarted:
      return "restarted";
    case EventGap::kUnknownId:
      break;
  }
  return "unknown_id";
}

std::string_view reason_of(EventGap gap) {
  switch (gap) {
    case EventGap::kNotKept:
      return "the next event is not kept any more";
    case EventGap::kRestarted:
      return "the last event is of another run of the daemon";
    case EventGap::kUnknownId:
      break;
  }
  return "no event has this id";
}

class HubSource final : public SseSource {
 public:
  explicit HubSource(std::unique_ptr<EventSubscription> subscription)
      : subscription_(std::move(subscription)) {}

  void on_event(std::function<void()> wake) override { subscription_->on_event(std::move(wake)); }

  std::optional<SseItem> next() override {
    const auto item = subscription_->next();
    if (!item) return std::nullopt;
    if (item->event == nullptr) {
      return SseItem{.text = reset_event(item->id, code_of(item->gap), reason_of(item->gap)), .is_gap = true};
    }
    const Event& event = *item->event;
    if (event.text.empty()) event.text = boost::json::serialize(to_json(event));
    return SseItem{.text = sse_event(item->id, type_of(event), event.text)};
  }

  std::string position() const override { return subscription_->position(); }

 private:
  const std::unique_ptr<EventSubscription> subscription_;
};

}  // namespace

boost::json::object to_json(const Event& event) {
  boost::json::object data{{"time", to_rfc3339(event.time)}};
  if (!event.instance_id.empty()) {
    data["instance_id"] = event.instance_id;
    data["session_id"] = to_string(event.session_id);
    data["owner"] = event.owner;
  }
  std::visit(
      [&data]<class Kind>(const Kind& kind) {
        if constexpr (IsAboutAForward<Kind>) {
          data["forward_id"] = to_string(kind.forward.id);
          data["guest_port"] = kind.forward.guest_port;
          data["host_port"] = kind.forward.host_port;
          data["label"] = kind.forward.label;
        }
        add_fields(data, kind);
      },
      event.kind);
  if (event.instance != nullptr) {
    data["etag"] = etag_of(event.instance->instance);
    data["instance"] = to_json(*event.instance);
  }
  if (event.forward != nullptr) {
    data["etag"] = etag_of(event.forward->forward);
    data["port_forward"] = to_json(*event.forward);
  }
  return data;
}

std::shared_ptr<BodyStream> event_stream(std::unique_ptr<EventSubscription> subscription) {
  return sse_stream(std::make_unique<HubSource>(std::move(subscription)));
}

}  // namespace portway
