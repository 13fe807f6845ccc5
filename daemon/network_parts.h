// The parts that need privileges: started if the kernel permits, else the log says what is missing.
#pragma once

#include <memory>
#include <string>

#include "config/config.h"
#include "network/client_refusals.h"
#include "network/return_path.h"
#include "network/steer_program.h"

namespace portway {

struct StartedReturnPath {
  // Null: no return path, and no source guard.
  std::unique_ptr<ReturnPath> path = nullptr;
  // Why guests do not see their clients' addresses although configured to.
  std::string why_none = {};
};

/// If clients' addresses are not configured or not possible, starts only the source guard, if possible. An
/// error is the reason to exit.
/// `program`: see load_steer_program().
Result<StartedReturnPath> start_return_path(const Config::Proxy& proxy, bool succeeds,
                                            std::unique_ptr<SteerProgram> program);

/// The return path's program, ahead of start_return_path(): it takes longer than all the rest. Null if the
/// kernel does not permit it.
std::unique_ptr<SteerProgram> load_steer_program(const Config::Proxy& proxy);

/// Null if the kernel does not permit it: then each client that a guest refuses is accepted and reset.
std::unique_ptr<ClientRefusals> start_client_refusals_if_possible();

}  // namespace portway
