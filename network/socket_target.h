// The Unix socket that a forward leads to, and a connect(2) to it that nobody who can write into the
// socket's directory can lead elsewhere.
//
// Any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/forward.h"

namespace portway {

struct SocketTarget {
  TargetKind kind = TargetKind::kUnix;  // never kTcp
  std::string directory;                // one of guests.socket_directories; symbolic links in it are followed
  std::string name;                     // the rest of the path; symbolic links in it are refused
  std::uint32_t port = 0;               // of a vsock
};

/// Splits the path of a target that is no TCP port at the first of the directories that it lies below
/// (find_beneath()). If it lies below none, `directory` is empty: connecting fails with ENOENT.
SocketTarget socket_target(const Target& target, std::span<const std::string> directories);

/// Connects a non-blocking AF_UNIX stream socket: 0 or -errno. -EAGAIN: the server's backlog is full, try
/// again. -ELOOP: there is a symbolic link in the name. -ENOTSOCK: the file is no socket. -ENOENT,
/// -ECONNREFUSED: nobody listens. -ENOSYS before Linux 5.6 (openat2(2)).
int connect_to(int fd, const SocketTarget& target);

/// The same for clients of the node: -EPERM if the socket is one of this process. Its API takes the user at
/// the other end for the caller, and that would be ourselves.
int connect_client_to(int fd, const SocketTarget& target);

}  // namespace portway
