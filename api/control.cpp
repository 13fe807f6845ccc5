#include "api/control.h"

#include <fmt/format.h>
#include <net/if.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <functional>
#include <map>
#include <thread>
#include <utility>

namespace portway {
namespace {

// How long restore() waits for ports that a process killed a moment ago still holds: a listener armed in an
// io_uring is given back some milliseconds after its process is gone.
constexpr std::chrono::milliseconds kBindAgainFor(1000);
constexpr std::chrono::milliseconds kBindAgainEvery(5);

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

/// The same registration: what the orchestrator sends again when it did not see the first answer.
bool same_registration(const Instance& a, const Instance& b) {
  return a.guest_address == b.guest_address && a.tap == b.tap && a.owner == b.owner &&
         a.profile == b.profile && a.vmm_pid == b.vmm_pid;
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
  BoundPort keep() {
    ports_ = nullptr;
    return std::move(port_);
  }

 private:
  PortAllocator* ports_;
  BoundPort port_;
};

Control::Control(Config config, const Parts& parts)
    : config_(std::move(config)),
      store_(parts.store),
      dataplane_(parts.dataplane),
      watch_(parts.watch),
      events_(parts.events),
      stats_(parts.stats),
      return_path_(parts.return_path),
      why_no_return_path_(parts.why_no_return_path),
      return_path_kept_for_(parts.return_path_kept_for),
      ports_(config_.ports.range),
      keys_(config_.api.rate_limit_per_second) {
  watch_.set_callbacks(
      {.on_armed = [this](const std::string& id, std::int32_t tap_index) { on_armed(id, tap_index); },
       .on_end = [this](const std::string& id, SessionEnd why) { end_session(id, why); }});
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
  for (Instance& instance : *instances) {
    const std::int32_t tap_index = instance.tap_index;
    if (instance.state == InstanceState::kRunning) {
      const bool rebooted = !instance.boot_id.empty() && instance.boot_id != boot_id_;
      const auto why = rebooted ? SessionEnd::kNodeRebooted : watch_.watch(instance);
      if (why) over.emplace(instance.id, *why);
    }
    const Instance& known = registry_.put_instance(std::move(instance));
    if (known.tap_index != tap_index) {
      on_armed(known.id, known.tap_index);
    } else if (known.state == InstanceState::kRunning && !over.contains(known.id)) {
      make_way(known);
      tell_fault(known);
    }
  }
  bind_deadline_ = std::chrono::steady_clock::now() + kBindAgainFor;
  for (const Forward& forward : *forwards) {
    const Instance* instance = registry_.find_instance(forward.instance_id);
    if (instance == nullptr) continue;
    // A forward may be older than the configured range: it keeps its port, which the pool then does not
    // count.
    (void)ports_.take(forward.host_port);
    registry_.add_forward(forward);
    if (!over.contains(instance->id)) restore_forward(*instance, forward, *host_addresses);
  }
  for (const auto& [id, why] : over) end_session(id, why);
  spdlog::info("restored {} instances and {} forwards, {} of which failed; {} sessions ended meanwhile",
               registry_.instance_count(), registry_.forward_count(), failures_.size(), over.size());
  return {};
}

void Control::restore_forward(const Instance& instance, const Forward& forward,
                              std::span<const IpAddress> host_addresses) {
  auto port = bind_for(instance, forward, host_addresses);
  if (port) return serve(instance, forward, std::move(*port));
  spdlog::error("forward {} of instance {} is not served: {}", to_string(forward.id), instance.id,
                port.error().detail);
  failures_.emplace(forward.id, port.error().detail);
  publish("forward.failed", instance, forward, {{"reason", port.error().detail}});
}

/// The port of a forward that exists. The configuration and the host's addresses may have changed since it
/// was made: what led to a guest then may lead into the node now.
Result<BoundPort> Control::bind_for(const Instance& instance, const Forward& forward,
                                    std::span<const IpAddress> host_addresses) {
  auto checked = check_guest_address(instance.guest_address, config_.guests.networks, host_addresses);
  if (!checked) return checked.error();
  return bind_again(forward.host_port);
}

Result<BoundPort> Control::bind_again(std::uint16_t port) {
  for (;;) {
    auto bound = dataplane_.bind(port);
    if (bound || bound.error().code != ErrorCode::kHostPortTaken ||
        std::chrono::steady_clock::now() >= bind_deadline_) {
      return bound;
    }
    std::this_thread::sleep_for(
        kBindAgainEvery);  // no event tells that a port is free; nothing runs yet that this holds up
  }
}

// --- While running.

void Control::retry() {
  std::vector<std::string> unsaved;
  for (const auto& [id, end] : unsaved_ends_) unsaved.push_back(id);
  for (const std::string& id : unsaved) {
    const Instance* instance = registry_.find_instance(id);
    if (instance == nullptr || store_.end_session(*instance)) saved_end(id);
  }
  if (!failures_.empty() && !draining_) retry_failed_forwards();
  tend_ways();
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
    publish("forward.listening", instance, *forward);
  }
}

std::vector<std::string> Control::reload(const Config& wanted) {
  std::vector<std::string> need_restart = take_live_keys(config_, wanted);
  keys_.set_rate_limit(config_.api.rate_limit_per_second);
  return need_restart;
}

// --- Keys.

Result<Control::NewKey> Control::create_key(Role role, std::string owner) {
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
  spdlog::info("key {} deleted by key {}", to_string(id), to_string(caller.key_id));
  return {};
}

void Control::set_admin_key(std::string_view secret) {
  const Sha256 hash = sha256(secret);
  const ApiKey* known = keys_.find(admin_key_id_);
  if (known != nullptr && known->secret_sha256 == hash) return;  // who uses it goes on undisturbed
  keys_.remove(admin_key_id_);
  ApiKey key;
  key.id = admin_key_id_ = make_uuid();
  key.role = Role::kAdmin;
  key.owner = "admin";
  key.secret_sha256 = hash;
  key.created_at = now();
  keys_.add(key);
  streams_.recheck();
}

// --- Instances.

Result<Control::PutInstance> Control::put_instance(Instance asked) {
  if (auto running = check_running(); !running) return running.error();
  const auto host_addresses = local_addresses();
  if (!host_addresses) return host_addresses.error();
  const InstanceLimits limits{config_.guests.networks, *host_addresses, config_.profiles};
  if (auto checked = check_instance(asked, limits); !checked) return checked.error();

  const Instance* known = registry_.find_instance(asked.id);
  const bool created = known == nullptr;
  const bool was_running = !created && known->state == InstanceState::kRunning;
  if (was_running && same_registration(*known, asked)) return PutInstance{*known, false};
  if (auto free = check_tap_is_free(asked); !free) return free.error();
  asked.session_id = make_uuid();
  asked.state = InstanceState::kRunning;
  asked.created_at = created ? now() : known->created_at;
  asked.boot_id = boot_id_;
  if (watch_.watch(asked)) {  // a new session has no tap to lose, so this is its process
    watch_again(asked.id);
    return Error{
        ErrorCode::kInvalidRequest,
        fmt::format("There is no process {}; give the pid of the running virtual machine monitor, or "
                    "leave vmm_pid out.",
                    *asked.vmm_pid),
        "vmm_pid"};
  }
  if (auto stored = store_.start_session(asked); !stored) {
    watch_again(asked.id);
    return stored.error();
  }
  saved_end(asked.id);
  const std::vector<Forward> ended = registry_.remove_forwards(asked.id);
  if (!created) stop_serving(known->session_id, ended, CloseHow::kInstanceStopped);
  give_back_ports(ended);
  if (was_running) publish("instance.stopped", *known, {{"reason", to_string(SessionEnd::kReplaced)}});
  end_way(asked.id);
  const Instance& instance = registry_.put_instance(std::move(asked));
  streams_.recheck();
  make_way(instance);
  spdlog::info("instance {}: session {} at {} behind {}", instance.id, to_string(instance.session_id),
               instance.guest_address.to_string(), instance.tap);
  publish("instance.started", instance);
  tell_fault(instance);
  return PutInstance{instance, created};
}

/// Two running instances behind one tap would let the clients of one reach the other's machine.
Result<void> Control::check_tap_is_free(const Instance& asked) const {
  for (const Instance* other : registry_.instances()) {
    if (other->id == asked.id || other->state != InstanceState::kRunning || other->tap != asked.tap) continue;
    return Error{ErrorCode::kTapInUse,
                 fmt::format("tap {} belongs to the running instance {}; stop that one first, or give this "
                             "machine's own tap.",
                             in_quotes(asked.tap), other->id),
                 "tap"};
  }
  return {};
}

/// After a registration that came to nothing: as it was before.
void Control::watch_again(const std::string& id) {
  watch_.forget(id);
  const Instance* known = registry_.find_instance(id);
  if (known == nullptr || known->state != InstanceState::kRunning) return;
  Instance instance = *known;
  if (const auto over = watch_.watch(instance)) {
    end_session(id, *over);
  } else {
    registry_.put_instance(std::move(instance));
  }
}

void Control::on_armed(const std::string& instance_id, std::int32_t tap_index) {
  const Instance* known = registry_.find_instance(instance_id);
  if (known == nullptr) return;
  Instance instance = *known;
  instance.tap_index = tap_index;
  // Unsaved, the session would be armed again after a restart, by whatever tap has its name then.
  if (auto stored = store_.put_instance(instance); !stored) spdlog::error("{}", stored.error().detail);
  const Instance& armed = registry_.put_instance(std::move(instance));
  streams_.recheck();
  make_way(armed);
  take_sources(armed);
  // Afterwards: until it has a device, no connection to the guest is made.
  dataplane_.set_device(armed.session_id, armed.tap_index);
  publish("instance.tap_up", armed);
  tell_fault(armed);
}

Result<void> Control::stop_instance(std::string_view id) {
  const Instance* known = registry_.find_instance(id);
  if (known == nullptr) return no_such_instance();
  const bool running = known->state == InstanceState::kRunning;
  if (!running && !unsaved_ends_.contains(id)) return {};
  Instance stopped = *known;
  stopped.state = InstanceState::kStopped;
  if (running) stopped.ended = SessionEnd::kStopped;
  if (auto stored = store_.end_session(stopped); !stored) return stored.error();
  if (running) {
    give_back_ports(end_in_memory(std::move(stopped)));
  } else {
    saved_end(stopped.id);
  }
  return {};
}

void Control::end_session(std::string_view id, SessionEnd why) {
  const Instance* known = registry_.find_instance(id);
  if (known == nullptr || known->state == InstanceState::kStopped) return;
  Instance stopped = *known;
  stopped.state = InstanceState::kStopped;
  stopped.ended = why;
  unsaved_ends_[stopped.id] = end_in_memory(stopped);
  if (auto stored = store_.end_session(stopped); !stored) {
    spdlog::error("the end of instance {}'s session is not on disk yet and is tried again: {}", stopped.id,
                  stored.error().detail);
    return;
  }
  saved_end(stopped.id);
}

/// Its forwards are not served any more; their ports are still taken.
std::vector<Forward> Control::end_in_memory(Instance stopped) {
  watch_.forget(stopped.id);
  end_way(stopped.id);
  std::vector<Forward> forwards = registry_.remove_forwards(stopped.id);
  stop_serving(stopped.session_id, forwards, close_how(*stopped.ended));
  spdlog::info("instance {}: session {} ended with {} forwards: {}", stopped.id,
               to_string(stopped.session_id), forwards.size(), to_string(*stopped.ended));
  publish("instance.stopped", stopped,
          {{"reason", to_string(*stopped.ended)}, {"port_forwards", forwards.size()}});
  registry_.put_instance(std::move(stopped));
  streams_.recheck();
  return forwards;
}

/// The store has no forwards of the instance's earlier sessions any more.
void Control::saved_end(const std::string& instance_id) {
  const auto unsaved = unsaved_ends_.extract(instance_id);
  if (!unsaved.empty()) give_back_ports(unsaved.mapped());
}

Result<void> Control::delete_instance(std::string_view id) {
  const Instance* known = registry_.find_instance(id);
  if (known == nullptr) return no_such_instance();
  if (auto stored = store_.delete_instance(id); !stored) return stored.error();
  const Instance deleted = *known;
  watch_.forget(id);
  end_way(deleted.id);
  saved_end(deleted.id);
  const std::vector<Forward> forwards = registry_.remove_instance(id);
  streams_.recheck();
  stop_serving(deleted.session_id, forwards, CloseHow::kInstanceStopped);
  give_back_ports(forwards);
  spdlog::info("instance {} deleted", deleted.id);
  publish("instance.deleted", deleted);
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
  if (auto stored = store_.add_forwards(forwards, answer ? &*answer : nullptr); !stored)
    return stored.error();
  // From here on they are promised, and nothing can fail.
  for (std::size_t i = 0; i < forwards.size(); ++i) {
    const Forward& published = registry_.add_forward(std::move(forwards[i]));
    serve(instance, published, leases[i]->keep());
    publish("forward.created", instance, published);
  }
  return made;
}

Result<ForwardStatus> Control::update_forward(const Principal& caller, std::string_view instance_id,
                                              std::string_view forward_id, const ForwardChange& change) {
  auto found = find_forward(caller, instance_id, forward_id);
  if (!found) return found.error();
  Forward forward = std::move(found->forward);
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
  const Forward& updated = registry_.update_forward(std::move(forward));
  const Instance& instance = *registry_.find_instance(instance_id);
  if (!failures_.contains(updated.id)) {
    dataplane_.set_limits(updated.id, updated.limits);
    dataplane_.set_source(updated.id, take_source(instance, updated));
  }
  publish("forward.updated", instance, updated);
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
  const std::vector<Forward> removed = {*registry_.remove_forward(id)};
  dataplane_.close(id, policy, CloseHow::kForwardDeleted);
  forget_serving(removed);
  give_back_ports(removed);
  publish("forward.deleted", *registry_.find_instance(instance_id), removed.front());
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
  if (source.plan == SourcePlan::kTransparent && without_port_way_.contains(forward.id))
    source.plan = SourcePlan::kNoReturnPath;
  return {.forward = forward,
          .bind_address = config_.node.public_addresses.front().to_string(),
          .failure = failure == failures_.end() ? std::string() : failure->second,
          .stats = dataplane_.forward_stats(forward.id),
          .source = source};
}

void Control::serve(const Instance& instance, const Forward& forward, BoundPort port) {
  dataplane_.open({.id = forward.id,
                   .session_id = instance.session_id,
                   .upstream = {instance.guest_address, forward.guest_port},
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

SourcePlan Control::source_of(const Instance& instance, SourceMode wanted) const {
  if (wanted == SourceMode::kPlain) return SourcePlan::kPlain;
  if (wanted == SourceMode::kProxyV2) return SourcePlan::kProxyV2;
  const SourcePlan node = node_source();
  if (node != SourcePlan::kTransparent || instance.tap_index == 0) return node;  // its way is still to come
  const auto way = ways_.find(instance.id);
  const bool comes_back = way != ways_.end() && return_path_->fault(way->second).empty();
  return comes_back ? SourcePlan::kTransparent : SourcePlan::kNoReturnPath;
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
  ways_.insert_or_assign(instance.id, return_path_->add(instance.tap_index, instance.guest_address));
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
  publish("instance.source_mode_changed", instance,
          {{"source_mode", source_mode(source_of(instance))}, {"reason", fault}});
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
  return {source_of(instance, forward.source_mode), wanted == SourceMode::kTransparent};
}

/// wanted_source() of a forward that is to be served, with what it takes.
ForwardSource Control::take_source(const Instance& instance, const Forward& forward) {
  const ForwardSource source = wanted_source(instance, forward);
  if (source.plan != SourcePlan::kTransparent || return_path_->kind() == ReturnPath::Kind::kProgram) {
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
    return {SourcePlan::kNoReturnPath, source.required};
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
      publish("instance.source_mode_changed", instance, {{"source_mode", source_mode(source_of(instance))}});
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
    if (source.plan == SourcePlan::kTransparent) dataplane_.set_source(id, source);
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
  if (forward == nullptr) return;
  publish("connection.refused", *registry_.find_instance(forward->instance_id), *forward,
          {{"client", to_string(to_endpoint(record.client))},
           {"side", to_string(record.cause.side)},
           {"how", to_string(record.cause.how)}});
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
      to_string(record.forward->route.upstream), record.forward->route.instance_id);
}

void Control::publish(std::string_view type, const Instance& instance, const boost::json::object& more) {
  boost::json::object data{{"instance_id", instance.id},
                           {"session_id", to_string(instance.session_id)},
                           {"owner", instance.owner}};
  for (const auto& [key, value] : more) data[key] = value;
  events_.publish(type, instance.owner, data);
}

void Control::publish(std::string_view type, const Instance& instance, const Forward& forward,
                      const boost::json::object& more) {
  boost::json::object data{{"forward_id", to_string(forward.id)},
                           {"guest_port", forward.guest_port},
                           {"host_port", forward.host_port},
                           {"label", forward.label}};
  for (const auto& [key, value] : more) data[key] = value;
  publish(type, instance, data);
}

Result<void> Control::check_running() const {
  if (!draining_) return {};
  return Error{ErrorCode::kDraining, "This node's daemon is going down; try again in a moment."};
}

}  // namespace portway
