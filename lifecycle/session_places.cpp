// SessionWatch's places: the network namespaces of guests and taps, and what can be said about the interfaces
// there.
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "lifecycle/session_watch.h"

namespace portway {
namespace {

constexpr const char* kMountsFile = "/proc/self/mountinfo";

}  // namespace

NetnsId SessionWatch::Place::id() const {
  if (name.empty()) return NetnsId::kNode;
  return space == nullptr ? NetnsId::kUnknown : space->id();
}

/// Whether its name leads to no namespace any more, or to another one. What cannot be looked at is not gone.
bool SessionWatch::Place::is_gone() const {
  if (!has_path()) return false;
  struct stat file {};
  if (::stat(name.c_str(), &file) != 0) return errno == ENOENT || errno == ENOTDIR;
  return file.st_dev != identity.device || file.st_ino != identity.inode;
}

Result<WatchedNamespaces::Ptr> SessionWatch::open_namespace(std::string_view name,
                                                            const ProcessWatch* process) {
  if (name.empty()) return WatchedNamespaces::Ptr();
  if (name != kNetnsOfVmm) {
    if (auto watched = watch_mounts(); !watched) return watched.error();
  }
  if (name == kNetnsOfVmm && process == nullptr) {
    return Error{.code = ErrorCode::kInvalidRequest,
                 .detail =
                     "netns \"vmm_pid\" is the network namespace of the process vmm_pid: give vmm_pid, or "
                     "the path of the namespace.",
                 .field = "vmm_pid"};
  }
  auto opened = name == kNetnsOfVmm ? NetworkNamespace::open_of_process(
                                          process->pid(),
                                          [process] {
                                            return ProcessWatch(process->pid(), process->started()).look() !=
                                                   ProcessState::kEnded;
                                          })
                                    : NetworkNamespace::open(name, netns_directories_);
  if (!opened) return opened.error();
  return spaces_->watch(std::move(*opened));
}

/// Opens what is not open yet. Returns that the session is over because one is gone.
std::optional<SessionEnd> SessionWatch::open_places(Session& session) {
  for (Place* place : {&session.guest_place, &session.tap_place}) {
    if (place->is_open()) continue;
    place->space = spaces_->find(place->identity);
    if (place->is_open()) continue;
    if (place->is_gone()) return SessionEnd::kNetnsGone;
    auto opened = open_namespace(place->name, session.process ? &*session.process : nullptr);
    if (!opened) {
      place->fault = opened.error().detail;
      continue;
    }
    if ((*opened)->netns()->identity() != place->identity) return SessionEnd::kNetnsGone;
    place->space = std::move(*opened);
    place->fault.clear();
  }
  return std::nullopt;
}

void SessionWatch::open_again() {
  const std::set<std::string> instances = unopened_;
  for (const std::string& id : instances) {
    const auto found = sessions_.find(id);
    if (found == sessions_.end()) continue;
    Session& session = found->second;
    remove_from_indices(id, session);
    const auto over = open_places(session);
    add_to_indices(id, session);
    if (session.process && session.process->look() != ProcessState::kRuns) unseen_.insert(id);
    if (over) {
      end(id, *over);
    } else if (!unopened_.contains(id)) {
      callbacks_.on_device(id);
      look_again(id);
    }
  }
}

/// Once there is a namespace that has a path.
Result<void> SessionWatch::watch_mounts() {
  if (mounts_) return {};
  Fd event(::open(kMountsFile, O_RDONLY | O_CLOEXEC));
  Fd polled(::open(kMountsFile, O_RDONLY | O_CLOEXEC));
  if (!event || !polled || !add_to_events(event.get(), kMounts, EPOLLPRI)) {
    return Error{
        .code = ErrorCode::kResourceExhausted,
        .detail = fmt::format("{}: {}; without it the end of a network namespace would go unnoticed. "
                              "Mount /proc, and raise the limit of descriptors (LimitNOFILE=).",
                              kMountsFile, std::strerror(errno)),
        .field = "netns"};
  }
  mounts_event_ = std::move(event);
  mounts_ = std::move(polled);
  return {};
}

void SessionWatch::look_at_mounts() {
  if (named_.empty()) return;
  pollfd mounts{.fd = mounts_.get(), .events = POLLPRI, .revents = 0};
  if (::poll(&mounts, 1, 0) == 1) look_at_names();
}

void SessionWatch::look_at_names() {
  std::vector<std::string> gone;  // a callback may change the sessions
  for (const std::string& id : named_) {
    if (sessions_.at(id).has_lost_its_name()) gone.push_back(id);
  }
  for (const std::string& id : gone) end(id, SessionEnd::kNetnsGone);
}

NetnsId SessionWatch::id_of(std::string_view name, const NamespaceIdentity& identity) const {
  if (name.empty()) return NetnsId::kNode;
  const auto space = spaces_->find(identity);
  return space ? space->id() : NetnsId::kUnknown;
}

Result<NetworkNamespace::Ptr> SessionWatch::netns_of(const Instance& instance) const {
  if (instance.netns.empty()) return NetworkNamespace::Ptr();
  return find_open(instance.id, instance.netns_identity, &Session::guest_place);
}

Result<NetworkNamespace::Ptr> SessionWatch::open_netns(const Instance& instance) const {
  const Error none{.code = ErrorCode::kInvalidRequest, .detail = "It is gone.", .field = "netns"};
  if (instance.netns.empty()) return none;
  const auto open_as = [&](const std::string& name) -> NetworkNamespace::Ptr {
    const Place place{.name = name, .identity = instance.netns_identity};
    if (!place.has_path() || place.is_gone()) return nullptr;
    const auto opened = NetworkNamespace::open(name, netns_directories_);
    return opened && (*opened)->identity() == place.identity ? *opened : nullptr;
  };
  if (auto found = open_as(instance.netns)) return found;
  // Its process has ended, or it has another name: another one may lead to it.
  for (const std::string& directory : netns_directories_) {
    std::error_code error;
    for (const auto& file : std::filesystem::directory_iterator(directory, error)) {
      if (auto found = open_as(file.path())) return found;
    }
  }
  return none;
}

Result<NetworkNamespace::Ptr> SessionWatch::netns_of_tap(const Instance& instance) const {
  if (tap_netns_of(instance).empty()) return NetworkNamespace::Ptr();
  return find_open(instance.id, instance.tap_netns_identity, &Session::tap_place);
}

/// By its identity: a session that is being ended still holds it, but is not among sessions_ any more.
Result<NetworkNamespace::Ptr> SessionWatch::find_open(const std::string& instance_id,
                                                      const NamespaceIdentity& identity,
                                                      Place Session::*place) const {
  if (const auto space = spaces_->find(identity)) return space->netns();
  const auto session = sessions_.find(instance_id);
  return Error{.code = ErrorCode::kResourceExhausted,
               .detail = session == sessions_.end()
                             ? "The instance's network namespace is not open: it is stopped."
                             : (session->second.*place).fault,
               .field = "netns"};
}

LinkId SessionWatch::interface_of(const Instance& instance) const {
  const NetnsId netns = id_of(tap_netns_of(instance), instance.tap_netns_identity);
  if (instance.tap_index != 0) return {netns, instance.tap_index};
  return {netns, index_of(netns, instance.tap)};
}

TapState SessionWatch::tap_state(const Instance& instance) const {
  if (instance.tap.empty()) return TapState::kNone;
  const LinkId tap = interface_of(instance);
  const auto link = links_->find(tap.netns, tap.index);
  if (!link || is_others(tap, instance.id)) return TapState::kMissing;
  return link->carrier ? TapState::kUp : TapState::kNoCarrier;
}

LinkId SessionWatch::device_of(const Instance& instance) const {
  const NetnsId netns = id_of(instance.netns, instance.netns_identity);
  return {netns, index_of(netns, instance.device)};
}

std::string SessionWatch::tap_fault(const Instance& instance) const {
  const auto session = sessions_.find(instance.id);
  if (session != sessions_.end()) {
    for (const Place* place : {&session->second.guest_place, &session->second.tap_place}) {
      if (!place->is_open()) return place->fault;
    }
  }
  const LinkId of_tap = interface_of(instance);
  if (of_tap.netns == NetnsId::kUnknown || device_of(instance).netns == NetnsId::kUnknown)
    return "";  // stopped
  const auto tap = links_->find(of_tap.netns, of_tap.index);
  if (tap && tap->loopback) return fmt::format("{} is a loopback: give the machine a tap.", tap->name);
  if (instance.device == kByRoute) return "";
  const LinkId of_device = device_of(instance);
  const auto link = instance.device.empty() ? tap : links_->find(of_device.netns, of_device.index);
  if (!link) {
    if (instance.device.empty()) return "";
    return fmt::format(
        "There is no interface {}{}, through which the guest is reached: create it, or register the "
        "instance with another device.",
        instance.device, instance.netns.empty() ? "" : " in its network namespace");
  }
  // Packets that come in by a VRF's device still reach the node.
  if (link->master == 0 || link->master_kind == "vrf") return "";
  const auto master = links_->find(link->netns, link->master);
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
