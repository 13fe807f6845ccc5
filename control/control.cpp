#include "control/control.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <net/if.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <functional>
#include <iterator>
#include <map>
#include <utility>

#include "base/boot_clock.h"

namespace portway {
namespace {

// How long restore() waits for ports that a process killed a moment ago still holds: listeners armed in an
// io_uring are given back up to 2 s after their process is gone.
constexpr std::chrono::milliseconds kBindAgainFor(3000);
constexpr std::chrono::milliseconds kBindAgainEvery(10);

// Links whose return path is looked at in each retry(): a millisecond, or three where it is rules.
constexpr std::size_t kMendLinks = 32;

Error no_such_instance() {
  return {ErrorCode::kNotFound,
          "There is no instance with this id; the node's orchestrator registers instances."};
}

Error no_such_forward() {
  return {ErrorCode::kNotFound, "This instance has no port forward with this id."};
}

Error not_running(const Instance& instance) {
  return {ErrorCode::kInstanceNotRunning,
          fmt::format("Instance {} is stopped; start its virtual machine first.", instance.id)};
}

/// What the records of a session's connections say.
CloseHow close_how(SessionEnd end) {
  const bool tap_gone = end == SessionEnd::kCarrierLost || end == SessionEnd::kTapDeleted;
  return tap_gone ? CloseHow::kTapGone : CloseHow::kInstanceStopped;
}

Result<void> check_session(const std::optional<Uuid>& meant, const Instance* known) {
  if (!meant || (known != nullptr && known->session_id == *meant)) return {};
  return Error{ErrorCode::kSessionMismatch,
               known == nullptr
                   ? fmt::format("There is no instance with session {}.", to_string(*meant))
                   : fmt::format("Instance {} has session {} now; the one in session_id is over.", known->id,
                                 to_string(known->session_id)),
               "session_id"};
}

std::string lost_text(const std::vector<IpAddress>& addresses) {
  return fmt::format(
      "The node does not have {} now: add the address to an interface, or correct node.public_addresses",
      fmt::join(to_strings(addresses), ", "));
}

event::OfForward of_event(const Forward& forward) {
  return {.id = forward.id,
          .guest_port = forward.guest_port,
          .host_port = forward.host_port,
          .label = forward.label};
}

}  // namespace

class Control::Lease {
 public:
  Lease(PortAllocator& ports, BoundPort port) : ports_(&ports), port_(std::move(port)) {}
  Lease(Lease&& other) noexcept
      : ports_(std::exchange(other.ports_, nullptr)), port_(std::move(other.port_)) {}
  Lease& operator=(Lease&&) = delete;
  ~Lease() {
    if (ports_ != nullptr) ports_->give_back(port_.port());
  }

  std::uint16_t port() const { return port_.port(); }
  /// Nobody can connect any more; the port is still taken.
  void close() { port_ = BoundPort(port_.port(), {}); }
  BoundPort keep() {
    ports_ = nullptr;
    return std::move(port_);
  }

