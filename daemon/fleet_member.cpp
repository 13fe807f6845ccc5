#include "daemon/fleet_member.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/json/serialize.hpp>
#include <utility>
#include <variant>

#include "api/json.h"
#include "base/boot_clock.h"
#include "control/auth.h"
#include "fleet/etcd.h"
#include "process/read_config.h"

namespace portway {
namespace {

/// Of this boot of the machine and this store, so that a restart is known.
std::string identity_of(const Config& config) {
  struct stat store = {};
  (void)::stat(config.store.path.c_str(), &store);
  return fmt::format("{}:{}:{}", kernel_boot_id(), store.st_dev, store.st_ino);
}

template <class Kind>
concept IsOfForward = requires(const Kind& kind) {
  kind.forward;
};

}  // namespace

FleetMember::FleetMember(Parts parts)
    : parts_(std::move(parts)),
      settings_({.context = parts_.context,
                 .control = parts_.control,
                 .faults = parts_.faults,
                 .on_profiles = [this] {
                   if (publisher_ != nullptr) publisher_->on_anything();
                 }}) {}

FleetMember::~FleetMember() = default;

void FleetMember::apply_config() {
  forget();
  const Config::Fleet& fleet = parts_.config.fleet;
  settings_.keep_only(fleet.etcd.empty() ? "" : fleet.prefix);
  retry();
}

void FleetMember::retry() {
  settings_.look();
  if (publisher_ != nullptr || parts_.config.fleet.etcd.empty()) return;
  auto joined = join();
  if (joined) return;
  parts_.faults.set(FaultPart::kFleet, to_string(FleetFault::kEtcd), joined.error().detail);
}

void FleetMember::leave() {
  if (publisher_ == nullptr) return;
  settings_.stop();
  events_.reset();
  following_.reset();
  is_leaving_ = true;
  publisher_->resign([this] { is_leaving_ = false; });
}

void FleetMember::forget() {
  settings_.stop();
  publisher_.reset();
  events_.reset();
  following_.reset();
  for (std::size_t i = 0; i < kFleetFaults; ++i) {
    parts_.faults.clear(FaultPart::kFleet, to_string(static_cast<FleetFault>(i)));
  }
}

Result<void> FleetMember::join() {
  const Config::Fleet& fleet = parts_.config.fleet;
  auto etcd_options = read_etcd_options(fleet);
  if (!etcd_options) return etcd_options.error();
  PublisherOptions options{.etcd = std::move(*etcd_options),
                           .prefix = fleet.prefix,
                           .node_id = fleet_node_id(parts_.config),
                           .identity = identity_of(parts_.config),
                           .lease_ttl = fleet.lease_ttl};
  const auto report = [this](FleetFault fault, const std::string& detail) {
    if (detail.empty()) {
      parts_.faults.clear(FaultPart::kFleet, to_string(fault));
    } else {
      parts_.faults.set(FaultPart::kFleet, to_string(fault), detail);
    }
  };
  auto etcd = Etcd::create(parts_.context.get_executor(), options.etcd);
  if (!etcd) return etcd.error();
  auto publisher = Publisher::create(parts_.context.get_executor(), std::move(options), *this, report);
  if (!publisher) return publisher.error();
  publisher_ = std::move(*publisher);
  settings_.follow(std::move(*etcd), fleet.prefix);
  following_ = std::make_shared<int>();
  is_awake_ = false;
  events_ = parts_.control.events().subscribe({.role = Role::kAdmin, .owner = "fleet"}, "");
  follow_events();
  return {};
}

void FleetMember::on_record() {
  if (publisher_ != nullptr) publisher_->on_record();
}

std::optional<FleetNumbers> FleetMember::numbers() const {
  if (parts_.config.fleet.etcd.empty()) return std::nullopt;
  const PublisherStats stats = publisher_ == nullptr ? PublisherStats() : publisher_->stats();
  return FleetNumbers{
      .registered = stats.registered,
      .pending = stats.pending,
      .writes = stats.writes,
      .writes_failed = stats.writes_failed,
      .claims_refused = stats.claims_refused,
      .registrations = stats.registrations,
      .listings = stats.listings,
      .sessions_lost = stats.sessions_lost,
      .clock_ahead_seconds =
          std::chrono::duration<double>(stats.clock_ahead.value_or(std::chrono::milliseconds(0))).count()};
}

// --- What changes.

/// Not at once: whoever publishes is in the middle of something.
void FleetMember::follow_events() {
  events_->on_event([this, weak = std::weak_ptr<void>(following_)] {
    if (std::exchange(is_awake_, true)) return;
    boost::asio::post(parts_.context, [this, weak] {
      if (weak.expired()) return;
      is_awake_ = false;
      while (const auto item = events_->next()) take(*item);
    });
  });
}

void FleetMember::take(const EventSubscription::Item& item) {
  if (item.event == nullptr) return publisher_->on_anything();
  const Event& event = *item.event;
  if (event.instance_id.empty()) {
    const bool is_of_drain = std::holds_alternative<event::NodeDraining>(event.kind) ||
                             std::holds_alternative<event::NodeUndrained>(event.kind);
    if (is_of_drain) publisher_->on_record();
    return;
  }
  std::visit(
      [&]<class Kind>(const Kind& kind) {
        if constexpr (std::is_same_v<Kind, event::ConnectionRefused>) return;
        if constexpr (IsOfForward<Kind>) {
          publisher_->on_forward(event.instance_id, kind.forward.id);
        } else {
          publisher_->on_instance(event.instance_id);
        }
      },
      event.kind);
}

// --- What the node has.

NodeRecord FleetMember::record() const {
  const NodeInfo node = parts_.control.info();
  return {
      .address = fleet_address(parts_.config),
      .hostname = node.hostname,
      .version = PORTWAY_VERSION,
      .started_at = parts_.started_at,
      .draining = parts_.control.is_draining() || parts_.control.is_shutting_down(),
      .capacity = {.connections = parts_.config.proxy.connections_max, .host_ports = node.ports.size()},
      .load = {.instances = node.instances, .forwards = node.forwards, .connections = parts_.connections()}};
}

std::vector<std::string> FleetMember::instance_ids() const {
  std::vector<std::string> ids;
  for (const Instance* instance : parts_.control.registry().instances()) ids.push_back(instance->id);
  return ids;
}

std::optional<FleetNode::InstanceState> FleetMember::instance(std::string_view id) const {
  const Instance* instance = parts_.control.registry().find_instance(id);
  if (instance == nullptr) return std::nullopt;
  return InstanceState{.session_id = instance->session_id,
                       .running = instance->state == portway::InstanceState::kRunning,
                       .moved = instance->ended == SessionEnd::kMoved};
}

std::string FleetMember::instance_json(std::string_view id) const {
  const Instance* instance = parts_.control.registry().find_instance(id);
  return boost::json::serialize(lasting_json(parts_.control.status_of(*instance)));
}

std::vector<ForwardId> FleetMember::forward_ids(std::string_view instance_id) const {
  std::vector<ForwardId> ids;
  for (const Forward* forward : parts_.control.registry().forwards(instance_id)) ids.push_back(forward->id);
  return ids;
}

std::optional<std::string> FleetMember::forward(std::string_view instance_id, const ForwardId& id) const {
  const Forward* forward = parts_.control.registry().find_forward(id);
  const Instance* instance = parts_.control.registry().find_instance(instance_id);
  if (forward == nullptr || instance == nullptr || forward->instance_id != instance_id) return std::nullopt;
  boost::json::object value = lasting_json(parts_.control.status_of(*forward));
  value["session_id"] = to_string(instance->session_id);
  return boost::json::serialize(value);
}

// --- What the fleet says.

void FleetMember::on_lost(std::string_view instance_id, const Uuid& session_id, Loss loss) {
  const Instance* instance = parts_.control.registry().find_instance(instance_id);
  if (instance == nullptr || instance->session_id != session_id) return;
  parts_.control.end_session(instance_id, SessionEnd::kMoved);
  if (loss == Loss::kDeleted) delete_instance(std::string(instance_id), session_id);
}

void FleetMember::delete_instance(std::string id, const Uuid& session_id) {
  const auto is_that_one = [session_id](const Instance* instance) -> Result<void> {
    if (instance != nullptr && instance->session_id == session_id) return {};
    return Error{ErrorCode::kPreconditionFailed, "It has another session."};
  };
  const auto deletion = [](Control& control, std::string instance_id,
                           Precondition<Instance> precondition) -> boost::asio::awaitable<void> {
    Actor by{.name = "fleet"};  // not within the expression: GCC 12 would destroy it twice
    const auto deleted =
        co_await control.delete_instance(instance_id, std::move(precondition), std::move(by));
    if (!deleted) spdlog::warn("instance {}: not deleted yet: {}", instance_id, deleted.error().detail);
  };
  boost::asio::co_spawn(parts_.context, deletion(parts_.control, std::move(id), is_that_one),
                        boost::asio::detached);
}

}  // namespace portway
