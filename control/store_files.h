// The store's files by their names: the database, SQLite's -wal and -shm beside it, and the lock.
//
// A file that is deleted, moved or replaced under a running program stays open there, and what is written to
// it then is in no file that anybody finds. SQLite does not notice. So the names are looked at before a
// change is acknowledged.
#pragma once

#include <sys/types.h>

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/fd.h"

namespace portway {

/// The remedy if the database, or a part of it, is lost.
extern const std::string_view kRestoreOrDelete;

/// kStoreUnavailable about the database `path`.
Error store_unavailable(const std::string& path, const std::string& what);
/// The same for a system call that failed with this errno.
Error store_call_failed(const std::string& path, const std::string& call, int number);

class StoreFiles {
 public:
  /// Makes the directories (0700) where they are missing, and locks the name (flock(2) on `path`.lock) and
  /// the database if there is one, whatever its name is, since a hard link or a bind mount has the same.
  /// SQLite's own locks would not do: they are let go of between transactions. `path` is absolute, without
  /// symbolic links.
  static Result<StoreFiles> lock(const std::string& path);
  /// The same with a database (0600). If there is none, `create` writes one into the file that it is given,
  /// which gets the name once it is complete. So an empty file is not ours, and neither is a -wal without its
  /// database: what they have lost is not taken for a first start.
  using Create = std::function<Result<void>(const std::string& file)>;
  static Result<StoreFiles> open(const std::string& path, const Create& create);
  /// Of a store that can only be read: nothing is made, and the name is locked if its lock is there.
  /// kStoreUnavailable if another store has the lock, or if there is no database that could be read.
  static Result<StoreFiles> look(const std::string& path);
  /// Gives up the lock, so that open() can be tried; and takes it again, if it is still to be had.
  void unlock() { lock_.reset(); }
  void lock_again();
  /// Copies the database and its -wal, as they are now, to `directory` under the same names. An error if they
  /// change meanwhile.
  Result<void> copy_to(const std::string& directory) const;
  /// Makes a new database with the name `path`.new, locked and empty, that is to take the place of this
  /// one's.
  Result<StoreFiles> make_successor() const;
  /// Gives the successor's database the name of this one's, and shares the lock with it. The -wal and -shm
  /// are deleted before: all that they have must be in the database, if that is in its place. If the
  /// successor, or the call, fails, the next successor can take the place.
  Result<void> hand_over(StoreFiles& successor);

  /// Makes the lock's file again if it is gone; nothing else is lost by that.
  Result<void> keep_lock();
  /// SQLite has opened the database: its files are those that are there now.
  void remember();
  /// What has become of them: "portway.db-wal is gone"; empty if nothing has. Four stat(2).
  std::string change() const;
  /// The name `path` still leads to the database.
  bool has_database() const { return fate(kDatabase) == Fate::kInPlace; }
  /// It leads to another file, which is not ours to overwrite.
  bool is_replaced() const { return fate(kDatabase) == Fate::kReplaced; }
  const std::string& path() const { return path_; }
  /// How many names (hard links) the database has.
  unsigned long names() const;

 private:
  enum File : std::size_t { kDatabase, kWal, kShm, kLock, kFiles };
  static constexpr std::array<std::string_view, kFiles> kSuffixes = {"", "-wal", "-shm", ".lock"};
  enum class Fate : std::uint8_t { kInPlace, kGone, kReplaced };
  struct Identity {
    dev_t device = 0;
    ino_t inode = 0;
    friend bool operator==(const Identity&, const Identity&) = default;
  };

  explicit StoreFiles(std::string path) : path_(std::move(path)) {}
  std::string name(File file) const { return path_ + std::string(kSuffixes[file]); }
  Fate fate(File file) const;
  void remember(File file);
  Result<void> lock_name();

  std::string path_;
  // Not to be closed before SQLite has closed the database: that would take its locks (fcntl(2)).
  Fd database_;
  std::shared_ptr<const Fd> lock_;  // null: a successor that has not taken over yet, or a look without one
  std::array<Identity, kFiles> identities_{};
};

}  // namespace portway