 private:
  PortAllocator* ports_;
  BoundPort port_;
};

Control::Control(const Config& config, const Parts& parts)
    : config_(config),
      store_(parts.store),
      dataplane_(parts.dataplane),
      watch_(parts.watch),
      events_(parts.events),
      stats_(parts.stats),
      return_path_(parts.return_path),
      why_no_return_path_(parts.why_no_return_path),
      return_path_kept_for_(parts.return_path_kept_for),
      find_lost_addresses_(parts.find_lost_addresses),
      ports_(config_.ports.range),
      keys_(config_.api),
      unsaved_(parts.context, store_, registry_,
               {.before_save = [this](const std::string& id,
                                      UnsavedSessions::Entry& entry) { tell_end(id, entry); },
                .on_saved = [this](const std::string& id,
                                   const UnsavedSessions::Entry& saved) { on_saved(id, saved); }}) {
  store_.set_meanwhile({.descriptor = watch_.descriptor(), .dispatch = [this] { watch_.dispatch(); }});
  watch_.set_callbacks(
      {.on_armed = [this](const std::string& id, const TapIdentity& tap) { on_armed(id, tap); },
       .on_idle_tap = [this](const std::string& id, const TapIdentity& tap) { on_idle_tap(id, tap); },
       .on_renamed = [this](const std::string& id, const std::string& name) { on_tap_renamed(id, name); },
       .on_end = [this](const std::string& id, SessionEnd why) { end_session(id, why); }});
}

Control::~Control() {
  store_.set_meanwhile({});
  watch_.set_callbacks({});
}

// --- Start.

Result<void> Control::restore() {
  auto keys = store_.load_api_keys();
  if (!keys) return keys.error();
  auto instances = store_.load_instances();
  if (!instances) return instances.error();
  auto forwards = store_.load_forwards();
  if (!forwards) return forwards.error();
  const auto host_addresses = local_addresses();
  if (!host_addresses) return host_addresses.error();

  for (const ApiKey& key : *keys) keys_.add(key);
  std::map<std::string, SessionEnd, std::less<>> over;  // by instance
  // Those that have an interface come first: no other can take it then.
  std::stable_partition(instances->begin(), instances->end(),
                        [](const Instance& each) { return each.tap_index != 0; });
  for (const Instance& instance : *instances) {
    if (const auto why = take_up(instance)) over.emplace(instance.id, *why);
  }
  std::vector<ForwardId> unbound;
  for (const Forward& forward : *forwards) {
    if (registry_.find_instance(forward.instance_id) == nullptr) continue;
    // A forward may be older than the configured range: it keeps its port, which the pool then does not
    // count.
    (void)ports_.take(forward.host_port);
    registry_.add_forward(forward);
    if (!over.contains(forward.instance_id)) unbound.push_back(forward.id);
  }
  for (const auto& [id, why] : over) end_session(id, why);
  serve_restored(std::move(unbound), *host_addresses);
  spdlog::info("restored {} instances and {} forwards, {} of which failed; {} sessions ended meanwhile",
               registry_.instance_count(), registry_.forward_count(), failures_.size(), over.size());
  return {};
}

/// A session that is on disk like this is known and watched from now on. Why it is over already, or nothing.
std::optional<SessionEnd> Control::take_up(const Instance& stored) {
  Instance instance = stored;
  const bool watched = instance.state == InstanceState::kRunning;
  // What could not be read then, or cannot be read now, tells nothing.
  const bool other_boot = !stored.boot_id.empty() && !boot_id().empty() && stored.boot_id != boot_id();
  const bool rebooted = watched && other_boot;
  if (other_boot) {
    // The number is another interface's by now, perhaps the one that this API's callers come by.
    instance.tap_index = 0;
    instance.tap_carrier_downs = {};
    instance.idle_tap = {};
  }
  if (watched && stored.boot_id.empty()) instance.boot_id = boot_id();
  const auto over = rebooted ? SessionEnd::kNodeRebooted : watched ? watch_.watch(instance) : std::nullopt;
  const Instance& known = registry_.put_instance(std::move(instance));
  if (!watched || over) return over;
  if (known.tap_index != stored.tap_index) {
    unsaved_.change(stored);  // the registry has it as it is now already
    on_armed(known.id, {known.tap_index, known.tap_carrier_downs});
    return std::nullopt;
  }
  make_way(known);
  tell_fault(known);
  const bool more_is_known = known.tap_carrier_downs != stored.tap_carrier_downs ||
                             known.idle_tap != stored.idle_tap || known.boot_id != stored.boot_id;
  if (more_is_known) unsaved_.change(stored);
  return std::nullopt;
}

const std::string& Control::boot_id() {
  if (boot_id_.empty()) boot_id_ = kernel_boot_id();
  return boot_id_;
}

/// All that can be bound comes first, and is served while the rest is tried again.
void Control::serve_restored(std::vector<ForwardId> unbound, std::span<const IpAddress> host_addresses) {
  const auto deadline = std::chrono::steady_clock::now() + kBindAgainFor;
  for (;;) {
    const bool last = std::chrono::steady_clock::now() >= deadline;
    std::erase_if(unbound, [&](const ForwardId& id) {
      const Forward* forward = registry_.find_forward(id);
      if (forward == nullptr) return true;  // its session has ended by now
      const Instance& instance = *registry_.find_instance(forward->instance_id);
      auto port = bind_for(instance, *forward, host_addresses);
      if (!port && port.error().code == ErrorCode::kHostPortTaken && !last) return false;
      if (port) {
        serve(instance, *forward, std::move(*port));
      } else {
        fail(instance, *forward, port.error().detail);
      }
      return true;
    });
    if (unbound.empty()) return;
    watch_.dispatch_within(kBindAgainEvery);  // no event tells that a port is free
  }
}

void Control::fail(const Instance& instance, const Forward& forward, const std::string& why) {
  spdlog::error("forward {} of instance {} is not served: {}", to_string(forward.id), instance.id, why);
  failures_.emplace(forward.id, why);
  publish(instance, event::ForwardFailed{of_event(forward), why});
}

/// The port of a forward that exists. The configuration and the host's addresses may have changed since it
/// was made: what led to a guest then may lead into the node now.
Result<BoundPort> Control::bind_for(const Instance& instance, const Forward& forward,
                                    std::span<const IpAddress> host_addresses) {
  for (const IpAddress& address : guest_addresses(instance)) {
    auto checked = check_guest_address(address, config_.guests.networks, host_addresses);
    if (!checked) return checked.error();
  }
  return dataplane_.bind(forward.host_port);
}

// --- While running.

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
  tend_ways();
}

/// An address may leave an interface under a listener that is bound to it, which nothing tells the listener.
void Control::look_at_addresses() {
  std::vector<IpAddress> lost = find_lost_addresses_(config_.node.public_addresses);
  if (lost == lost_addresses_) return;
  lost_addresses_ = std::move(lost);
  if (lost_addresses_.empty()) {
    spdlog::info("the node has all of its public addresses again");
  } else {
    spdlog::error("{}: forwards are not reached there", lost_text(lost_addresses_));
  }
}

void Control::log_store() {
  for (const auto& [is_error, text] : store_.take_notices()) {
    spdlog::log(is_error ? spdlog::level::err : spdlog::level::warn, "{}", text);
  }
}

void Control::retry_failed_forwards() {
  const auto host_addresses = local_addresses();
  if (!host_addresses) return;
  std::vector<ForwardId> ids;
  for (const auto& [id, why] : failures_) ids.push_back(id);
  for (const ForwardId& id : ids) {
    const Forward* forward = registry_.find_forward(id);
    if (forward == nullptr) continue;
    const Instance& instance = *registry_.find_instance(forward->instance_id);
    auto port = bind_for(instance, *forward, *host_addresses);
    if (!port) {
      failures_[id] = port.error().detail;
      continue;
    }
    failures_.erase(id);
    serve(instance, *forward, std::move(*port));
    spdlog::info("forward {} of instance {} is served now", to_string(id), instance.id);
    publish(instance, event::ForwardListening{of_event(*forward)});
  }
}

// --- Keys.

Result<Control::NewKey> Control::create_key(Role role, std::string owner, const Principal& caller) {
  if (auto checked = check_owner(owner); !checked) return checked.error();
  if (keys_.size() > kApiKeysMax) {  // the admin key file's is one more
    return Error{ErrorCode::kQuotaExceeded, "This node has as many API keys as it can; delete some first.",
                 "", static_cast<std::int64_t>(kApiKeysMax), static_cast<std::int64_t>(keys_.size() - 1)};
  }
  NewKey made{.key = {}, .secret = make_secret()};
  made.key.id = make_uuid();
  made.key.role = role;
  made.key.owner = std::move(owner);
  made.key.secret_sha256 = sha256(made.secret);
  made.key.created_at = now();
  if (auto stored = store_.add_api_key(made.key); !stored) return stored.error();
  keys_.add(made.key);
  spdlog::info("key {} ({} {}) made by {}", to_string(made.key.id), to_string(role), made.key.owner,
               who(caller));
  return made;
}

