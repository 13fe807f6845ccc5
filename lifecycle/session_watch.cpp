#include "lifecycle/session_watch.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

namespace portway {
namespace {

constexpr auto kTapStateNames = std::to_array<std::string_view>({"missing", "no_carrier", "up"});
static_assert(kTapStateNames.size() == static_cast<std::size_t>(TapState::kUp) + 1);

// Keys of what epoll(7) reports; processes have the keys after these.
constexpr std::uint64_t kLinks = 0;
constexpr std::uint64_t kTimer = 1;

constexpr std::size_t kEventsMax = 256;    // in one dispatch()
constexpr long kAskAgainNs = 100'000'000;  // for what the kernel did not report
constexpr std::size_t kAskedInATick = 64;  // processes, 20 us each; with more, each is polled less often

TapIdentity identity_of(const Link& link) {
  return {.index = link.index, .carrier_downs = link.carrier_downs};
}

/// Works even if nothing was reported: if the counts differ, it lost its carrier in between.
bool lost_carrier_since(const TapIdentity& then, const Link& now) {
  return then.carrier_downs && now.carrier_downs && *then.carrier_downs != *now.carrier_downs;
}

Error refused(int error) {
  return {.code = ErrorCode::kResourceExhausted,
          .detail = fmt::format("epoll: {}; without it the end of a guest would go unnoticed",
                                std::strerror(error))};
}

}  // namespace

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
  watch->timer_.reset(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  Fd of_loop(::fcntl(watch->events_.get(), F_DUPFD_CLOEXEC, 0));
  if (!of_loop || !watch->add_to_events(watch->links_->descriptor(), kLinks) ||
      !watch->add_to_events(watch->timer_.get(), kTimer)) {
    return refused(errno);
  }
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
    } else if (key == kTimer) {
      on_tick();
    } else if (const auto instance = by_key_.find(key); instance != by_key_.end()) {
      end(std::string(instance->second), SessionEnd::kVmmExited);
    }
  }
  set_timer();
}

void SessionWatch::dispatch_within(std::chrono::milliseconds timeout) {
  pollfd due{.fd = events_.get(), .events = POLLIN, .revents = 0};
  ::poll(&due, 1, static_cast<int>(timeout.count()));
  dispatch();
}

void SessionWatch::refresh(const std::string& instance_id) {
  dispatch();
  const auto session = sessions_.find(instance_id);
  if (session == sessions_.end()) return;
  links_->refresh(std::string(session->second.name));  // a copy: the session may end
}

/// Nobody else reports it. Not at once: whoever ends a session may be about to begin the next one on the
/// same interface, or in the middle of other changes.
void SessionWatch::free_interface(const Session& session) {
  if (session.index() == 0) return;
  freed_.insert(session.index());
  timer_runs_ = true;
  const itimerspec soon{.it_interval = {.tv_sec = 0, .tv_nsec = kAskAgainNs},
                        .it_value = {.tv_sec = 0, .tv_nsec = 1}};
  ::timerfd_settime(timer_.get(), 0, &soon, nullptr);
}

void SessionWatch::look_at_waiting() {
  std::vector<std::string> instances;  // a callback may change the sessions
  for (const int index : std::exchange(freed_, {})) {
    const auto link = links_->find(index);
    if (!link || !by_name_.contains(link->name)) continue;
    // The carrier may have gone with the machine, and the message about it may be late.
    links_->refresh(link->name);
    const auto [first, last] = by_name_.equal_range(link->name);
    for (auto waiting = first; waiting != last; ++waiting) instances.push_back(waiting->second);
  }
  for (const std::string& id : instances) look_again(id);
}

void SessionWatch::set_timer() {
  const bool wanted = !unseen_.empty() || !freed_.empty() || links_->unsettled();
  if (std::exchange(timer_runs_, wanted) == wanted) return;
  const timespec every{.tv_sec = 0, .tv_nsec = wanted ? kAskAgainNs : 0};
  const itimerspec timer{.it_interval = every, .it_value = every};
  ::timerfd_settime(timer_.get(), 0, &timer, nullptr);
}

