// portwayd --supervise: a first process that does nothing but start the daemon, again whenever it crashes,
// and pass signals on. For containers, and wherever no service manager does that: an upgrade (SIGUSR2) does
// not end it, and the keeper of a daemon that has crashed finds the next one.
#pragma once

namespace portway {

/// Runs until the daemon stops by itself or is stopped; returns its exit code. Call it before there is a
/// thread.
int supervise();

}  // namespace portway