Result<void> Control::delete_key(const Uuid& id, const Principal& caller) {
  if (id == admin_key_id_) {
    return Error{ErrorCode::kForbidden,
                 fmt::format("This is the key in {}; replace that file and send SIGHUP to change it.",
                             config_.api.admin_key_file)};
  }
  if (keys_.find(id) == nullptr) return Error{ErrorCode::kNotFound, "There is no API key with this id."};
  if (auto stored = store_.delete_api_key(id); !stored) return stored.error();
  keys_.remove(id);
  streams_.recheck();
  spdlog::info("key {} deleted by {}", to_string(id), who(caller));
  return {};
}

void Control::set_admin_key(std::string_view secret) {
  const Sha256 hash = sha256(secret);
  const ApiKey* known = keys_.find(admin_key_id_);
  if (known != nullptr && known->secret_sha256 == hash) return;  // who uses it goes on undisturbed
  const std::string before = known == nullptr ? "" : to_string(admin_key_id_);
  keys_.remove(admin_key_id_);
  ApiKey key;
  key.id = admin_key_id_ = make_uuid();
  key.role = Role::kAdmin;
  key.owner = "admin";
  key.secret_sha256 = hash;
  key.created_at = now();
  keys_.add(key);
  streams_.recheck();
  spdlog::info("the admin key in {} is key {}{}", config_.api.admin_key_file, to_string(key.id),
               before.empty() ? "" : fmt::format(", in place of key {}", before));
}

// --- Instances.

Result<Control::PutInstance> Control::put_instance(Instance asked, const std::optional<Uuid>& session,
                                                   std::string_view by) {
  if (auto running = check_running(); !running) return running.error();
  const auto host_addresses = local_addresses();
  if (!host_addresses) return host_addresses.error();
  const InstanceLimits limits{config_.guests.networks, *host_addresses, config_.profiles};
  if (auto checked = check_instance(asked, limits); !checked) return checked.error();

  watch_.refresh(asked.id);  // a session whose end has not been noticed yet is not there any more
  if (const Instance* known = registry_.find_instance(asked.id); auto meant = check_session(session, known)) {
    const bool running = known != nullptr && known->state == InstanceState::kRunning;
    if (running && is_machine_of(*known, asked)) return change_in_place(asked, by);
  } else {
    return meant.error();
  }
  if (auto identified = watch_.identify(asked); !identified) return identified.error();
  if (auto free = check_tap_is_free(asked); !free) return free.error();
  if (std::string fault = watch_.tap_fault(asked); !fault.empty()) {
    return Error{ErrorCode::kInvalidRequest, std::move(fault), "tap"};
  }
  const Instance* before = registry_.find_instance(asked.id);
  const bool created = before == nullptr;
  asked.session_id = make_uuid();
  asked.state = InstanceState::kRunning;
  asked.created_at = created ? now() : before->created_at;
  asked.boot_id = boot_id();
  if (auto stored = store_.start_session(asked); !stored) return stored.error();
  if (!created) replace_session(*registry_.find_instance(asked.id), asked);
  const Instance& instance = registry_.put_instance(asked);
  streams_.recheck();
  spdlog::info("instance {}: session {} at {} behind {}{}, by {}", instance.id,
               to_string(instance.session_id), fmt::join(to_strings(guest_addresses(instance)), " and "),
               instance.tap, instance.tap_index != 0 ? ", armed" : "", by);
  publish(instance, event::InstanceStarted());
  if (const auto over = take_up(asked)) end_session(asked.id, *over);
  return PutInstance{instance, created};
}

/// The same machine at the same place: what else there is to a registration changes in place. Its tap may
/// have another name by now, and the name that it had may be another one's.
bool Control::is_machine_of(const Instance& known, const Instance& asked) const {
  if (guest_addresses(known) != guest_addresses(asked)) return false;
  const std::int32_t named = watch_.interface_of(asked);
  return known.tap_index != 0 && named != 0 ? named == known.tap_index : known.tap == asked.tap;
}

/// Another owner, profile, process or name of the tap of a session that goes on, with its forwards and
/// connections: those beyond a smaller profile's quota stay.
Result<Control::PutInstance> Control::change_in_place(const Instance& asked, std::string_view by) {
  const auto change = [&asked](Instance instance, std::uint64_t vmm_started) {
    instance.owner = asked.owner;
    instance.profile = asked.profile;
    instance.tap = asked.tap;
    instance.vmm_pid = asked.vmm_pid;
    instance.vmm_started = vmm_started;
    return instance;
  };
  const Instance before = *registry_.find_instance(asked.id);
  std::vector<std::string_view> changed;
  if (before.owner != asked.owner) changed.push_back("owner");
  if (before.profile != asked.profile) changed.push_back("profile");
  if (before.vmm_pid != asked.vmm_pid) changed.push_back("vmm_pid");
  if (before.tap != asked.tap) changed.push_back("tap");
  if (changed.empty()) return PutInstance{*registry_.find_instance(asked.id), false};
  Instance wanted = change(before, before.vmm_started);
  if (before.vmm_pid != asked.vmm_pid) {
    if (auto identified = SessionWatch::identify_process(wanted); !identified) return identified.error();
  }
  if (auto stored = store_.put_instance(wanted); !stored) return stored.error();
  if (UnsavedSessions::Entry* unsaved = unsaved_.find(asked.id)) unsaved->on_disk = wanted;
  const Instance* known = registry_.find_instance(asked.id);
  if (known->state != InstanceState::kRunning) return put_instance(asked, {}, by);  // it has ended meanwhile
  const Instance& instance = registry_.put_instance(change(*known, wanted.vmm_started));
  streams_.recheck();
  spdlog::info("instance {}: session {} goes on with another {}, by {}", instance.id,
               to_string(instance.session_id), fmt::join(changed, ", "), by);
  // The owner before does not see the instance any more, and learns from this why.
  if (before.owner != instance.owner) {
    dataplane_.change_owner(instance.session_id);
    publish(before, event::InstanceUpdated{{"owner"}});
  }
  publish(instance, event::InstanceUpdated{changed});
  if (before.vmm_pid != instance.vmm_pid) {
    if (const auto over = watch_.set_process(instance)) end_session(asked.id, *over);
  }
  return PutInstance{instance, false};
}

