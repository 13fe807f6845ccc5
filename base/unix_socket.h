// Unix stream sockets that take no descriptors from their peers (SCM_RIGHTS).
//
// Nobody here wants any. But whoever drops the last reference to a descriptor closes it, and closing a socket
// with SO_LINGER blocks for as long as its last owner chose: a peer could stop the thread that reads from it,
// or closes the connection.
#pragma once

#include <sys/socket.h>

#include "base/fd.h"

#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83  // Linux 6.16
#endif

namespace portway {

/// A non-blocking one; empty, with errno, if there is none to be had. The kernel refuses descriptors to their
/// sender (EPERM); clients of a listener from the start. Before Linux 6.16 it takes them.
inline Fd make_unix_socket() {
  Fd made(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int no = 0;
  if (made) (void)::setsockopt(made.get(), SOL_SOCKET, SO_PASSRIGHTS, &no, sizeof no);
  return made;
}

}  // namespace portway
