#include "lifecycle/session_watch.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>
#include <vector>

namespace portway {
namespace {

constexpr auto kTapStateNames = std::to_array<std::string_view>({"missing", "no_carrier", "up"});
static_assert(kTapStateNames.size() == static_cast<std::size_t>(TapState::kUp) + 1);

constexpr std::uint64_t kLinks = 0;      // the link monitor's key
constexpr std::size_t kEventsMax = 256;  // in one dispatch()

Error refused(int error) {
  return {.code = ErrorCode::kResourceExhausted,
          .detail = fmt::format("epoll: {}; without it the end of a guest would go unnoticed",
                                std::strerror(error))};
}

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
  auto links =
      LinkMonitor::start([self = watch.get()](const Link& link, bool gone) { self->on_link(link, gone); });
  if (!links) return links.error();
  watch->links_ = std::move(*links);
  watch->events_.reset(::epoll_create1(EPOLL_CLOEXEC));
  Fd of_loop(::fcntl(watch->events_.get(), F_DUPFD_CLOEXEC, 0));
  if (!of_loop || !watch->add_to_events(watch->links_->descriptor(), kLinks)) return refused(errno);
  watch->loop_descriptor_.assign(of_loop.release());
  watch->wait();
  return watch;
}

void SessionWatch::wait() {
  loop_descriptor_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                              [this](boost::system::error_code error) {
                                if (error) return;  // destroyed
                                dispatch();
                                wait();
                              });
}

bool SessionWatch::add_to_events(int descriptor, std::uint64_t key) {
  epoll_event event{.events = EPOLLIN, .data = {.u64 = key}};
  return ::epoll_ctl(events_.get(), EPOLL_CTL_ADD, descriptor, &event) == 0;
}

void SessionWatch::dispatch() {
  std::array<epoll_event, kEventsMax> events;
  const int count = ::epoll_wait(events_.get(), events.data(), static_cast<int>(events.size()), 0);
  for (int i = 0; i < count; ++i) {
    const std::uint64_t key = events[static_cast<std::size_t>(i)].data.u64;
    if (key == kLinks) {
      links_->read();
    } else if (const auto instance = by_key_.find(key); instance != by_key_.end()) {
      end(std::string(instance->second), SessionEnd::kVmmExited);
    }
  }
}

std::optional<SessionEnd> SessionWatch::watch(Instance& instance) {
  forget(instance.id);
  if (const auto over = over_because_of_tap(instance)) return over;
  Session session{.tap = instance.tap, .tap_index = instance.tap_index};
  if (instance.vmm_pid) {
    auto process = ProcessWatch::start(*instance.vmm_pid);
    // Asked after the pidfd is open: then it is that very process, or it is gone.
    const auto started = process_start_time(*instance.vmm_pid);
    if (!process || !started || (instance.vmm_started != 0 && instance.vmm_started != *started) ||
        !add_to_events(process->descriptor(), ++last_key_)) {
      return SessionEnd::kVmmExited;
    }
    instance.vmm_started = *started;
    session.key = last_key_;
    session.process = std::move(*process);
    by_key_.emplace(session.key, instance.id);
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
  const auto session = sessions_.extract(std::string(instance_id));
  if (!session.empty()) by_key_.erase(session.mapped().key);
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
  const auto session = sessions_.extract(instance_id);
  if (session.empty()) return;
  by_key_.erase(session.mapped().key);
  callbacks_.on_end(session.key(), why);
}

}  // namespace portway