/// The disk has the new session, and nothing of the old one any more.
void Control::replace_session(const Instance& old, const Instance& replacement) {
  on_saved(old.id, unsaved_.take(old.id));
  if (old.state != InstanceState::kRunning) return;
  Instance replaced = old;
  replaced.state = InstanceState::kStopped;
  replaced.ended = SessionEnd::kReplaced;
  const std::vector<Forward> ended = end_in_memory(replaced);
  give_back_ports(ended);
  spdlog::info("instance {}: session {} replaced by {}, ended with {} forwards", replaced.id,
               to_string(replaced.session_id), to_string(replacement.session_id), ended.size());
  publish_stopped(replaced, ended.size());
}

/// Two running instances behind one interface would let the clients of one reach the other's machine. Its
/// name does not tell: an interface may have had another one when its session began.
Result<void> Control::check_tap_is_free(const Instance& asked) const {
  const std::int32_t wanted = watch_.interface_of(asked);
  for (const Instance* other : registry_.instances()) {
    if (other->id == asked.id || other->state != InstanceState::kRunning) continue;
    const std::int32_t taken = watch_.interface_of(*other);
    const bool both_missing = wanted == 0 && taken == 0;
    if (both_missing ? other->tap != asked.tap : taken != wanted) continue;
    return Error{ErrorCode::kTapInUse,
                 fmt::format("tap {} belongs to the running instance {}; stop that one first, or give this "
                             "machine's own tap.",
                             in_quotes(asked.tap), other->id),
                 "tap"};
  }
  return {};
}

void Control::on_armed(const std::string& instance_id, const TapIdentity& tap) {
  const Instance* known = registry_.find_instance(instance_id);
  if (known == nullptr) return;
  unsaved_.change(*known);
  Instance instance = *known;
  instance.tap_index = tap.index;
  instance.tap_carrier_downs = tap.carrier_downs;
  instance.idle_tap = {};
  const Instance& armed = registry_.put_instance(std::move(instance));
  streams_.recheck();
  make_way(armed);
  take_sources(armed);
  // Afterwards: until it has a device, no connection to the guest is made.
  dataplane_.set_device(armed.session_id, armed.tap_index);
  spdlog::info("instance {}: session {} armed, its tap {} (interface {}) has a carrier", armed.id,
               to_string(armed.session_id), armed.tap, armed.tap_index);
  publish(armed, event::InstanceTapUp());
  tell_fault(armed);
}

void Control::on_idle_tap(const std::string& instance_id, const TapIdentity& tap) {
  const Instance* known = registry_.find_instance(instance_id);
  if (known == nullptr) return;
  unsaved_.change(*known);
  Instance instance = *known;
  instance.idle_tap = tap;
  registry_.put_instance(std::move(instance));
}

/// It is the same interface, so it is the same machine. `tap` stays what was registered: the registration
/// again is the same registration.
void Control::on_tap_renamed(const std::string& instance_id, const std::string& name) {
  const Instance* known = registry_.find_instance(instance_id);
  if (known == nullptr) return;
  spdlog::info("instance {}: its tap {} is called {} now", instance_id, known->tap, name);
  publish(*known, event::InstanceTapRenamed{.tap = known->tap, .name = name});
}

Result<void> Control::stop_instance(std::string_view id, const std::optional<Uuid>& session,
                                    std::string_view by) {
  const Instance* known = registry_.find_instance(id);
  if (known == nullptr) return no_such_instance();
  if (auto meant = check_session(session, known); !meant) return meant;
  const auto stopped_now = [](Instance instance) {
    if (instance.state == InstanceState::kRunning) instance.ended = SessionEnd::kStopped;
    instance.state = InstanceState::kStopped;
    return instance;
  };
  UnsavedSessions::Entry* unsaved = unsaved_.find(id);
  const std::uint64_t change = unsaved == nullptr ? 0 : unsaved->change;
  if (known->state == InstanceState::kStopped && unsaved == nullptr) return {};
  if (auto stored = store_.end_session(stopped_now(*known)); !stored) return stored.error();
  known = registry_.find_instance(id);
  unsaved = unsaved_.find(id);
  const bool changed = unsaved != nullptr && unsaved->change != change;
  if (known->state == InstanceState::kStopped && changed) {
    // Its machine has gone meanwhile: that is why it has ended, and is saved like that. That it has is on
    // disk.
    unsaved->on_disk = stopped_now(unsaved->on_disk);
    tell_end(known->id, *unsaved);
    return {};
  }
  on_saved(known->id, unsaved_.take(id));
  if (known->state == InstanceState::kStopped) return {};
  const Instance stopped = stopped_now(*known);
  const std::vector<Forward> ended = end_in_memory(stopped);
  give_back_ports(ended);
  tell_stopped(stopped, ended.size(), by);
  return {};
}

void Control::end_session(std::string_view id, SessionEnd why) {
  const Instance* known = registry_.find_instance(id);
  if (known == nullptr || known->state == InstanceState::kStopped) return;
  UnsavedSessions::Entry& unsaved = unsaved_.change(*known);
  Instance stopped = *known;
  stopped.state = InstanceState::kStopped;
  stopped.ended = why;
  unsaved.end_told = false;
  std::ranges::move(end_in_memory(stopped), std::back_inserter(unsaved.forwards));
  tell_end(stopped.id, unsaved);
}

