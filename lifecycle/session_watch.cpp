#include "lifecycle/session_watch.h"

#include <array>
#include <fstream>
#include <utility>
#include <vector>

namespace portway {
namespace {

constexpr auto kTapStateNames = std::to_array<std::string_view>({"missing", "no_carrier", "up"});
static_assert(kTapStateNames.size() == static_cast<std::size_t>(TapState::kUp) + 1);

}  // namespace

std::string kernel_boot_id() {
  std::string id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> id;
  return id;
}

std::string_view to_string(TapState state) {
  return kTapStateNames[static_cast<std::size_t>(state)];
}

Result<std::unique_ptr<SessionWatch>> SessionWatch::start(boost::asio::io_context& context) {
  std::unique_ptr<SessionWatch> watch(new SessionWatch(context));
  auto links = LinkMonitor::start(
      context, [self = watch.get()](const Link& link, bool gone) { self->on_link(link, gone); });
  if (!links) return links.error();
  watch->links_ = std::move(*links);
  return watch;
}

std::optional<SessionEnd> SessionWatch::watch(Instance& instance) {
  forget(instance.id);
  if (const auto over = over_because_of_tap(instance)) return over;
  Session session{.tap = instance.tap, .tap_index = instance.tap_index, .process = nullptr};
  if (instance.vmm_pid) {
    auto process = ProcessWatch::start(context_, *instance.vmm_pid,
                                       [this, id = instance.id] { end(id, SessionEnd::kVmmExited); });
    // Asked after the pidfd is open: then it is that very process, or it is gone.
    const auto started = process_start_time(*instance.vmm_pid);
    if (!process || !started || (instance.vmm_started != 0 && instance.vmm_started != *started)) {
      return SessionEnd::kVmmExited;
    }
    instance.vmm_started = *started;
    session.process = std::move(*process);
  }
  sessions_.insert_or_assign(instance.id, std::move(session));
  return std::nullopt;
}

std::optional<SessionEnd> SessionWatch::over_because_of_tap(Instance& instance) const {
  if (instance.tap_index == 0) {
    const auto link = links_->find(instance.tap);
    if (link && link->carrier) instance.tap_index = link->index;
    return std::nullopt;
  }
  const auto link = links_->find(instance.tap_index);
  if (!link || link->name != instance.tap) return SessionEnd::kTapDeleted;
  if (!link->carrier) return SessionEnd::kCarrierLost;
  return std::nullopt;
}

void SessionWatch::forget(std::string_view instance_id) {
  sessions_.erase(std::string(instance_id));
}

TapState SessionWatch::tap_state(const Instance& instance) const {
  const auto link = links_->find(instance.tap);
  if (!link) return TapState::kMissing;
  return link->carrier ? TapState::kUp : TapState::kNoCarrier;
}

void SessionWatch::on_link(const Link& link, bool gone) {
  // Found first and told later: what is told may change the sessions.
  std::vector<std::string> lost;
  std::vector<std::string> armed;
  for (auto& [id, session] : sessions_) {
    if (session.tap_index == link.index) {
      // A renamed tap is no longer the one that upstream sockets are bound to by name.
      if (gone || !link.carrier || link.name != session.tap) lost.push_back(id);
    } else if (session.tap_index == 0 && session.tap == link.name && link.carrier && !gone) {
      session.tap_index = link.index;
      armed.push_back(id);
    }
  }
  for (const std::string& id : armed) callbacks_.on_armed(id, link.index);
  const bool deleted = gone || (!lost.empty() && !links_->find(link.index));
  for (const std::string& id : lost) {
    end(id, deleted || link.carrier ? SessionEnd::kTapDeleted : SessionEnd::kCarrierLost);
  }
}

void SessionWatch::end(const std::string& instance_id, SessionEnd why) {
  // The session may own what `instance_id` refers to: it lives until here.
  const auto session = sessions_.extract(instance_id);
  if (!session.empty()) callbacks_.on_end(session.key(), why);
}

}  // namespace portway
