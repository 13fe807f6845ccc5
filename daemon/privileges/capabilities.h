// Least privilege: the process keeps the capabilities of base/capabilities.h that it was given and can use,
// and no others, in any set. It never gets new ones (no_new_privs, prctl(2)).
//
// A capability set belongs to a thread, so this comes first in main(), before there are others. What is kept
// is kept for the whole run: an upgrade (daemon/upgrade.h) executes a binary that needs at its start what
// this one needed. User 0 gets it from the bounding set then; every other user from the ambient set, into
// which what came by the file's capabilities is raised as well, because no_new_privs would end those at the
// next execve(2).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/capabilities.h"
#include "config/config.h"

namespace portway {

struct Privileges {
  std::uint64_t capabilities = 0;  // effective; bits as in /proc/PID/status
  std::string problem = {};        // why not everything could be dropped; empty if it was

  /// "CAP_NET_ADMIN, CAP_BPF", or "none".
  std::string names() const;
};

/// Reduces the calling thread, which must be the only one, to `wanted`, as far as it has that.
Privileges keep_capabilities(std::uint64_t wanted);

/// Everything in the table.
std::uint64_t all_used_capabilities();

/// The table without what this configuration does not need. Without a configuration: all of the table. Looks
/// at the files that it names, with the effective user's rights alone.
std::uint64_t needed_capabilities(const Config* config, const std::string& config_path);

/// What a keeper needs once its daemon has died (handover/keeper.h): reads in which network namespaces
/// sockets and processes are, sends many descriptors, and listens beside the store. Call it in the keeper's
/// process.
void keep_privileges_of_keeper();

}  // namespace portway