/// Unless a restart would not find out again that the session is over.
void Control::tell_end(const std::string& instance_id, UnsavedSessions::Entry& unsaved) {
  if (unsaved.end_told) return;
  const Instance& stopped = *registry_.find_instance(instance_id);
  unsaved.end_told = unsaved.on_disk.state == InstanceState::kStopped ||
                     stopped.ended == SessionEnd::kNodeRebooted || watch_.stays_over(unsaved.on_disk);
  if (unsaved.end_told) tell_stopped(stopped, unsaved.forwards.size());
}

/// Its forwards are not served any more; their ports are still taken.
std::vector<Forward> Control::end_in_memory(const Instance& stopped) {
  watch_.forget(stopped.id);
  end_way(stopped.id);
  std::vector<Forward> forwards = registry_.remove_forwards(stopped.id);
  stop_serving(stopped.session_id, forwards, close_how(*stopped.ended));
  if (making_.leases != nullptr && making_.instance_id == stopped.id) {
    for (auto& lease : *making_.leases) lease->close();
  }
  registry_.put_instance(stopped);
  streams_.recheck();
  return forwards;
}

void Control::tell_stopped(const Instance& stopped, std::size_t forwards, std::string_view by) {
  spdlog::info("instance {}: session {} ended with {} forwards: {}{}{}", stopped.id,
               to_string(stopped.session_id), forwards, to_string(*stopped.ended), by.empty() ? "" : ", by ",
               by);
  publish_stopped(stopped, forwards);
}

void Control::publish_stopped(const Instance& stopped, std::size_t forwards) {
  publish(stopped, event::InstanceStopped{.reason = *stopped.ended, .port_forwards = forwards});
}

/// The disk has the instance as it is, and nothing of its sessions that are over.
void Control::on_saved(const std::string& instance_id, const UnsavedSessions::Entry& saved) {
  give_back_ports(saved.forwards);
  if (!saved.end_told) tell_stopped(*registry_.find_instance(instance_id), saved.forwards.size());
}

bool Control::is_ending(const Instance& instance) const {
  const UnsavedSessions::Entry* unsaved = unsaved_.find(instance.id);
  return unsaved != nullptr && !unsaved->end_told;
}

Result<void> Control::delete_instance(std::string_view id, const std::optional<Uuid>& session,
                                      std::string_view by) {
  const Instance* known = registry_.find_instance(id);
  if (known == nullptr) return no_such_instance();
  if (auto meant = check_session(session, known); !meant) return meant;
  if (auto stored = store_.delete_instance(id); !stored) return stored.error();
  const Instance deleted = *registry_.find_instance(id);
  give_back_ports(unsaved_.take(id).forwards);
  watch_.forget(id);
  end_way(deleted.id);
  const std::vector<Forward> forwards = registry_.remove_instance(id);
  streams_.recheck();
  stop_serving(deleted.session_id, forwards, CloseHow::kInstanceStopped);
  give_back_ports(forwards);
  spdlog::info("instance {}: deleted with session {} and {} forwards, by {}", deleted.id,
               to_string(deleted.session_id), forwards.size(), by);
  publish(deleted, event::InstanceDeleted());
  return {};
}

Result<const Instance*> Control::find_instance(const Principal& caller, std::string_view id) const {
  const Instance* instance = registry_.find_instance(id);
  if (instance == nullptr || !caller.sees(*instance)) return no_such_instance();
  return instance;
}

// --- Forwards.

Result<std::vector<ForwardStatus>> Control::create_forwards(const Principal& caller,
                                                            std::string_view instance_id,
                                                            std::span<const ForwardSpec> specs,
                                                            const Remember& remember) {
  if (auto running = check_running(); !running) return running.error();
  const auto found = find_instance(caller, instance_id);
  if (!found) return found.error();
  const Instance& instance = **found;
  if (instance.state != InstanceState::kRunning) return not_running(instance);
  ForwardLimits limits{.role = caller.role,
                       .profile = profile_of(instance),
                       .forwards_now = registry_.forward_count(instance.id),
                       .host_ports = ports_.range()};
  const auto at = [&specs](Error error, std::size_t i) {
    if (specs.size() > 1 && !error.field.empty())
      error.field = fmt::format("port_forwards[{}].{}", i, error.field);
    return error;
  };
  // All are checked before the first port is taken: what a caller can mend costs nothing.
  for (std::size_t i = 0; i < specs.size(); ++i, ++limits.forwards_now) {
    auto checked = check_forward(specs[i], limits);
    if (checked) checked = check_source_mode(specs[i].source_mode);
    if (!checked) return at(checked.error(), i);
  }
  std::vector<std::optional<Lease>> leases(specs.size());
  for (const bool requested : {true, false}) {  // or a port drawn at random could be one that is asked for
    for (std::size_t i = 0; i < specs.size(); ++i) {
      if (specs[i].host_port.has_value() != requested) continue;
      auto lease = lease_port(specs[i].host_port);
      if (!lease) return at(lease.error(), i);
      leases[i].emplace(std::move(*lease));
    }
  }
  std::vector<Forward> forwards;
  std::vector<ForwardStatus> made;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    forwards.push_back(
        {.id = make_uuid(),
         .instance_id = instance.id,
         .session_id = instance.session_id,
         .guest_port = specs[i].guest_port,
         .host_port = leases[i]->port(),
         .protocol = specs[i].protocol,
         .label = specs[i].label,
         .created_at = now(),
         .limits = specs[i].limits,
         .source_mode = specs[i].source_mode,
         .admin_limits = caller.role == Role::kAdmin ? set_limits(specs[i].limits) : LimitSet()});
    made.push_back(status_of(forwards.back()));
    made.back().stats = ForwardStats{.id = forwards.back().id};
  }
  const auto answer = remember ? std::optional(remember(made)) : std::nullopt;
  making_ = {.instance_id = instance.id, .leases = &leases};
  auto stored = store_.add_forwards(forwards, answer ? &*answer : nullptr);
  making_ = {};
  if (!stored) return stored.error();
  const Instance& now_known = *registry_.find_instance(instance_id);
  if (now_known.state != InstanceState::kRunning) {  // its machine has gone meanwhile
    // The store has them until it learns of that: so long nobody else may have their ports.
    UnsavedSessions::Entry& unsaved = unsaved_.change(now_known);
    for (std::size_t i = 0; i < forwards.size(); ++i) {
      (void)leases[i]->keep();
      unsaved.forwards.push_back(std::move(forwards[i]));
    }
    return not_running(now_known);
  }
  // From here on they are promised, and nothing can fail.
  for (std::size_t i = 0; i < forwards.size(); ++i) {
    const Forward& published = registry_.add_forward(std::move(forwards[i]));
    serve(now_known, published, leases[i]->keep());
    publish(now_known, event::ForwardCreated{of_event(published)});
  }
  return made;
}