void SessionWatch::on_tick() {
  std::uint64_t ticks = 0;
  (void)::read(timer_.get(), &ticks, sizeof ticks);
  look_at_waiting();
  if (links_->unsettled()) links_->ask_again();
  for (std::size_t i = std::min(unseen_.size(), kAskedInATick); i > 0 && !unseen_.empty(); --i) {
    auto next = unseen_.upper_bound(last_asked_);
    if (next == unseen_.end()) next = unseen_.begin();
    last_asked_ = *next;
    look_at_process(last_asked_);
  }
}

void SessionWatch::look_at_process(const std::string& instance_id) {
  const ProcessState state = sessions_.at(instance_id).process->look();
  if (state == ProcessState::kEnded) return end(instance_id, SessionEnd::kVmmExited);
  wait_for_process(instance_id, state);
}

void SessionWatch::wait_for_process(const std::string& instance_id, ProcessState state) {
  Session& session = sessions_.at(instance_id);
  if (!session.in_events && session.process->descriptor() >= 0) {
    session.in_events = add_to_events(session.process->descriptor(), session.key);
  }
  if (state == ProcessState::kRuns && session.in_events) {
    unseen_.erase(instance_id);
  } else {
    unseen_.insert(instance_id);
  }
}

Result<void> SessionWatch::identify(Instance& instance) {
  links_->refresh(instance.tap);
  const TapLook look = look_at_tap(instance.id, instance.tap, {}, {});
  instance.tap_index = look.tap.index;
  instance.tap_carrier_downs = look.tap.carrier_downs;
  instance.idle_tap = look.idle_tap;
  return identify_process(instance);
}

Result<void> SessionWatch::identify_process(Instance& instance) {
  instance.vmm_started = 0;
  if (!instance.vmm_pid) return {};
  ProcessWatch process(*instance.vmm_pid, 0);
  if (process.look() == ProcessState::kEnded) {
    return Error{.code = ErrorCode::kInvalidRequest,
                 .detail = fmt::format("There is no process {}; give the pid of the running virtual machine "
                                       "monitor, or leave vmm_pid out.",
                                       *instance.vmm_pid),
                 .field = "vmm_pid"};
  }
  instance.vmm_started = process.started();
  if (instance.vmm_started != 0) return {};
  return Error{
      .code = ErrorCode::kResourceExhausted,
      .detail = fmt::format("It cannot be read now when process {} began (/proc/{}/stat): raise the "
                            "daemon's limit of descriptors and let it see /proc, or leave vmm_pid out.",
                            *instance.vmm_pid, *instance.vmm_pid),
      .field = "vmm_pid"};
}

std::optional<SessionEnd> SessionWatch::watch(Instance& instance) {
  forget(instance.id);
  // It is unknown whether it had a machine meanwhile.
  const bool waited_in_vain = instance.tap_index == 0 && instance.idle_tap.index != 0;
  if (waited_in_vain && !links_->find(instance.idle_tap.index)) return SessionEnd::kTapDeleted;
  const TapLook look = look_at_tap(instance.id, instance.tap,
                                   {.index = instance.tap_index, .carrier_downs = instance.tap_carrier_downs},
                                   instance.idle_tap);
  if (look.over) return look.over;
  Session session{.name = instance.tap,
                  .device = instance.device == kByRoute ? "" : instance.device,
                  .tap = look.tap,
                  .idle_tap = look.idle_tap};
  if (session.armed()) session.name = links_->find(session.tap.index)->name;
  const ProcessState process = start_process(session, instance);
  if (process == ProcessState::kEnded) return SessionEnd::kVmmExited;
  if (session.process) instance.vmm_started = session.process->started();
  instance.tap_index = session.tap.index;
  instance.tap_carrier_downs = session.tap.carrier_downs;
  instance.idle_tap = session.idle_tap;
  add_to_indices(instance.id, session);
  sessions_.insert_or_assign(instance.id, std::move(session));
  if (instance.vmm_pid) wait_for_process(instance.id, process);
  set_timer();
  return std::nullopt;
}

