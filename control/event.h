// What happens on the node, as values: one struct for each type of event, with the fields that it has beside
// those of every event. The API writes them as JSON (api/event_json.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/forward.h"
#include "control/forward_state.h"
#include "control/status.h"
#include "network/source_plan.h"
#include "proxy/close_record.h"

namespace portway {
namespace event {

/// What an event says beside its own fields: the whole resource as it is after the event.
enum class Carries : std::uint8_t { kNothing, kInstance, kForward };

// --- About an instance.

struct InstanceStarted {
  static constexpr std::string_view kType = "instance.started";
  static constexpr Carries kCarries = Carries::kInstance;
};
/// The session continues with other properties.
struct InstanceUpdated {
  static constexpr std::string_view kType = "instance.updated";
  static constexpr Carries kCarries = Carries::kInstance;
  std::vector<std::string_view> changed;  // names of fields; string literals
  bool lost = false;                      // the event's owner does not see it any more: nothing is carried
};
/// Its tap has a carrier: the session is armed.
struct InstanceTapUp {
  static constexpr std::string_view kType = "instance.tap_up";
  static constexpr Carries kCarries = Carries::kInstance;
};
struct InstanceTapRenamed {
  static constexpr std::string_view kType = "instance.tap_renamed";
  static constexpr Carries kCarries = Carries::kInstance;
  std::string tap;   // as registered
  std::string name;  // as it is called now
};
/// What its guest sees as its clients' address has changed.
struct InstanceSourceModeChanged {
  static constexpr std::string_view kType = "instance.source_mode_changed";
  static constexpr Carries kCarries = Carries::kInstance;
  SourcePlan plan = SourcePlan::kPlain;
  std::string reason;  // why there is no return path; empty if there is one again
};
struct InstanceStopped {
  static constexpr std::string_view kType = "instance.stopped";
  static constexpr Carries kCarries = Carries::kInstance;
  SessionEnd reason = SessionEnd::kStopped;
  std::size_t port_forwards = 0;  // how many ended with it
};
struct InstanceDeleted {
  static constexpr std::string_view kType = "instance.deleted";
  static constexpr Carries kCarries = Carries::kNothing;
};

// --- About a forward of it.

/// The forward as it was when the event happened.
struct OfForward {
  ForwardId id{};
  std::uint16_t guest_port = 0;
  std::uint16_t host_port = 0;
  std::string label;
};
inline OfForward of(const Forward& forward) {
  return {.id = forward.id,
          .guest_port = forward.guest_port,
          .host_port = forward.host_port,
          .label = forward.label};
}

struct ForwardCreated {
  static constexpr std::string_view kType = "forward.created";
  static constexpr Carries kCarries = Carries::kForward;
  OfForward forward;
};
struct ForwardUpdated {
  static constexpr std::string_view kType = "forward.updated";
  static constexpr Carries kCarries = Carries::kForward;
  OfForward forward;
};
struct ForwardDeleted {
  static constexpr std::string_view kType = "forward.deleted";
  static constexpr Carries kCarries = Carries::kNothing;
  OfForward forward;
  bool expired = false;  // by itself
};
/// A restored forward is not served.
struct ForwardFailed {
  static constexpr std::string_view kType = "forward.failed";
  static constexpr Carries kCarries = Carries::kForward;
  OfForward forward;
  std::string reason;
};
/// A forward that had failed is served.
struct ForwardListening {
  static constexpr std::string_view kType = "forward.listening";
  static constexpr Carries kCarries = Carries::kForward;
  OfForward forward;
};
/// Whether a client would be served is another answer than before.
struct ForwardStateChanged {
  static constexpr std::string_view kType = "forward.state_changed";
  static constexpr Carries kCarries = Carries::kForward;
  OfForward forward;
  ForwardState state = ForwardState::kListening;
  ForwardCause cause = ForwardCause::kNone;
  std::string reason = {};  // ForwardStatus::reason
};
/// A client did not get through.
struct ConnectionRefused {
  static constexpr std::string_view kType = "connection.refused";
  static constexpr Carries kCarries = Carries::kNothing;
  OfForward forward;
  Endpoint client;
  CloseCause cause;
};

// --- About the node. Only admins see them.

/// This process continues what the one before has left.
struct NodeTakenOver {
  static constexpr std::string_view kType = "node.taken_over";
  static constexpr Carries kCarries = Carries::kNothing;
  bool from_living = false;  // an upgrade; otherwise the process before has died
  std::size_t connections = 0;
  std::size_t adopted = 0;
};
/// This process continues because the new one did not take over.
struct NodeUpgradeFailed {
  static constexpr std::string_view kType = "node.upgrade_failed";
  static constexpr Carries kCarries = Carries::kNothing;
  std::string reason;
};

/// Its operator has it emptied: it takes nothing new.
struct NodeDraining {
  static constexpr std::string_view kType = "node.draining";
  static constexpr Carries kCarries = Carries::kNothing;
};
/// It takes new sessions and forwards again.
struct NodeUndrained {
  static constexpr std::string_view kType = "node.undrained";
  static constexpr Carries kCarries = Carries::kNothing;
};

using Kind =
    std::variant<InstanceStarted, InstanceUpdated, InstanceTapUp, InstanceTapRenamed,
                 InstanceSourceModeChanged, InstanceStopped, InstanceDeleted, ForwardCreated, ForwardUpdated,
                 ForwardDeleted, ForwardFailed, ForwardListening, ForwardStateChanged, ConnectionRefused,
                 NodeTakenOver, NodeUpgradeFailed, NodeDraining, NodeUndrained>;

}  // namespace event

struct Event {
  Timestamp time{};
  std::string instance_id;  // empty: it is about the node
  Uuid session_id{};
  std::string owner;  // the tenant whose keys see it, besides admins'
  event::Kind kind;
  // What the kind carries; null if it carries something else, or what it is about is not there any more.
  std::shared_ptr<const InstanceStatus> instance = nullptr;
  std::shared_ptr<const ForwardStatus> forward = nullptr;
  // Its data as text, which the first that reads it writes for the others (api/event_json.h).
  mutable std::string text = {};
};

}  // namespace portway
