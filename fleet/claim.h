// Which node has an instance. There is one claim for each instance in etcd. A node writes it, by comparison
// with what it has read, before it publishes anything about the instance. So of two nodes that have the same
// instance one has the claim.
//
// The session that began later wins, by etcd's clock. A node that does not have the claim ends its session:
// the instance was registered elsewhere, or it was deleted while the node was away.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/forward.h"

namespace portway {

struct Claim {
  std::string node;  // whose it is, or who has deleted the instance
  Uuid session_id{};
  Timestamp began{};   // the session
  bool ended = false;  // the instance was deleted; such a claim goes with its lease, after a day

  friend bool operator==(const Claim&, const Claim&) = default;
};

std::string to_json(const Claim& claim);
/// nullopt: it is none.
std::optional<Claim> parse_claim(std::string_view json);

/// What a node that has a session finds in etcd.
enum class ClaimVerdict : std::uint8_t {
  kMine,    // the claim is this session's already
  kFree,    // it is to be written: there is none, or an older one
  kLosing,  // a newer session has it, or the instance was deleted after this one began
  kTwin,    // another node has it with this very session: the node was renamed, or copied with its store
};

/// `own` is what the claim of the node's own session would be. `found`: nullopt if there is none, or
/// something that is no claim. What a node itself has written never stands in the way of another session
/// of its own, whatever the clock said.
ClaimVerdict judge(const Claim& own, const std::optional<Claim>& found);

}  // namespace portway
