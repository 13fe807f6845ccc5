// Descriptors that the other end of a Unix socket passes along (SCM_RIGHTS).
//
// Nobody here wants any. But whoever drops the last reference to a descriptor closes it, and closing a socket
// with SO_LINGER blocks for as long as its last owner chose: a peer could stop the thread that reads from it,
// or closes the connection.
#pragma once

#include <sys/socket.h>

#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83  // Linux 6.16
#endif

namespace portway {

/// The kernel refuses them to their sender (EPERM) from now on; clients of a listener from the start. Call it
/// before connect(2) or listen(2). Without effect before Linux 6.16.
inline void refuse_descriptors(int unix_socket) {
  const int no = 0;
  (void)::setsockopt(unix_socket, SOL_SOCKET, SO_PASSRIGHTS, &no, sizeof no);
}

}  // namespace portway
