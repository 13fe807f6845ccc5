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

constexpr auto kTapStateNames = std::to_array<std::string_view>({"missing", "no_carrier", "up", "none"});
static_assert(kTapStateNames.size() == static_cast<std::size_t>(TapState::kNone) + 1);

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

const std::vector<std::string> SessionWatch::kNoDirectories;

Result<std::unique_ptr<SessionWatch>> SessionWatch::start(boost::asio::io_context& context,
                                                          const std::vector<std::string>& netns_directories) {
  std::unique_ptr<SessionWatch> watch(new SessionWatch(context, netns_directories));
  auto links =
      LinkMonitor::start([self = watch.get()](const Link& link, bool gone) { self->on_link(link, gone); });
  if (!links) return links.error();
  watch->links_ = std::move(*links);
  watch->spaces_.emplace(*watch->links_);
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

bool SessionWatch::add_to_events(int descriptor, std::uint64_t key, std::uint32_t events) {
  epoll_event event{.events = events, .data = {.u64 = key}};
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
  look_at_mounts();
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
  if (session->second.has_lost_its_name()) return end(instance_id, SessionEnd::kNetnsGone);
  // A copy: the session may end.
  const Name tap{session->second.tap_place.id(), session->second.name};
  if (!tap.second.empty()) links_->refresh(tap.first, tap.second);
}

/// Nobody else reports it. Not at once: whoever ends a session may be about to begin the next one on the
/// same interface, or in the middle of other changes.
void SessionWatch::free_interface(const Session& session) {
  if (session.link().index == 0) return;
  freed_.insert(session.link());
  timer_runs_ = true;
  const itimerspec soon{.it_interval = {.tv_sec = 0, .tv_nsec = kAskAgainNs},
                        .it_value = {.tv_sec = 0, .tv_nsec = 1}};
  ::timerfd_settime(timer_.get(), 0, &soon, nullptr);
}

void SessionWatch::look_at_waiting() {
  std::vector<std::string> instances;  // a callback may change the sessions
  for (const LinkId& freed : std::exchange(freed_, {})) {
    const auto link = links_->find(freed.netns, freed.index);
    if (!link || !by_name_.contains({freed.netns, link->name})) continue;
    // The carrier may have gone with the machine, and the message about it may be late.
    links_->refresh(freed.netns, link->name);
    const auto [first, last] = by_name_.equal_range({freed.netns, link->name});
    for (auto waiting = first; waiting != last; ++waiting) instances.push_back(waiting->second);
  }
  for (const std::string& id : instances) look_again(id);
}

void SessionWatch::set_timer() {
  const bool wanted = !unseen_.empty() || !unopened_.empty() || !freed_.empty() || links_->unsettled();
  if (std::exchange(timer_runs_, wanted) == wanted) return;
  const timespec every{.tv_sec = 0, .tv_nsec = wanted ? kAskAgainNs : 0};
  const itimerspec timer{.it_interval = every, .it_value = every};
  ::timerfd_settime(timer_.get(), 0, &timer, nullptr);
}

void SessionWatch::on_tick() {
  std::uint64_t ticks = 0;
  [[maybe_unused]] const auto got = ::read(timer_.get(), &ticks, sizeof ticks);
  look_at_waiting();
  open_again();
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

Result<SessionWatch::Namespaces> SessionWatch::identify(Instance& instance) {
  if (auto identified = identify_process(instance); !identified) return identified.error();
  std::optional<ProcessWatch> process;
  if (instance.vmm_pid) process.emplace(*instance.vmm_pid, instance.vmm_started);
  const auto open = [&](std::string_view name, NamespaceIdentity& identity) {
    auto space = open_namespace(name, process ? &*process : nullptr);
    identity = space && *space ? (*space)->netns()->identity() : NamespaceIdentity{};
    return space;
  };
  auto guest = open(instance.netns, instance.netns_identity);
  if (!guest) return guest.error();
  auto tap = open(tap_netns_of(instance), instance.tap_netns_identity);
  if (!tap) {
    Error error = tap.error();
    if (!instance.tap_netns.empty()) error.field = "tap_netns";
    return error;
  }
  const NetnsId netns = *tap ? (*tap)->id() : NetnsId::kNode;
  if (!instance.tap.empty()) links_->refresh(netns, instance.tap);
  const TapLook look = look_at_tap(instance.id, netns, instance.tap, {}, {});
  instance.tap_index = look.tap.index;
  instance.tap_carrier_downs = look.tap.carrier_downs;
  instance.idle_tap = look.idle_tap;
  return Namespaces{.guest = std::move(*guest), .tap = std::move(*tap)};
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
  // Before the earlier session goes, which may hold the last reference to a namespace of this one.
  Session session{
      .name = instance.tap,
      .device = instance.device == kByRoute ? "" : instance.device,
      .guest_place = {.name = instance.netns, .identity = instance.netns_identity},
      .tap_place = {.name = std::string(tap_netns_of(instance)), .identity = instance.tap_netns_identity},
      .tap = {},
      .idle_tap = {}};
  const ProcessState process = start_process(session, instance);
  if (process == ProcessState::kEnded) {
    forget(instance.id);
    return SessionEnd::kVmmExited;
  }
  const auto gone = open_places(session);
  forget(instance.id);
  if (gone) return gone;
  const NetnsId netns = session.tap_place.id();
  // It is unknown whether it had a machine meanwhile.
  const bool waited_in_vain =
      session.tap_place.is_open() && instance.tap_index == 0 && instance.idle_tap.index != 0;
  if (waited_in_vain && !links_->find(netns, instance.idle_tap.index)) return SessionEnd::kTapDeleted;
  const TapLook look = look_at_tap(instance.id, netns, instance.tap,
                                   {.index = instance.tap_index, .carrier_downs = instance.tap_carrier_downs},
                                   instance.idle_tap);
  if (look.over) return look.over;
  session.tap = look.tap;
  session.idle_tap = look.idle_tap;
  if (const auto link = links_->find(netns, session.tap.index); link && session.armed()) {
    session.name = link->name;
  }
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
  const LinkId link = session.link();
  if (link.index != 0) by_link_.insert_or_assign(link, instance_id);
  if (!session.armed() && !session.name.empty())
    by_name_.emplace(Name{link.netns, session.name}, instance_id);
  if (session.process) by_key_.emplace(session.key, instance_id);
  const bool named = session.guest_place.has_path() || session.tap_place.has_path();
  if (named) named_.insert(instance_id);
  if (!session.guest_place.is_open() || !session.tap_place.is_open()) unopened_.insert(instance_id);
  if (const NetnsId netns = session.guest_place.id(); !session.device.empty()) {
    devices_[netns].add(session.device, instance_id, index_of(netns, session.device));
  }
}

void SessionWatch::remove_from_indices(const std::string& instance_id, const Session& session) {
  const auto is_this = [&](const auto& entry) { return entry.second == instance_id; };
  const LinkId link = session.link();
  if (const auto own = by_link_.find(link); own != by_link_.end() && is_this(*own)) by_link_.erase(own);
  const auto [first, last] = by_name_.equal_range({link.netns, session.name});
  if (const auto found = std::find_if(first, last, is_this); found != last) by_name_.erase(found);
  by_key_.erase(session.key);
  named_.erase(instance_id);
  unopened_.erase(instance_id);
  if (!session.device.empty()) {
    const auto devices = devices_.find(session.guest_place.id());
    devices->second.remove(session.device, instance_id);
    if (devices->second.empty()) devices_.erase(devices);
  }
  unseen_.erase(instance_id);
}

// --- Taps.

SessionWatch::TapLook SessionWatch::look_at_tap(const std::string& instance_id, NetnsId netns,
                                                std::string_view tap_name, const TapIdentity& tap,
                                                const TapIdentity& idle_tap) const {
  if (netns == NetnsId::kUnknown) return {.tap = tap, .idle_tap = idle_tap};
  if (tap.index != 0) {
    const auto link = links_->find(netns, tap.index);
    if (!link || is_others({netns, tap.index}, instance_id)) return {.over = SessionEnd::kTapDeleted};
    if (!link->carrier || lost_carrier_since(tap, *link)) return {.over = SessionEnd::kCarrierLost};
    return {.tap = identity_of(*link)};
  }
  if (const auto link = links_->find(netns, idle_tap.index); link && lost_carrier_since(idle_tap, *link)) {
    return {.over = SessionEnd::kCarrierLost};
  }
  const auto link = links_->find(netns, tap_name);
  if (!link || !link->up || is_others({netns, link->index}, instance_id)) return {};
  if (link->carrier) return {.tap = identity_of(*link)};
  return {.idle_tap = identity_of(*link)};
}

bool SessionWatch::is_others(const LinkId& link, const std::string& instance_id) const {
  const auto found = by_link_.find(link);
  return found != by_link_.end() && found->second != instance_id;
}

void SessionWatch::on_link(const Link& link, bool) {
  if (const auto devices = devices_.find(link.netns); devices != devices_.end()) {
    const auto index = [&](const std::string& name) { return index_of(link.netns, name); };
    for (const std::string& id : devices->second.on_link(link.index, link.name, index)) {
      callbacks_.on_device(id);
    }
  }
  // First the session that has it, then those that wait for its name: the first may release it for the
  // others. All are found before any is reported: a callback may change the sessions.
  std::vector<std::string> instances;
  if (const auto own = by_link_.find({link.netns, link.index}); own != by_link_.end()) {
    instances.push_back(own->second);
  }
  const auto [first, last] = by_name_.equal_range({link.netns, link.name});
  for (auto waiting = first; waiting != last; ++waiting) instances.push_back(waiting->second);
  for (const std::string& id : instances) look_again(id);
}

int SessionWatch::index_of(NetnsId netns, const std::string& name) const {
  const auto link = links_->find(netns, name);
  return link ? link->index : 0;
}

void SessionWatch::look_again(const std::string& instance_id) {
  const auto found = sessions_.find(instance_id);
  if (found == sessions_.end()) return;
  Session& session = found->second;
  const NetnsId netns = session.tap_place.id();
  const TapLook look = look_at_tap(instance_id, netns, session.name, session.tap, session.idle_tap);
  if (look.over) return end(instance_id, *look.over);
  if (session.armed()) {
    if (!session.tap_place.is_open()) return;
    const std::string name = links_->find(netns, session.tap.index)->name;
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
  const NetnsId netns = id_of(tap_netns_of(known), known.tap_netns_identity);
  if (tap.index == 0 || netns == NetnsId::kUnknown) return false;
  const auto link = links_->find(netns, tap.index);
  return !link || lost_carrier_since(tap, *link);
}

}  // namespace portway
