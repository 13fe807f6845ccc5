#include "control/streams.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <list>
#include <utility>

namespace portway {
namespace {

constexpr auto kKindNames =
    std::to_array<std::string_view>({"event streams", "checks", "captures", "backups", "relayed streams"});
static_assert(kKindNames.size() == kStreamKinds);

Error too_many(ErrorCode code, std::string detail, std::size_t limit, std::size_t current) {
  return {.code = code,
          .detail = std::move(detail),
          .limit = static_cast<std::int64_t>(limit),
          .current = static_cast<std::int64_t>(current)};
}

}  // namespace

struct Streams::State {
  State(const KeyRing& key_ring, const Registry& instances, const StreamLimits& stream_limits)
      : keys(&key_ring), registry(&instances), limits(stream_limits) {}

  bool key_holds(const StreamTerms& terms) const;
  bool subject_holds(const StreamTerms& terms) const;
  template <class Wanted>
  std::size_t count(Wanted wanted) const;
  Result<void> check_share(const StreamTerms& terms) const;

  const KeyRing* keys;       // null once Streams is gone
  const Registry* registry;  // the same
  StreamLimits limits;
  std::list<StreamTicket*> open;
};

bool Streams::State::key_holds(const StreamTerms& terms) const {
  return keys != nullptr && keys->holds(terms.caller);
}

bool Streams::State::subject_holds(const StreamTerms& terms) const {
  if (!terms.subject) return true;
  const StreamSubject& subject = *terms.subject;
  const Instance* instance = registry == nullptr ? nullptr : registry->find_instance(subject.instance_id);
  if (instance == nullptr || instance->state != InstanceState::kRunning ||
      instance->session_id != subject.session_id || !terms.caller.sees(*instance)) {
    return false;
  }
  // Armed since by another interface of the same name.
  return subject.tap_index == 0 || instance->tap_index == 0 || instance->tap_index == subject.tap_index;
}

template <class Wanted>
std::size_t Streams::State::count(Wanted wanted) const {
  return static_cast<std::size_t>(
      std::ranges::count_if(open, [&](const StreamTicket* ticket) { return wanted(*ticket); }));
}

Result<void> Streams::State::check_share(const StreamTerms& terms) const {
  const Principal& caller = terms.caller;
  const bool admin = caller.role == Role::kAdmin;
  const std::size_t share = admin ? limits.admin : limits.tenant;
  const auto is_own = [&](const StreamTicket& other) {
    return other.caller().role == caller.role && other.caller().owner == caller.owner;
  };
  const std::size_t own = count(is_own);
  if (own >= share) {
    return too_many(
        ErrorCode::kStreamLimit,
        fmt::format("{} has {} streams open (events, checks, captures, backups), as many as one owner may "
                    "have{}; end one, or let several programs share one.",
                    in_quotes(caller.owner), own, admin ? "" : " (owners.max_streams)"),
        share, own);
  }
  const std::size_t of_instance = count([&](const StreamTicket& other) {
    return is_own(other) && other.caller().instance_id == caller.instance_id;
  });
  if (!caller.instance_id.empty() && of_instance >= limits.instance) {
    return too_many(ErrorCode::kStreamLimit,
                    fmt::format("The keys for instance {} have {} streams open (events, checks), as many as "
                                "they may have; end one, or let several programs share one.",
                                in_quotes(caller.instance_id), of_instance),
                    limits.instance, of_instance);
  }
  const std::size_t of_kind =
      count([&](const StreamTicket& other) { return is_own(other) && other.kind() == terms.kind; });
  if (of_kind >= share_of_one_kind(share)) {
    return too_many(
        ErrorCode::kStreamLimit,
        fmt::format("{} has {} {} open, as many as one owner may have of this kind; end one, or let "
                    "several programs share one.",
                    in_quotes(caller.owner), of_kind, to_string(terms.kind)),
        share_of_one_kind(share), of_kind);
  }
  if (open.size() >= limits.node) {
    return too_many(ErrorCode::kConnectionLimit,
                    "The node has as many streams open as it can; end one, or try again later.", limits.node,
                    open.size());
  }
  const std::size_t tenants =
      count([](const StreamTicket& other) { return other.caller().role != Role::kAdmin; });
  const std::size_t tenants_share = limits.node - limits.admins_reserve;
  if (!admin && tenants >= tenants_share) {
    return too_many(ErrorCode::kConnectionLimit,
                    "The tenants of this node have as many streams open as they may; try again later.",
                    tenants_share, tenants);
  }
  return {};
}

std::string_view to_string(StreamKind kind) {
  return kKindNames[static_cast<std::size_t>(kind)];
}

Streams::Streams(const KeyRing& keys, const Registry& registry, const StreamLimits& limits)
    : state_(std::make_shared<State>(keys, registry, limits)) {}

Streams::~Streams() {
  state_->keys = nullptr;
  state_->registry = nullptr;
  recheck();
}

Result<std::unique_ptr<StreamTicket>> Streams::open(const StreamTerms& terms) {
  if (auto room = state_->check_share(terms); !room) return room.error();
  return std::make_unique<StreamTicket>(state_, terms);
}

void Streams::set_tenant_share(std::size_t streams) {
  state_->limits.tenant = streams;
}

void Streams::recheck() {
  for (const StreamTicket* ticket : state_->open) {
    if (ticket->recheck_) ticket->recheck_();
  }
}

StreamTicket::StreamTicket(std::shared_ptr<Streams::State> state, StreamTerms terms)
    : state_(std::move(state)),
      terms_(std::move(terms)),
      place_(state_->open.insert(state_->open.end(), this)) {}

StreamTicket::~StreamTicket() {
  state_->open.erase(place_);
}

StreamTicket::Validity StreamTicket::validity() const {
  if (!state_->key_holds(terms_)) return Validity::kKeyGone;
  return state_->subject_holds(terms_) ? Validity::kValid : Validity::kSubjectGone;
}

}  // namespace portway