ProcessState SessionWatch::start_process(Session& session, const Instance& instance) {
  session.process.reset();
  session.in_events = false;
  session.key = ++last_key_;
  if (!instance.vmm_pid) return ProcessState::kUnseen;
  session.process.emplace(*instance.vmm_pid, instance.vmm_started);
  return session.process->look();
}

std::optional<SessionEnd> SessionWatch::set_process(const Instance& instance) {
  const auto found = sessions_.find(instance.id);
  if (found == sessions_.end()) return std::nullopt;
  Session& session = found->second;
  remove_from_indices(instance.id, session);
  const ProcessState process = start_process(session, instance);
  add_to_indices(instance.id, session);
  if (process == ProcessState::kEnded) return SessionEnd::kVmmExited;
  if (instance.vmm_pid) wait_for_process(instance.id, process);
  set_timer();
  return std::nullopt;
}

void SessionWatch::forget(std::string_view instance_id) {
  const auto session = sessions_.extract(std::string(instance_id));
  if (session.empty()) return;
  remove_from_indices(session.key(), session.mapped());
  free_interface(session.mapped());
}

void SessionWatch::end(const std::string& instance_id, SessionEnd why) {
  // The session may own the string of `instance_id`: keep it alive until the end.
  const auto session = sessions_.extract(instance_id);
  if (session.empty()) return;
  remove_from_indices(session.key(), session.mapped());
  free_interface(session.mapped());
  callbacks_.on_end(session.key(), why);
}

void SessionWatch::add_to_indices(const std::string& instance_id, const Session& session) {
  if (session.index() != 0) by_index_.insert_or_assign(session.index(), instance_id);
  if (!session.armed()) by_name_.emplace(session.name, instance_id);
  if (session.process) by_key_.emplace(session.key, instance_id);
  if (!session.device.empty()) devices_.add(session.device, instance_id, index_of(session.device));
}

void SessionWatch::remove_from_indices(const std::string& instance_id, const Session& session) {
  const auto is_this = [&](const auto& entry) { return entry.second == instance_id; };
  if (const auto own = by_index_.find(session.index()); own != by_index_.end() && is_this(*own)) {
    by_index_.erase(own);
  }
  const auto [first, last] = by_name_.equal_range(session.name);
  if (const auto found = std::find_if(first, last, is_this); found != last) by_name_.erase(found);
  by_key_.erase(session.key);
  if (!session.device.empty()) devices_.remove(session.device, instance_id);
  unseen_.erase(instance_id);
}

// --- Taps.

SessionWatch::TapLook SessionWatch::look_at_tap(const std::string& instance_id, std::string_view tap_name,
                                                const TapIdentity& tap, const TapIdentity& idle_tap) const {
  if (tap.index != 0) {
    const auto link = links_->find(tap.index);
    if (!link || is_others(tap.index, instance_id)) return {.over = SessionEnd::kTapDeleted};
    if (!link->carrier || lost_carrier_since(tap, *link)) return {.over = SessionEnd::kCarrierLost};
    return {.tap = identity_of(*link)};
  }
  if (const auto link = links_->find(idle_tap.index); link && lost_carrier_since(idle_tap, *link)) {
    return {.over = SessionEnd::kCarrierLost};
  }
  const auto link = links_->find(tap_name);
  if (!link || !link->up || is_others(link->index, instance_id)) return {};
  if (link->carrier) return {.tap = identity_of(*link)};
  return {.idle_tap = identity_of(*link)};
}

bool SessionWatch::is_others(int index, const std::string& instance_id) const {
  const auto found = by_index_.find(index);
  return found != by_index_.end() && found->second != instance_id;
}

