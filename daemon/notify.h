// Tells systemd how the daemon is doing (sd_notify(3)); nothing happens when it was not started by systemd.
#pragma once

#include <string_view>

namespace portway {

/// "READY=1", "STOPPING=1", ... False when systemd does not take it now, or no socket can be had: say it
/// again later. Does not wait.
bool notify(std::string_view state);

}  // namespace portway
