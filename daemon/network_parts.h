// The parts that need the kernel's leave: started if they can be had, else the log says what is missing.
#pragma once

#include <memory>
#include <string>

#include "config/config.h"
#include "network/client_refusals.h"
#include "network/return_path.h"

namespace portway {

struct StartedReturnPath {
  // Null: none, and no source guard.
  std::unique_ptr<ReturnPath> path = nullptr;
  // Why guests do not see their clients' addresses although they should.
  std::string why_none = {};
};

/// If clients' addresses are not wanted or not possible, the source guard alone, if that is possible. An
/// error is the reason to exit.
Result<StartedReturnPath> start_return_path(const Config::Proxy& proxy);

/// Null if the kernel does not allow it: then a client that a guest refuses is accepted and reset, each time.
std::unique_ptr<ClientRefusals> start_client_refusals_if_possible();

}  // namespace portway