void SessionWatch::on_link(const Link& link, bool) {
  for (const std::string& id :
       devices_.on_link(link.index, link.name, [this](const std::string& name) { return index_of(name); })) {
    callbacks_.on_device(id);
  }
  // First the session that has it, then those that wait for its name: the first may release it for the
  // others. All are found before any is reported: a callback may change the sessions.
  std::vector<std::string> instances;
  if (const auto own = by_index_.find(link.index); own != by_index_.end()) instances.push_back(own->second);
  const auto [first, last] = by_name_.equal_range(link.name);
  for (auto waiting = first; waiting != last; ++waiting) instances.push_back(waiting->second);
  for (const std::string& id : instances) look_again(id);
}

int SessionWatch::index_of(const std::string& name) const {
  const auto link = links_->find(name);
  return link ? link->index : 0;
}

void SessionWatch::look_again(const std::string& instance_id) {
  const auto found = sessions_.find(instance_id);
  if (found == sessions_.end()) return;
  Session& session = found->second;
  const TapLook look = look_at_tap(instance_id, session.name, session.tap, session.idle_tap);
  if (look.over) return end(instance_id, *look.over);
  if (session.armed()) {
    const std::string name = links_->find(session.tap.index)->name;
    if (std::exchange(session.name, name) != name) callbacks_.on_renamed(instance_id, name);
    return;
  }
  if (look.tap == session.tap && look.idle_tap == session.idle_tap) return;
  remove_from_indices(instance_id, session);
  session.tap = look.tap;
  session.idle_tap = look.idle_tap;
  add_to_indices(instance_id, session);
  if (session.armed()) {
    callbacks_.on_armed(instance_id, session.tap);
  } else {
    callbacks_.on_idle_tap(instance_id, session.idle_tap);
  }
}

bool SessionWatch::stays_over(const Instance& known) const {
  if (known.vmm_pid && known.vmm_started != 0 &&
      ProcessWatch(*known.vmm_pid, known.vmm_started).look() == ProcessState::kEnded) {
    return true;
  }
  const TapIdentity tap =
      known.tap_index != 0 ? TapIdentity{.index = known.tap_index, .carrier_downs = known.tap_carrier_downs}
                           : known.idle_tap;
  if (tap.index == 0) return false;
  const auto link = links_->find(tap.index);
  return !link || lost_carrier_since(tap, *link);
}

std::int32_t SessionWatch::interface_of(const Instance& instance) const {
  if (instance.tap_index != 0) return instance.tap_index;
  const auto link = links_->find(instance.tap);
  return link ? link->index : 0;
}

TapState SessionWatch::tap_state(const Instance& instance) const {
  const auto link = links_->find(interface_of(instance));
  if (!link || is_others(link->index, instance.id)) return TapState::kMissing;
  return link->carrier ? TapState::kUp : TapState::kNoCarrier;
}

std::int32_t SessionWatch::device_index(const Instance& instance) const {
  return index_of(instance.device);
}

std::string SessionWatch::tap_fault(const Instance& instance) const {
  const auto tap = links_->find(interface_of(instance));
  if (tap && tap->loopback)
    return fmt::format("{} is the node's loopback: give the machine a tap.", tap->name);
  if (instance.device == kByRoute) return "";
  const auto link = instance.device.empty() ? tap : links_->find(instance.device);
  if (!link) {
    if (instance.device.empty()) return "";
    return fmt::format(
        "There is no interface {}, through which the guest is reached: create it, or register the "
        "instance with another device.",
        instance.device);
  }
  // Packets that come in by a VRF's device still reach the node.
  if (link->master == 0 || link->master_kind == "vrf") return "";
  const auto master = links_->find(link->master);
  const std::string whole = fmt::format("{}{}{}", link->master_kind, link->master_kind.empty() ? "" : " ",
                                        master ? master->name : std::to_string(link->master));
  return fmt::format(
      "{0} is a port of {1}, which takes all that comes in by it: clients would time out. {2}ake it out (ip "
      "link set {0} nomaster) and give it an address in the guest's network.",
      link->name, whole,
      link->master_kind == "bridge" && master
          ? fmt::format("Register the instance with the device {}, or t", master->name)
          : "T");
}

}  // namespace portway