Result<ForwardStatus> Control::update_forward(const Principal& caller, std::string_view instance_id,
                                              std::string_view forward_id, const ForwardChange& change) {
  auto found = find_forward(caller, instance_id, forward_id);
  if (!found) return found.error();
  Forward forward = std::move(found->forward);
  const TrafficLimits limits_before = forward.limits;
  if (change.label) {
    if (auto checked = check_label(*change.label); !checked) return checked.error();
    forward.label = *change.label;
  }
  if (change.limits) {
    if (auto checked = check_limits_given(caller.role, change.given, forward.admin_limits); !checked) {
      return checked.error();
    }
    forward.limits = *change.limits;
    // What an admin takes away is the tenant's again.
    if (caller.role == Role::kAdmin) {
      forward.admin_limits =
          (forward.admin_limits & ~change.given) | (set_limits(forward.limits) & change.given);
    }
  }
  if (change.source_mode) {
    if (auto checked = check_source_mode(*change.source_mode); !checked) return checked.error();
    forward.source_mode = *change.source_mode;
  }
  if (auto stored = store_.update_forward(forward); !stored) return stored.error();
  // Its machine may have gone meanwhile, and it with that.
  if (registry_.find_forward(forward.id) == nullptr) return no_such_forward();
  const Forward& updated = registry_.update_forward(std::move(forward));
  const Instance& instance = *registry_.find_instance(instance_id);
  if (!failures_.contains(updated.id)) {
    if (updated.limits != limits_before) dataplane_.set_limits(updated.id, updated.limits);
    dataplane_.set_source(updated.id, take_source(instance, updated));
  }
  publish(instance, event::ForwardUpdated{of_event(updated)});
  return status_of(updated);
}

Result<Control::Lease> Control::lease_port(std::optional<std::uint16_t> requested) {
  const auto count = [this](ErrorCode code) {
    stats_.count_port_allocation_error(code == ErrorCode::kHostPortTaken ? PortAllocationError::kTaken
                                       : code == ErrorCode::kPortPoolExhausted
                                           ? PortAllocationError::kExhausted
                                           : PortAllocationError::kResources);
  };
  if (!requested) {
    auto port = ports_.take_random([this](std::uint16_t each) { return dataplane_.bind(each); });
    if (port) return Lease(ports_, std::move(*port));
    count(port.error().code);
    return port.error();
  }
  if (!ports_.take(*requested)) {
    count(ErrorCode::kHostPortTaken);
    return Error{
        ErrorCode::kHostPortTaken,
        fmt::format("Host port {} belongs to another forward; choose another or leave host_port out.",
                    *requested),
        "host_port"};
  }
  auto port = dataplane_.bind(*requested);
  if (port) return Lease(ports_, std::move(*port));
  ports_.give_back(*requested);
  count(port.error().code);
  return port.error();
}

Result<void> Control::delete_forward(const Principal& caller, std::string_view instance_id,
                                     std::string_view forward_id, ClosePolicy policy) {
  const auto found = find_forward(caller, instance_id, forward_id);
  if (!found) return found.error();
  const ForwardId id = found->forward.id;
  if (auto stored = store_.delete_forward(id); !stored) return stored.error();
  auto found_again = registry_.remove_forward(id);
  if (!found_again) return {};  // its machine has gone meanwhile, and it with that
  const std::vector<Forward> removed = {std::move(*found_again)};
  dataplane_.close(id, policy, CloseHow::kForwardDeleted);
  forget_serving(removed);
  give_back_ports(removed);
  publish(*registry_.find_instance(instance_id), event::ForwardDeleted{of_event(removed.front())});
  return {};
}

Result<ForwardStatus> Control::find_forward(const Principal& caller, std::string_view instance_id,
                                            std::string_view forward_id) const {
  const auto instance = find_instance(caller, instance_id);
  if (!instance) return instance.error();
  const auto id = parse_uuid(forward_id);
  const Forward* forward = id ? registry_.find_forward(*id) : nullptr;
  if (forward == nullptr || forward->instance_id != instance_id) return no_such_forward();
  return status_of(*forward);
}

ForwardStatus Control::status_of(const Forward& forward) const {
  const auto failure = failures_.find(forward.id);
  ForwardSource source = wanted_source(*registry_.find_instance(forward.instance_id), forward);
  if (without_port_way_.contains(forward.id)) source = source.without_return_path();
  return {.forward = forward,
          .bind_addresses = to_strings(config_.node.public_addresses),
          .failure = failure != failures_.end() ? failure->second
                     : lost_addresses_.size() == config_.node.public_addresses.size()
                         ? lost_text(lost_addresses_) + "."
                         : "",
          .lost_addresses = lost_addresses_,
          .stats = dataplane_.forward_stats(forward.id),
          .source = source};
}

