#include "control/control.h"

#include <fmt/format.h>
#include <net/if.h>
#include <spdlog/spdlog.h>

#include <array>
#include <memory>
#include <utility>
#include <variant>

namespace portway {
namespace {

// Every change shares the node's.
constexpr std::string_view kNodeLock = "node";
constexpr std::string_view kKeysLock = "keys";
constexpr std::string_view kDrainLock = "drain";
// A drain lasts until somebody ends it.
constexpr std::chrono::seconds kRetryAfterDrain(30);

}  // namespace

Control::Control(const Config& config, const Parts& parts)
    : context_(parts.context),
      config_(config),
      store_(parts.store),
      dataplane_(parts.dataplane),
      watch_(parts.watch),
      events_(parts.events),
      stats_(parts.stats),
      find_lost_addresses_(parts.find_lost_addresses),
      source_paths_({.config = config_,
                     .registry = registry_,
                     .dataplane = dataplane_,
                     .return_path = parts.return_path,
                     .why_no_return_path = parts.why_no_return_path,
                     .kept_for = parts.return_path_kept_for,
                     .on_change =
                         [this](const Instance& instance, event::InstanceSourceModeChanged change) {
                           publish(instance, std::move(change));
                         }}),
      ports_(config_.ports.range),
      keys_(
          parts.context, store_, config_, [this] { streams_.recheck(); }, parts.key_clock),
      health_(parts.context, {.ask = [this](const ForwardId& id, const Endpoint& guest,
                                            SynProbe& out) { return ask_guest(id, guest, out); },
                              .established =
                                  [this](const ForwardId& id) {
                                    const auto stats = dataplane_.forward_stats(id);
                                    return stats ? stats->connections_established : 0;
                                  },
                              .on_change = [this](const ForwardId& id) { look_at_forward(id); }}),
      expiries_(
          parts.context, [this] { return keys_.ring().now(); },
          [this](const ForwardId& id) { on_expired(id); }),
      unsaved_(parts.context, store_, registry_,
               {.before_save = [this](const std::string& id,
                                      UnsavedSessions::Entry& entry) { report_end(id, entry); },
                .on_saved = [this](const std::string& id,
                                   const UnsavedSessions::Entry& saved) { on_saved(id, saved); }}),
      usage_(parts.context, store_, dataplane_.meters()),
      remains_(parts.context, dataplane_,
               [this](const Uuid& session_id) { source_paths_.remove(session_id); }) {
  watch_.set_callbacks(
      {.on_armed = [this](const std::string& id, const TapIdentity& tap) { on_armed(id, tap); },
       .on_idle_tap = [this](const std::string& id, const TapIdentity& tap) { on_idle_tap(id, tap); },
       .on_renamed = [this](const std::string& id, const std::string& name) { on_tap_renamed(id, name); },
       .on_device = [this](const std::string& id) { on_device(id); },
       .on_end = [this](const std::string& id, SessionEnd why) { end_session(id, why); }});
}

Control::~Control() {
  watch_.set_callbacks({});
}

void Control::retry() {
  ports_.end_rests(PortAllocator::Clock::now());
  store_.look_after_files();
  log_store();
  look_at_addresses();
  unsaved_.save();
  expiries_.look();
  if (!failures_.empty() && !shutting_down_) retry_failed_forwards();
  const std::size_t unseen = watch_.processes_unseen();
  if (std::exchange(processes_unseen_, unseen) == 0 && unseen != 0) {
    spdlog::warn(
        "the kernel cannot report the exit of {} VMM processes; polling every 100 ms: raise the limit of "
        "descriptors, allow pidfd_open(2), and let the daemon see /proc",
        unseen);
  }
  source_paths_.maintain();
  watch_.look_at_names();
  keys_.look_at_ends();
  keys_.save_uses();
  usage_.save();
}

/// An address may leave an interface under a listener that is bound to it, and the listener does not notice.
void Control::look_at_addresses() {
  std::vector<IpAddress> lost = find_lost_addresses_(config_.node.public_addresses);
  if (lost == lost_addresses_) return;
  lost_addresses_ = std::move(lost);
  if (lost_addresses_.empty()) {
    spdlog::info("the node has all of its public addresses again");
  } else {
    spdlog::error("{}: forwards are not reached there", lost_text());
  }
}

void Control::log_store() {
  for (const auto& [is_error, text] : store_.take_notices()) {
    spdlog::log(is_error ? spdlog::level::err : spdlog::level::warn, "{}", text);
  }
}

Change<NewKey> Control::create_key(KeySpec spec, Principal caller) {
  const auto change = co_await begin_change();
  if (!change) co_return change.error();
  const auto keys = co_await locks_.own(std::string(kKeysLock));
  co_return co_await keys_.create(std::move(spec), std::move(caller));
}

Change<KeyStatus> Control::change_key(Uuid id, ApiKeyChange change, Principal caller) {
  const auto begun = co_await begin_change();
  if (!begun) co_return begun.error();
  const auto keys = co_await locks_.own(std::string(kKeysLock));
  co_return co_await keys_.change(id, std::move(change), std::move(caller));  // it cannot end with this
}

Change<NewKey> Control::rotate_key(Uuid id, std::chrono::seconds overlap, Principal caller) {
  const auto change = co_await begin_change();
  if (!change) co_return change.error();
  const auto keys = co_await locks_.own(std::string(kKeysLock));
  auto rotated = co_await keys_.rotate(id, overlap, std::move(caller));
  if (rotated) streams_.recheck();
  co_return rotated;
}

Change<void> Control::delete_key(Uuid id, Principal caller) {
  const auto change = co_await begin_change();
  if (!change) co_return change.error();
  const auto keys = co_await locks_.own(std::string(kKeysLock));
  auto removed = co_await keys_.remove(id, std::move(caller));
  if (removed) streams_.recheck();
  co_return removed;
}

void Control::set_admin_key(std::string_view secret) {
  if (keys_.set_admin_key(secret)) streams_.recheck();
}

void Control::set_fleet_keys(std::map<Uuid, ApiKey> keys) {
  keys_.set_shared(std::move(keys));
  streams_.recheck();
}

void Control::set_fleet_profiles(Profiles profiles) {
  fleet_profiles_ = std::move(profiles);
  apply_config();
}

bool Control::is_guest(const IpAddress& address, std::int32_t link) const {
  if (is_guest_address(address, config_.guests.networks)) return true;
  std::array<char, IF_NAMESIZE> name{};
  if (link == 0 || address.is_loopback() ||
      ::if_indextoname(static_cast<unsigned>(link), name.data()) == nullptr) {
    return false;
  }
  return registry_.has_tap(link, name.data());
}

void Control::report_refused(const CloseRecord& record) {
  refused_clients_.explain(record);
  health_.note(record);
  const Forward* forward = registry_.find_forward(record.forward->route.id);
  // Records come a little late: it may be another owner's by now.
  if (forward == nullptr || record.is_former_owners()) return;
  if (!refused_clients_.take_event(forward->instance_id)) return;
  publish(*registry_.find_instance(forward->instance_id),
          event::ConnectionRefused{
              .forward = event::of(*forward), .client = to_endpoint(record.client), .cause = record.cause});
}

void Control::publish(const Instance& instance, event::Kind kind) {
  Event event{.time = now(),
              .instance_id = instance.id,
              .session_id = instance.session_id,
              .owner = instance.owner,
              .kind = std::move(kind)};
  std::visit(
      [&]<class Kind>(const Kind& of) {
        if constexpr (Kind::kCarries == event::Carries::kForward) {
          const Forward* forward = registry_.find_forward(of.forward.id);
          if (forward != nullptr) event.forward = std::make_shared<const ForwardStatus>(status_of(*forward));
        } else if constexpr (Kind::kCarries == event::Carries::kInstance) {
          event.instance = std::make_shared<const InstanceStatus>(status_of(instance));
        }
      },
      event.kind);
  events_.publish(std::move(event));
}

/// What every change does first.
Change<ChangeLocks::Held> Control::begin_change() {
  if (auto answers = store_.check_answers(); !answers) co_return answers.error();
  co_return co_await locks_.share(std::string(kNodeLock));
}

Change<std::shared_ptr<StoreBackup>> Control::back_up() {
  const auto change = co_await begin_change();
  if (!change) co_return change.error();
  co_return co_await store_.back_up();
}

boost::asio::awaitable<ChangeLocks::Held> Control::pause_changes() {
  return locks_.own(std::string(kNodeLock));
}

Result<void> Control::check_running() const {
  if (!shutting_down_) return {};
  return Error{ErrorCode::kDraining, "This node's daemon is going down; try again in a moment."};
}

Result<void> Control::check_profile_is_known(std::string_view name) const {
  if (profiles_.contains(name) || !profiles_pending_ || !profiles_pending_()) return {};
  return Error{
      ErrorCode::kStoreUnavailable,
      fmt::format("Profile {} is not known here, and this node has not read its fleet's profiles from "
                  "etcd since it started; try again in a moment.",
                  in_quotes(name)),
      "profile"};
}

/// `what` is new.
Result<void> Control::check_takes(std::string_view what) const {
  if (!is_draining()) return {};
  return Error{
      .code = ErrorCode::kDraining,
      .detail = fmt::format("This node is being drained and takes no new {}; register the instance on "
                            "another node.",
                            what),
      .retry_after = kRetryAfterDrain};
}

/// What was asked of the store before is published before this returns: whoever drains the node sees all that
/// it still took.
Change<NodeDrain> Control::set_draining(bool draining, Actor by) {
  const auto change = co_await begin_change();
  if (!change) co_return change.error();
  const auto lock = co_await locks_.own(std::string(kDrainLock));
  if (auto running = check_running(); !running) co_return running.error();
  const NodeDrain before = drain_;
  NodeDrain wanted;
  if (draining) wanted.since = before.since.value_or(now());
  if (draining) drain_ = wanted;
  const auto stored =
      co_await store_.put_drain(wanted);  // a repeated one, too: the disk may have another one
  drain_ = stored ? wanted : before;
  if (!stored) co_return stored.error();
  if (draining == before.since.has_value()) co_return wanted;
  const LogFields fields = by.fields();
  spdlog::info(
      "the node {}, by {}",
      draining ? "is being drained: it takes no new sessions and forwards" : "is not drained any more",
      by.name);
  Event event{.time = now(), .instance_id = {}, .owner = {}, .kind = event::NodeUndrained()};
  if (draining) event.kind = event::NodeDraining();
  events_.publish(std::move(event));
  co_return wanted;
}

/// In the order in which a request would meet them.
std::vector<Error> Control::find_what_is_missing() {
  std::vector<Error> missing;
  if (auto running = check_running(); !running) missing.push_back(running.error());
  if (auto takes = check_takes("sessions and port forwards"); !takes) missing.push_back(takes.error());
  if (ports_.free() == 0 && ports_.resting() == 0) {
    missing.push_back(
        {.code = ErrorCode::kPortPoolExhausted,
         .detail = "Every host port of the range is in use; delete forwards, or widen ports.range."});
  }
  if (auto bindable = dataplane_.check_bind(); !bindable) missing.push_back(bindable.error());
  if (auto writable = store_.writable(); !writable) missing.push_back(writable.error());
  return missing;
}

std::vector<Error> Control::check_ready() {
  std::vector<Error> missing = find_what_is_missing();
  std::vector<ErrorCode> codes;
  codes.reserve(missing.size());
  for (const Error& each : missing) codes.push_back(each.code);
  if (codes == not_ready_for_) return missing;
  not_ready_for_ = std::move(codes);
  if (missing.empty()) spdlog::info("ready again for new forwards");
  for (const Error& each : missing) spdlog::warn("not ready for new forwards: {}", each.detail);
  return missing;
}

}  // namespace portway
