// What a keeper sends to a successor over their Unix socket (SOCK_SEQPACKET): its control block, the memory
// of the data plane, and all descriptors, each with the number that the memory knows it by.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"

namespace portway {

/// Changes with what is sent, and with KeeperControl.
inline constexpr std::uint32_t kTransferVersion = 1;

struct Estate {
  Fd control;              // KeeperControl
  Fd memory;               // SlotArena's
  std::vector<Fd> others;  // by their numbers in the process that had them; not valid: it had none there
};

/// An errno, or 0.
int send_estate(int socket, int control, int memory, std::span<const int> others);
/// An errno in `error` if nothing is returned: EPROTO if the other side sends something else, ETIMEDOUT if it
/// sends nothing for `patience`.
std::optional<Estate> receive_estate(int socket, std::chrono::milliseconds patience, int& error);

/// A socket of that kind that listens at `path`, for this user only, or is connected to it; an errno in
/// `error` if it is not valid. A path of more than 107 bytes: ENAMETOOLONG.
Fd listen_for_successor(const std::string& path, int& error);
Fd connect_to_keeper(const std::string& path, int& error);
/// Who is at the other end; -1 if it cannot be known.
uid_t user_of_peer(int socket);

}  // namespace portway
