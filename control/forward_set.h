// The set of forwards that an instance should have, compared with the one that it has.
//
// A forward of the set is known by its label or, without one, by where it leads; one of a row (`host_ports`)
// by both. One that is there already stays, with its id and host port, and the rest of it becomes what the
// set says, its guest port included. One that leads to another socket, or has another host port than the one
// asked for, is replaced, and so is a row that is not complete. What is not in the set is removed.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/forward.h"
#include "control/policy.h"
#include "control/status.h"

namespace portway {

/// Indices into the specs, and forwards as they are now.
struct ForwardSetPlan {
  std::vector<std::size_t> to_create;
  struct Update {
    Forward forward;
    ForwardChange change;
  };
  std::vector<Update> to_update;
  std::vector<Forward> unchanged;
  std::vector<Forward> to_remove;
};

/// What came of it, in the order of the request; `removed` in that of their creation.
struct ForwardSetOutcome {
  std::vector<ForwardStatus> created;  // empty in a dry run: `to_create` says which
  std::vector<std::size_t> to_create;  // entries of the list
  std::vector<ForwardStatus> updated;
  std::vector<ForwardStatus> unchanged;
  std::vector<ForwardStatus> removed;
};

/// kInvalidRequest, with the field "port_forwards[1].label" or "port_forwards[1].guest_port", if two of the
/// specs cannot be told apart. Limits that an admin has set stay if a tenant's set does not have them.
Result<ForwardSetPlan> plan_forward_set(Role role, const Target& of_instance, const ForwardList& list,
                                        std::span<const Forward* const> existing);

}  // namespace portway
