// With what our daemons exit.
#pragma once

namespace portway {

inline constexpr int kExitFailed = 1;
inline constexpr int kExitBadConfig = 2;

}  // namespace portway
