#include "proxy/live_connection.h"

#include <array>

namespace portway {
namespace {

constexpr auto kLiveStateNames =
    std::to_array<std::string_view>({"connecting", "established", "client_ended", "guest_ended", "closing"});
static_assert(kLiveStateNames.size() == kLiveStates, "every LiveState has its name, in the same order");

}  // namespace

std::string_view to_string(LiveState state) {
  return kLiveStateNames[static_cast<std::size_t>(state)];
}

}  // namespace portway
