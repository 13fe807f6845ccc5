// The start of a daemon whose predecessor may have died: opens the store, and takes over what that one's
// keeper has (handover/keeper.h).
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "config/config.h"
#include "control/store.h"
#include "handover/keeper.h"
#include "handover/predecessor.h"
#include "proxy/inherited.h"

namespace portway {

struct Succession {
  std::unique_ptr<Store> store;
  // Null: there is nothing to take over.
  std::unique_ptr<Predecessor> predecessor;
  std::unique_ptr<Inherited> inherited;
  bool from_living = false;                       // the predecessor hands over; otherwise it has died
  std::chrono::steady_clock::time_point began{};  // when its descriptors had come
};

/// Of what is handed over: a daemon takes over from one of the same version only.
std::string handover_version();

/// Where a keeper waits: beside the store.
std::string handover_path(const Config& config);

/// Waits two seconds for a store that is open elsewhere: its process may be dying. Changes nothing that the
/// keeper could not hand over to another process; see Predecessor::take(). `from_living`: the predecessor
/// lives and waits for this process.
Result<Succession> open_succession(const Config& config, bool from_living);

/// From now on this process acts for what it has inherited, and its keeper keeps `memory` and all
/// descriptors. A null `keeper`, or a handover_timeout of zero: everything ends with this process. Logs what
/// does not work.
void take_over(Succession& succession, std::unique_ptr<Keeper>& keeper, const Fd& memory,
               const Config& config);

}  // namespace portway
