#include "control/store_backup.h"

#include <SQLiteCpp/Database.h>
#include <SQLiteCpp/Exception.h>
#include <SQLiteCpp/Statement.h>
#include <SQLiteCpp/Transaction.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <sqlite3.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "base/forward.h"
#include "control/store_files.h"
#include "control/store_schema.h"

namespace portway {
namespace {

namespace fs = std::filesystem;

// With a second one of the same size there is still room for the store's own log.
constexpr std::uint64_t kSpaceFactor = 2;

/// A file that is deleted when this goes, if it has this name then.
class TemporaryName {
 public:
  explicit TemporaryName(std::string name) : name_(std::move(name)) {}
  ~TemporaryName() { remove(); }
  TemporaryName(const TemporaryName&) = delete;
  TemporaryName& operator=(const TemporaryName&) = delete;

  const std::string& name() const { return name_; }
  void remove() const {
    for (const char* suffix : {"", "-journal"}) ::unlink((name_ + suffix).c_str());
  }

 private:
  const std::string name_;
};

Error backup_failed(const std::string& path, const SQLite::Exception& exception) {
  const bool full = exception.getErrorCode() == SQLITE_FULL || exception.getErrorCode() == SQLITE_IOERR;
  return store_unavailable(
      path,
      fmt::format("the backup could not be made: {} (SQLite code {}); {}", exception.what(),
                  exception.getExtendedErrorCode(),
                  full ? "free space on its filesystem, and look for the disk's errors in the kernel log"
                       : "see https://www.sqlite.org/rescode.html"));
}

/// An error if what is left on the filesystem would hardly be enough for the store itself.
Result<void> check_space(SQLite::Database& source, const std::string& path) {
  const std::uint64_t size = static_cast<std::uint64_t>(source.execAndGet("PRAGMA page_count").getInt64()) *
                             static_cast<std::uint64_t>(source.execAndGet("PRAGMA page_size").getInt64());
  struct statvfs space {};
  if (::statvfs(fs::path(path).parent_path().c_str(), &space) != 0) return {};
  const std::uint64_t available = std::uint64_t{space.f_bavail} * space.f_frsize;
  if (available >= kSpaceFactor * size) return {};
  return store_unavailable(path,
                           fmt::format("no backup is made, so that changes can still be stored: {} KiB are "
                                       "available on its filesystem, and {} KiB are needed; free space there",
                                       available / 1024, kSpaceFactor * size / 1024));
}

void mark_as_backup(const std::string& file) {
  SQLite::Database database(file, SQLite::OPEN_READWRITE);
  database.exec("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF");  // a crash leaves nothing of the file
  database.exec(
      "CREATE TABLE IF NOT EXISTS backup (id INTEGER PRIMARY KEY CHECK (id = 1), made_at INTEGER NOT NULL) "
      "STRICT; "
      "INSERT OR IGNORE INTO backup VALUES (1, CAST(strftime('%s', 'now') AS INTEGER) * 1000)");
}

bool has_table(SQLite::Database& database, const char* name) {
  SQLite::Statement query(database, "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?");
  query.bind(1, name);
  return query.executeStep();
}

Error bad_backup(const std::string& backup, const std::string& what) {
  return {ErrorCode::kStoreUnavailable, "The backup " + backup + ": " + what + "."};
}

Error bad_backup(const std::string& backup, const SQLite::Exception& exception) {
  return bad_backup(backup,
                    std::string(exception.what()) + "; give a file that \"portway node backup\" has written");
}

/// See check_backup().
Result<std::string> examine(SQLite::Database& database, const std::string& backup) {
  if (!has_table(database, "instances") || !is_store(database)) {
    return bad_backup(backup,
                      "it is no store of Portway's; give a file that \"portway node backup\" has written");
  }
  const std::int32_t version = database.execAndGet("PRAGMA user_version").getInt();
  if (version > store_schema_version()) {
    return bad_backup(backup,
                      fmt::format("a newer Portway made it (schema {}, this one knows {}); install that "
                                  "one first",
                                  version, store_schema_version()));
  }
  const std::string sound = database.execAndGet("PRAGMA integrity_check(1)").getString();
  if (sound != "ok") return bad_backup(backup, "it is damaged: " + sound + "; take another backup");
  const auto count = [&](const char* table) {
    return database.execAndGet(std::string("SELECT count(*) FROM ") + table).getInt64();
  };
  std::string text = fmt::format("{} instances, {} forwards and {} API keys", count("instances"),
                                 count("forwards"), count("api_keys"));
  if (has_table(database, "backup")) {
    text += fmt::format(", as of {}", to_rfc3339(Timestamp(std::chrono::milliseconds(
                                          database.execAndGet("SELECT made_at FROM backup").getInt64()))));
  }
  return text;
}

/// Who starts the daemon as another user than root has the directory belong to that one.
void give_to_owner_of_directory(const std::string& path) {
  struct stat directory {};
  if (::geteuid() != 0 || ::stat(fs::path(path).parent_path().c_str(), &directory) != 0) return;
  for (const char* suffix : {"", ".lock"}) {
    if (::lchown((path + suffix).c_str(), directory.st_uid, directory.st_gid) != 0) return;
  }
}

}  // namespace

std::string unfinished_backup(const std::string& store_path) {
  return store_path + ".backup";
}

Result<BackupFile> copy_store(SQLite::Database& source, const std::string& path) {
  try {
    if (auto space = check_space(source, path); !space) return space.error();
    const TemporaryName temporary(unfinished_backup(path));
    temporary.remove();
    // SQLite would make it readable for everybody.
    auto file = std::make_shared<Fd>(
        ::open(temporary.name().c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!*file) return store_call_failed(path, "open of " + temporary.name(), errno);
    SQLite::Statement copy(source, "VACUUM INTO ?");
    copy.bind(1, temporary.name());
    copy.exec();
    mark_as_backup(temporary.name());
    struct stat status {};
    if (::fstat(file->get(), &status) != 0) return store_call_failed(path, "fstat", errno);
    return BackupFile{.file = std::move(file), .bytes = static_cast<std::uint64_t>(status.st_size)};
  } catch (const SQLite::Exception& exception) {
    return backup_failed(path, exception);
  }
}

Result<std::string> check_backup(const std::string& backup) {
  try {
    SQLite::Database database(backup, SQLite::OPEN_READONLY);
    return examine(database, backup);
  } catch (const SQLite::Exception& exception) {
    return bad_backup(backup, exception);
  }
}

Result<std::string> restore_store(const std::string& given_path, const std::string& backup) {
  std::error_code error;
  const std::string path = fs::weakly_canonical(fs::absolute(given_path, error), error).string();
  if (error) return store_call_failed(given_path, "realpath", error.value());
  try {
    SQLite::Database database(backup, SQLite::OPEN_READONLY);
    auto described = examine(database, backup);
    if (!described) return described;
    auto files = StoreFiles::lock(path);
    if (!files) return files.error();
    auto successor = files->make_successor();
    if (!successor) return successor.error();
    const TemporaryName temporary(successor->path());
    SQLite::Statement copy(database, "VACUUM INTO ?");
    copy.bind(1, temporary.name());
    copy.exec();
    mark_as_backup(temporary.name());
    if (auto done = files->hand_over(*successor); !done) return done.error();
    give_to_owner_of_directory(path);
    return described;
  } catch (const SQLite::Exception& exception) {
    return bad_backup(backup, exception);
  }
}

std::string take_up_restored(SQLite::Database& database) {
  if (!has_table(database, "backup")) return "";
  SQLite::Transaction transaction(database, SQLite::TransactionBehavior::IMMEDIATE);
  const Timestamp made_at(
      std::chrono::milliseconds(database.execAndGet("SELECT made_at FROM backup").getInt64()));
  // With a pid and when it began, a machine is known for certain.
  const int ended = database.exec(
      "UPDATE instances SET state = 'stopped', ended = 'stopped' "
      "WHERE state = 'running' AND tap_index = 0 AND vmm_pid IS NULL");
  database.exec(
      "DELETE FROM forwards WHERE instance_id IN (SELECT id FROM instances WHERE state = 'stopped')");
  database.exec("DROP TABLE backup");
  transaction.commit();
  return fmt::format(
      "is a backup of {}. What changed since then is undone: register all instances again, and delete the "
      "API "
      "keys that had been deleted since. {} sessions were ended whose machine had not come then",
      to_rfc3339(made_at), ended);
}

}  // namespace portway