void Control::serve(const Instance& instance, const Forward& forward, BoundPort port) {
  std::optional<Endpoint> upstream_v6;
  if (instance.guest_address_v6) upstream_v6.emplace(*instance.guest_address_v6, forward.guest_port);
  dataplane_.open({.id = forward.id,
                   .session_id = instance.session_id,
                   .upstream = {instance.guest_address, forward.guest_port},
                   .upstream_v6 = upstream_v6,
                   .device = instance.tap_index != 0 ? instance.tap_index : kNoDevice,
                   .instance_id = instance.id,
                   .limits = forward.limits,
                   .source = take_source(instance, forward)},
                  std::move(port));
}

/// A session is over. `forwards` are those that it still had.
void Control::stop_serving(const Uuid& session_id, const std::vector<Forward>& forwards, CloseHow why) {
  dataplane_.end_session(session_id, why);
  forget_serving(forwards);
}

void Control::forget_serving(const std::vector<Forward>& forwards) {
  for (const Forward& forward : forwards) {
    end_source(forward.id);
    failures_.erase(forward.id);
  }
}

void Control::give_back_ports(const std::vector<Forward>& forwards) {
  for (const Forward& forward : forwards) ports_.give_back(forward.host_port);
}

// --- The address that guests see as their clients'.

SourcePlan Control::node_source() const {
  switch (config_.proxy.source_mode) {
    case SourceMode::kPlain:
      return SourcePlan::kPlain;
    case SourceMode::kProxyV2:
      return SourcePlan::kProxyV2;
    case SourceMode::kAuto:
    case SourceMode::kTransparent:
      break;
  }
  return leads_back() ? SourcePlan::kTransparent : SourcePlan::kNoReturnPath;
}

bool Control::leads_back() const {
  return return_path_ != nullptr && return_path_->kind() != ReturnPath::Kind::kGuardOnly;
}

std::string_view Control::return_path() const {
  if (!leads_back()) return "";
  return return_path_->kind() == ReturnPath::Kind::kProgram ? "bpf" : "rules";
}

SourcePlan Control::source_of(const Instance& instance) const {
  return sources_of(instance, SourceMode::kAuto).of_all();
}

ForwardSource Control::sources_of(const Instance& instance, SourceMode wanted) const {
  if (wanted == SourceMode::kPlain) return SourcePlan::kPlain;
  if (wanted == SourceMode::kProxyV2) return SourcePlan::kProxyV2;
  const SourcePlan node = node_source();
  if (node != SourcePlan::kTransparent || instance.tap_index == 0) return node;  // its way is still to come
  const auto way = ways_.find(instance.id);
  if (way == ways_.end()) return SourcePlan::kNoReturnPath;
  const auto plan_to = [&](const IpAddress& address) {
    const bool comes_back = return_path_->fault(way->second, address).empty();
    return comes_back ? SourcePlan::kTransparent : SourcePlan::kNoReturnPath;
  };
  const SourcePlan plan = plan_to(instance.guest_address);
  return {plan, instance.guest_address_v6 ? plan_to(*instance.guest_address_v6) : plan, false};
}

const std::string& Control::source_reason(const Instance& instance) const {
  const auto way = ways_.find(instance.id);
  return leads_back() && way != ways_.end() ? return_path_->fault(way->second) : why_no_return_path_;
}

std::size_t Control::instances_without_return_path() const {
  if (!leads_back()) return 0;
  return static_cast<std::size_t>(std::ranges::count_if(
      ways_, [this](const auto& entry) { return !return_path_->fault(entry.second).empty(); }));
}

Result<void> Control::check_source_mode(SourceMode wanted) const {
  if (wanted != SourceMode::kTransparent || leads_back()) return {};
  return Error{ErrorCode::kInvalidRequest,
               fmt::format("This node cannot show guests their clients' addresses ({}); leave source_mode "
                           "out, or ask for proxy_v2.",
                           why_no_return_path_.empty() ? fmt::format("its proxy.source_mode is {}",
                                                                     to_string(config_.proxy.source_mode))
                                                       : why_no_return_path_),
               "source_mode"};
}

/// Before a guest can be asked with a client's address, its answers must find the way back. With it comes the
/// source guard.
void Control::make_way(const Instance& instance) {
  if (return_path_ == nullptr || instance.tap_index == 0) return;
  ways_.insert_or_assign(instance.id, return_path_->add(instance.tap_index, guest_addresses(instance)));
}

/// Where something stands in the way of an instance's return path.
void Control::tell_fault(const Instance& instance) {
  const auto way = ways_.find(instance.id);
  if (way == ways_.end()) return;
  const std::string& fault = return_path_->fault(way->second);
  if (fault.empty()) return;
  if (!leads_back()) {
    spdlog::warn("instance {} has no source guard: {}", instance.id, fault);
    return;
  }
  spdlog::warn("instance {} sees the node's address as its clients': {}", instance.id, fault);
  publish(instance, event::InstanceSourceModeChanged{.plan = source_of(instance), .reason = fault});
}

/// After something has changed for connections to come.
void Control::take_sources(const Instance& instance) {
  for (const Forward* forward : registry_.forwards(instance.id)) {
    dataplane_.set_source(forward->id, take_source(instance, *forward));
  }
}

void Control::end_way(const std::string& instance_id) {
  const auto way = ways_.extract(instance_id);
  if (!way.empty()) old_ways_.push_back({way.mapped(), std::chrono::steady_clock::now()});
}

ForwardSource Control::wanted_source(const Instance& instance, const Forward& forward) const {
  const SourceMode wanted =
      forward.source_mode == SourceMode::kAuto ? config_.proxy.source_mode : forward.source_mode;
  ForwardSource source = sources_of(instance, forward.source_mode);
  source.required = wanted == SourceMode::kTransparent;
  return source;
}

