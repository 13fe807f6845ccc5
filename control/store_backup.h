// Copies of the store: one is made while the daemon runs (Store::back_up), and becomes the store again while
// none runs (restore_store).
//
// A backup is one SQLite file. It says in a table of its own that it is one, so that the daemon that starts
// with it knows, whoever has put it there: see take_up_restored(). Functions that return a Result translate
// SQLite's exceptions; the others let them pass.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/error.h"
#include "base/fd.h"

namespace SQLite {
class Database;
}

namespace portway {

/// What a copy that is being made is called beside the store, until it is complete. The start of a daemon
/// removes what a crash has left of it.
std::string unfinished_backup(const std::string& store_path);

/// A file that has no name any more.
struct BackupFile {
  std::shared_ptr<const Fd> file;
  std::uint64_t bytes = 0;
};
/// Copies what `source`, another connection to the store `path`, sees at this moment. Takes as long as the
/// disk: not on the control thread. If there is little space beside the store, nothing is copied; whatever
/// fails leaves nothing behind. kStoreUnavailable.
Result<BackupFile> copy_store(SQLite::Database& source, const std::string& path);

/// Whether `backup` can become a store: it is complete and intact, Portway's, and not a newer one's. The
/// result describes it in words; an error names the file and the remedy.
Result<std::string> check_backup(const std::string& backup);

/// Puts a copy of `backup` in the place of the store `path`, or makes the store; what was there is gone then.
/// Refuses while a daemon has the store open, and what check_backup() refuses. A failure leaves the store as
/// it was; a crash may take its -wal away before it is replaced: then make the call again. The new file
/// belongs to the owner of its directory if this user may give it away. The result is check_backup()'s.
Result<std::string> restore_store(const std::string& path, const std::string& backup);

/// What is to be done once with a database that was a backup; returns in words what has been done, empty if
/// it was none. A session whose machine had not come when the backup was made is known by the name of its tap
/// only, which may be another machine's by now: it is ended, with its forwards.
std::string take_up_restored(SQLite::Database& database);

}  // namespace portway
