// Which worker's thread got a fatal signal, for a successor: RelayMemory::crashed. A connection that makes
// the relay crash would otherwise crash each successor, too; see Inherited.
#pragma once

#include "proxy/relay_memory.h"

namespace portway {

/// Of the calling thread, from now on; null: none any more.
void note_crashes_in(RelayMemory* memory);

/// From now on SIGSEGV, SIGBUS, SIGILL, SIGFPE and SIGABRT make the note, and then do what they do by
/// default. Those that have a handler already keep it.
void install_crash_notes();

}  // namespace portway
