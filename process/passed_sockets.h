// Listening TCP sockets that a service manager has opened for the daemon (socket activation,
// sd_listen_fds(3)). Each serves the entry of api.listen, or metrics.listen, that has its address. Clients
// then wait, and are not refused, while the daemon is started again; and a port below 1024 needs no
// capability.
//
// Not Unix sockets: nobody can tell whether such a socket still is the one that its file leads to.
#pragma once

#include <string>
#include <vector>

#include "base/endpoint.h"
#include "base/fd.h"

namespace portway {

class PassedSockets {
 public:
  /// What this process's environment names; a process that it starts finds nothing there any more. Before any
  /// other descriptor is opened or a thread is started.
  static PassedSockets take();

  /// The one that listens there; none if there is none.
  Fd take(const Endpoint& address);
  /// In words, what was not taken.
  std::vector<std::string> rest() const;

 private:
  struct Passed {
    Endpoint address;
    std::string text;
    Fd socket;  // none: of another kind
  };
  std::vector<Passed> sockets_;
};

}  // namespace portway
