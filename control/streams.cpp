#include "control/streams.h"

#include <fmt/format.h>

#include <algorithm>
#include <list>
#include <utility>

namespace portway {
namespace {

Error too_many(std::string detail, std::size_t limit, std::size_t current) {
  return {.code = ErrorCode::kConnectionLimit,
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
  Result<void> check_share(const Principal& caller) const;

  const KeyRing* keys;       // null once Streams is gone
  const Registry* registry;  // the same
  const StreamLimits limits;
  std::list<StreamTicket*> open;
};

bool Streams::State::key_holds(const StreamTerms& terms) const {
  if (keys == nullptr) return false;
  // A user of the Unix socket has no key; api.admin_uids does not change while the daemon runs.
  return terms.caller.key_id.is_nil() || keys->find(terms.caller.key_id) != nullptr;
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
      std::ranges::count_if(open, [&](const StreamTicket* ticket) { return wanted(ticket->caller()); }));
}

Result<void> Streams::State::check_share(const Principal& caller) const {
  const bool admin = caller.role == Role::kAdmin;
  const std::size_t share = admin ? limits.admin : limits.tenant;
  const std::size_t own =
      count([&](const Principal& other) { return other.role == caller.role && other.owner == caller.owner; });
  if (own >= share) {
    return too_many(fmt::format("{} has {} streams open (events, checks, captures), as many as one owner may "
                                "have; end one, or let several programs share one.",
                                in_quotes(caller.owner), own),
                    share, own);
  }
  if (open.size() >= limits.node) {
    return too_many("The node has as many streams open as it can; end one, or try again later.", limits.node,
                    open.size());
  }
  const std::size_t tenants = count([](const Principal& other) { return other.role != Role::kAdmin; });
  const std::size_t tenants_share = limits.node - limits.admins_reserve;
  if (!admin && tenants >= tenants_share) {
    return too_many("The tenants of this node have as many streams open as they may; try again later.",
                    tenants_share, tenants);
  }
  return {};
}

Streams::Streams(const KeyRing& keys, const Registry& registry, const StreamLimits& limits)
    : state_(std::make_shared<State>(keys, registry, limits)) {}

Streams::~Streams() {
  state_->keys = nullptr;
  state_->registry = nullptr;
  recheck();
}

Result<std::unique_ptr<StreamTicket>> Streams::open(const StreamTerms& terms) {
  if (auto room = state_->check_share(terms.caller); !room) return room.error();
  return std::make_unique<StreamTicket>(state_, terms);
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
