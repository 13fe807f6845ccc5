#include "control/control.h"

#include <fmt/format.h>
#include <net/if.h>
#include <spdlog/spdlog.h>

#include <array>
#include <utility>

namespace portway {

Control::Control(const Config& config, const Parts& parts)
    : config_(config),
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
      keys_(store_, config_),
      unsaved_(parts.context, store_, registry_,
               {.before_save = [this](const std::string& id,
                                      UnsavedSessions::Entry& entry) { report_end(id, entry); },
                .on_saved = [this](const std::string& id,
                                   const UnsavedSessions::Entry& saved) { on_saved(id, saved); }}),
      remains_(parts.context, dataplane_,
               [this](const Uuid& session_id) { source_paths_.remove(session_id); }) {
  store_.set_meanwhile({.descriptor = watch_.descriptor(), .dispatch = [this] { watch_.dispatch(); }});
  watch_.set_callbacks(
      {.on_armed = [this](const std::string& id, const TapIdentity& tap) { on_armed(id, tap); },
       .on_idle_tap = [this](const std::string& id, const TapIdentity& tap) { on_idle_tap(id, tap); },
       .on_renamed = [this](const std::string& id, const std::string& name) { on_tap_renamed(id, name); },
       .on_device = [this](const std::string& id) { on_device(id); },
       .on_end = [this](const std::string& id, SessionEnd why) { end_session(id, why); }});
}

Control::~Control() {
  store_.set_meanwhile({});
  watch_.set_callbacks({});
}

void Control::retry() {
  store_.look_after_files();
  log_store();
  look_at_addresses();
  unsaved_.save();
  if (!failures_.empty() && !draining_) retry_failed_forwards();
  const std::size_t unseen = watch_.processes_unseen();
  if (std::exchange(processes_unseen_, unseen) == 0 && unseen != 0) {
    spdlog::warn(
        "the kernel cannot report the exit of {} VMM processes; polling every 100 ms: raise the limit of "
        "descriptors, allow pidfd_open(2), and let the daemon see /proc",
        unseen);
  }
  source_paths_.maintain();
  watch_.look_at_names();
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

Result<NewKey> Control::create_key(Role role, std::string owner, const Principal& caller) {
  return keys_.create(role, std::move(owner), caller);
}

Result<void> Control::delete_key(const Uuid& id, const Principal& caller) {
  auto removed = keys_.remove(id, caller);
  if (removed) streams_.recheck();
  return removed;
}

void Control::set_admin_key(std::string_view secret) {
  if (keys_.set_admin_key(secret)) streams_.recheck();
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
  const Forward* forward = registry_.find_forward(record.forward->route.id);
  // Records come a little late: it may be another owner's by now.
  if (forward == nullptr || record.is_former_owners()) return;
  if (!refused_clients_.take_event(forward->instance_id)) return;
  publish(*registry_.find_instance(forward->instance_id),
          event::ConnectionRefused{
              .forward = event::of(*forward), .client = to_endpoint(record.client), .cause = record.cause});
}

void Control::publish(const Instance& instance, event::Kind kind) {
  events_.publish({.time = now(),
                   .instance_id = instance.id,
                   .session_id = instance.session_id,
                   .owner = instance.owner,
                   .kind = std::move(kind)});
}

Result<void> Control::check_running() const {
  if (!draining_) return {};
  return Error{ErrorCode::kDraining, "This node's daemon is going down; try again in a moment."};
}

Result<void> Control::find_what_is_missing() {
  if (auto running = check_running(); !running) return running;
  if (ports_.free() == 0) {
    return Error{.code = ErrorCode::kPortPoolExhausted,
                 .detail = "Every host port of the range is in use; delete forwards, or widen ports.range."};
  }
  if (auto bindable = dataplane_.check_bind(); !bindable) return bindable;
  return store_.writable();
}

Result<void> Control::check_ready() {
  auto ready = find_what_is_missing();
  const bool is_ready = static_cast<bool>(ready);
  if (std::exchange(was_ready_, is_ready) != is_ready) {
    if (ready) {
      spdlog::info("ready again for new forwards");
    } else {
      spdlog::warn("not ready for new forwards: {}", ready.error().detail);
    }
  }
  return ready;
}

}  // namespace portway
