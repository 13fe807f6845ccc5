#include "api/control.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
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

Control::Control(const Config& config, Store& store, Dataplane& dataplane, ApiStats& stats)
    : config_(config),
      store_(store),
      dataplane_(dataplane),
      stats_(stats),
      ports_(config.ports.range),
      keys_(config.api.rate_limit_per_second) {}

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
  // The configuration and the host's addresses may have changed since: what led to a guest then may lead into
  // the node now.
  std::map<std::string, Error, std::less<>> refused;  // by instance
  for (Instance& instance : *instances) {
    auto checked = check_guest_address(instance.guest_address, config_.guests.networks, *host_addresses);
    if (!checked) refused.emplace(instance.id, checked.error());
    registry_.put_instance(std::move(instance));
  }
  bind_deadline_ = std::chrono::steady_clock::now() + kBindAgainFor;
  for (const Forward& forward : *forwards) {
    const Instance* instance = registry_.find_instance(forward.instance_id);
    if (instance == nullptr) continue;
    const auto why_not = refused.find(instance->id);
    restore_forward(*instance, forward, why_not == refused.end() ? nullptr : &why_not->second);
  }
  spdlog::info("restored {} instances and {} forwards, {} of which failed", registry_.instance_count(),
               registry_.forward_count(), failures_.size());
  return {};
}

void Control::restore_forward(const Instance& instance, const Forward& forward, const Error* refused) {
  // A forward may be older than the configured range: it keeps its port, which the pool then does not count.
  if (ports_.range().contains(forward.host_port)) (void)ports_.take(forward.host_port);
  registry_.add_forward(forward);
  auto port = refused == nullptr ? bind_again(forward.host_port) : Result<BoundPort>(*refused);
  if (!port) {
    spdlog::error("forward {} of instance {} is not served: {}", to_string(forward.id), instance.id,
                  port.error().detail);
    failures_.emplace(forward.id, port.error().detail);
    return;
  }
  serve(instance, forward, std::move(*port));
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

// --- Keys.

Result<Control::NewKey> Control::create_key(Role role, std::string owner) {
  if (auto checked = check_owner(owner); !checked) return checked.error();
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
                 fmt::format("This is the key in {}; replace that file and restart to change it.",
                             config_.api.admin_key_file)};
  }
  if (keys_.find(id) == nullptr) return Error{ErrorCode::kNotFound, "There is no API key with this id."};
  if (auto stored = store_.delete_api_key(id); !stored) return stored.error();
  keys_.remove(id);
  spdlog::info("key {} deleted by key {}", to_string(id), to_string(caller.key_id));
  return {};
}

void Control::add_admin_key(std::string_view secret) {
  ApiKey key;
  key.id = admin_key_id_ = make_uuid();
  key.role = Role::kAdmin;
  key.owner = "admin";
  key.secret_sha256 = sha256(secret);
  key.created_at = now();
  keys_.add(key);
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
  if (!created && known->state == InstanceState::kRunning && same_registration(*known, asked)) {
    return PutInstance{*known, false};
  }
  asked.session_id = make_uuid();
  asked.state = InstanceState::kRunning;
  asked.created_at = created ? now() : known->created_at;
  if (auto stored = store_.start_session(asked); !stored) return stored.error();
  end_forwards(registry_.remove_forwards(asked.id), ClosePolicy::kReset, CloseHow::kInstanceStopped);
  const Instance& instance = registry_.put_instance(std::move(asked));
  spdlog::info("instance {}: session {} at {} behind {}", instance.id, to_string(instance.session_id),
               instance.guest_address.to_string(), instance.tap);
  return PutInstance{instance, created};
}

Result<void> Control::stop_instance(std::string_view id) {
  const Instance* known = registry_.find_instance(id);
  if (known == nullptr) return no_such_instance();
  if (known->state == InstanceState::kStopped) return {};
  Instance stopped = *known;
  stopped.state = InstanceState::kStopped;
  if (auto stored = store_.end_session(stopped); !stored) return stored.error();
  end_forwards(registry_.remove_forwards(id), ClosePolicy::kReset, CloseHow::kInstanceStopped);
  spdlog::info("instance {}: session {} ended", stopped.id, to_string(stopped.session_id));
  registry_.put_instance(std::move(stopped));
  return {};
}

Result<void> Control::delete_instance(std::string_view id) {
  if (registry_.find_instance(id) == nullptr) return no_such_instance();
  if (auto stored = store_.delete_instance(id); !stored) return stored.error();
  spdlog::info("instance {} deleted", id);
  end_forwards(registry_.remove_instance(id), ClosePolicy::kReset, CloseHow::kInstanceStopped);
  return {};
}

Result<const Instance*> Control::find_instance(const Principal& caller, std::string_view id) const {
  const Instance* instance = registry_.find_instance(id);
  if (instance == nullptr || !caller.sees(*instance)) return no_such_instance();
  return instance;
}

// --- Forwards.

Result<ForwardStatus> Control::create_forward(const Principal& caller, std::string_view instance_id,
                                              const ForwardSpec& spec) {
  if (auto running = check_running(); !running) return running.error();
  const auto found = find_instance(caller, instance_id);
  if (!found) return found.error();
  const Instance& instance = **found;
  if (instance.state != InstanceState::kRunning) return not_running(instance);
  const ForwardLimits limits{.role = caller.role,
                             .profile = profile_of(instance),
                             .forwards_now = registry_.forward_count(instance.id),
                             .host_ports = ports_.range()};
  if (auto checked = check_forward(spec, limits); !checked) return checked.error();

  auto lease = lease_port(spec.host_port);
  if (!lease) return lease.error();
  Forward forward{.id = make_uuid(),
                  .instance_id = instance.id,
                  .session_id = instance.session_id,
                  .guest_port = spec.guest_port,
                  .host_port = lease->port(),
                  .protocol = spec.protocol,
                  .label = spec.label,
                  .created_at = now()};
  if (auto stored = store_.add_forward(forward); !stored) return stored.error();
  // From here on it is promised, and nothing can fail.
  const Forward& published = registry_.add_forward(std::move(forward));
  serve(instance, published, lease->keep());
  return status_of(published);
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
  if (auto removed = registry_.remove_forward(id))
    end_forwards({std::move(*removed)}, policy, CloseHow::kForwardDeleted);
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
  return {.forward = forward,
          .bind_address = config_.node.public_addresses.front().to_string(),
          .failure = failure == failures_.end() ? std::string() : failure->second};
}

void Control::serve(const Instance& instance, const Forward& forward, BoundPort port) {
  dataplane_.open({.id = forward.id,
                   .upstream = {instance.guest_address, forward.guest_port},
                   .tap = instance.tap,
                   .instance_id = instance.id},
                  std::move(port));
}

void Control::end_forwards(const std::vector<Forward>& forwards, ClosePolicy policy, CloseHow why) {
  for (const Forward& forward : forwards) {
    dataplane_.close(forward.id, policy, why);
    failures_.erase(forward.id);
    if (ports_.range().contains(forward.host_port)) ports_.give_back(forward.host_port);
  }
}

// --- Small parts.

const Profile& Control::profile_of(const Instance& instance) const {
  const auto found = config_.profiles.find(instance.profile);
  // A profile that the configuration no longer has: the default's limits.
  return found != config_.profiles.end() ? found->second : config_.profiles.find("default")->second;
}

Result<void> Control::check_running() const {
  if (!draining_) return {};
  return Error{ErrorCode::kDraining, "This node's daemon is going down; try again in a moment."};
}

}  // namespace portway