/// wanted_source() of a forward that is to be served, with what it takes.
ForwardSource Control::take_source(const Instance& instance, const Forward& forward) {
  const ForwardSource source = wanted_source(instance, forward);
  if (!source.any_transparent() || return_path_->kind() == ReturnPath::Kind::kProgram) {
    without_port_way_.erase(forward.id);
    return source;
  }
  const auto instance_way = ways_.find(instance.id);
  if (instance_way == ways_.end()) return source;  // it is still to come, and before it no connection is made
  const PortWay way{.way = instance_way->second, .guest_port = forward.guest_port};
  const auto known = port_ways_.find(forward.id);
  if (known != port_ways_.end() && known->second.way == way.way) return source;
  if (auto added = return_path_->add_port(way.way, way.guest_port); !added) {
    if (without_port_way_.insert(forward.id).second) {
      spdlog::warn("forward {} of instance {} {}: {}", to_string(forward.id), instance.id,
                   source.required ? "turns clients away, since source_mode is transparent"
                                   : "shows its guest the node's address as its clients'",
                   added.error().detail);
    }
    return source.without_return_path();
  }
  without_port_way_.erase(forward.id);
  port_ways_.insert_or_assign(forward.id, way);
  return source;
}

void Control::end_source(const ForwardId& id) {
  without_port_way_.erase(id);
  const auto way = port_ways_.find(id);
  if (way != port_ways_.end()) way->second.closed = std::chrono::steady_clock::now();
}

/// Looks after the return path: takes away what nobody needs any more, and mends what somebody else took.
void Control::tend_ways() {
  if (return_path_ == nullptr) return;
  const auto now = std::chrono::steady_clock::now();
  std::erase_if(port_ways_, [&](const auto& entry) {
    const auto& [id, way] = entry;
    // Connections may outlive their forward, and a socket that a worker hands over is not counted yet.
    const bool over = way.closed && now - *way.closed >= return_path_kept_for_ && dataplane_.ended(id);
    if (over) return_path_->remove_port(way.way, way.guest_port);
    return over;
  });
  std::erase_if(old_ways_, [&](const OldWay& old) {
    const bool over = now - old.since >= return_path_kept_for_;
    if (over) return_path_->remove(old.way);
    return over;
  });
  for (const auto& [way, fault] : return_path_->mend(kMendLinks)) {
    const auto found = std::ranges::find(ways_, way, [](const auto& entry) { return entry.second; });
    if (found == ways_.end()) continue;
    const Instance& instance = *registry_.find_instance(found->first);
    take_sources(instance);
    tell_fault(instance);
    if (!fault.empty()) continue;
    spdlog::info("instance {} has its {} again", instance.id, leads_back() ? "return path" : "source guard");
    if (leads_back()) {
      publish(instance, event::InstanceSourceModeChanged{.plan = source_of(instance), .reason = {}});
    }
  }
  retry_port_ways();
}

void Control::retry_port_ways() {
  const std::vector<ForwardId> ids(without_port_way_.begin(), without_port_way_.end());
  for (const ForwardId& id : ids) {
    const Forward* forward = registry_.find_forward(id);
    if (forward == nullptr) continue;
    const Instance& instance = *registry_.find_instance(forward->instance_id);
    const ForwardSource source = take_source(instance, *forward);
    if (source.any_transparent()) dataplane_.set_source(id, source);
  }
}

// --- Small parts.

const Profile& Control::profile_of(const Instance& instance) const {
  const auto found = config_.profiles.find(instance.profile);
  // A profile that the configuration no longer has: the default's limits.
  return found != config_.profiles.end() ? found->second : config_.profiles.find("default")->second;
}

bool Control::is_guest(const IpAddress& address, std::int32_t link) const {
  if (is_guest_address(address, config_.guests.networks)) return true;
  std::array<char, IF_NAMESIZE> name{};
  if (link == 0 || address.is_loopback() ||
      ::if_indextoname(static_cast<unsigned>(link), name.data()) == nullptr)
    return false;
  return registry_.has_tap(link, name.data());
}

void Control::tell_refused(const CloseRecord& record) {
  explain(record);
  const Forward* forward = registry_.find_forward(record.forward->route.id);
  // Records come a little late: it may be another owner's by now.
  if (forward == nullptr || record.is_former_owners()) return;
  if (!may_tell_refused(forward->instance_id)) return;
  publish(*registry_.find_instance(forward->instance_id),
          event::ConnectionRefused{
              .forward = of_event(*forward), .client = to_endpoint(record.client), .cause = record.cause});
}

/// A flood of clients must not push everything else out of the events that are kept, nor other instances'
/// clients.
bool Control::may_tell_refused(const std::string& instance_id) {
  const auto now = std::chrono::steady_clock::now();
  if (now >= refused_told_until_) {
    refused_told_until_ = now + std::chrono::milliseconds(100);
    refused_told_all_ = 0;
    refused_told_.clear();
  }
  int& told = refused_told_[instance_id];
  if (told >= kRefusedEventsOfInstance || refused_told_all_ >= kRefusedEventsMax) return false;
  ++told;
  ++refused_told_all_;
  return true;
}

/// What only the operator can do something about, once a minute.
void Control::explain(const CloseRecord& record) {
  const auto now = std::chrono::steady_clock::now();
  if (record.error != EADDRNOTAVAIL || now < explain_again_) return;
  explain_again_ = now + std::chrono::minutes(1);
  spdlog::warn(
      "no source port is free towards {} of instance {}: its clients are reset. Each connection takes one of "
      "net.ipv4.ip_local_port_range, and without CAP_NET_ADMIN keeps it for a minute after its end; give "
      "portwayd CAP_NET_ADMIN, set net.ipv4.tcp_tw_reuse to 1, or widen the range",
      to_string(record.guest()), record.forward->route.instance_id);
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
