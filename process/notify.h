// Reports the daemon's state to systemd (sd_notify(3)); does nothing if systemd did not start it.
#pragma once

#include <string_view>

namespace portway {

/// "READY=1", "STOPPING=1", ... False if systemd does not accept it now, or no socket can be opened: try
/// again later. Never blocks.
bool notify(std::string_view state);

}  // namespace portway
