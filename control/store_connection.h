// The store's open file: transactions on it, its rows, and what becomes of the file. Functions that return a
// Result translate SQLite's exceptions, which go no further.
//
// Belongs to the store's thread.
#pragma once

#include <SQLiteCpp/Database.h>
#include <SQLiteCpp/Exception.h>
#include <SQLiteCpp/Transaction.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/boot_clock.h"
#include "base/error.h"
#include "base/forward.h"
#include "control/statement_cache.h"
#include "control/store.h"
#include "control/store_answers.h"
#include "control/store_files.h"

struct sqlite3;

namespace portway {

class StoreConnection {
 public:
  /// Makes a store in a new file, for open().
  static Result<void> create(const std::string& file);
  static Result<std::unique_ptr<StoreConnection>> open(const std::string& path, StoreFiles files,
                                                       const BootClock& clock);
  /// The same, of files that can be read and not be written: a copy in memory, as open() would find them.
  static Result<std::unique_ptr<StoreConnection>> open_copy(const std::string& path, const BootClock& clock);
  /// Throws SQLite::Exception if what is in the file does not fit the schema.
  StoreConnection(std::string path, StoreFiles files, SQLite::Database database, const BootClock& clock);
  StoreConnection(const StoreConnection&) = delete;
  StoreConnection& operator=(const StoreConnection&) = delete;

  const StoreFiles& files() const { return files_; }
  /// It is a copy in memory: what is changed in it is in no file.
  bool is_copy() const { return is_copy_; }
  /// Of a copy: see StoreFiles.
  void unlock() { files_.unlock(); }
  void lock_again() { files_.lock_again(); }
  /// Whether both have the same instances, forwards and API keys, and are drained or not.
  Result<bool> has_the_same_as(StoreConnection& other);
  /// Why the log could not be copied into the database when that was last tried; empty if it could.
  const std::string& checkpoint_fault() const { return checkpoint_fault_; }
  /// The same in new files, to take the place of this one, whose files have lost their names. They are still
  /// open, and have everything. Null if only the lock's was gone.
  Result<std::unique_ptr<StoreConnection>> move_to_new_files();
  /// What open() has done because the file was a backup (take_up_restored()); empty: it was none.
  const std::string& restored() const { return restored_; }
  /// Another connection to the same file, which can only read, for any one thread.
  Result<std::shared_ptr<SQLite::Database>> open_reader() const;
  /// If more than half of the file is free, gives that back to the filesystem. Takes as long as writing the
  /// rest again; cheap if there is nothing to do.
  void shrink();
  /// Closing deletes -wal and -shm by their names. `ours`: whether those are this one's.
  void set_names_are_ours(bool ours);

  /// Does `change` in a transaction. IMMEDIATE, so that a busy file is found before anything is written. What
  /// `change` throws, other than SQLite's exceptions, is a mistake of ours.
  template <class Change>
  Result<void> transact(const Change& change) {
    try {
      SQLite::Transaction transaction(database_, SQLite::TransactionBehavior::IMMEDIATE);
      change();
      transaction.commit();
      return {};
    } catch (const SQLite::Exception& exception) {
      return failure(exception);  // and ~Transaction has rolled back
    }
  }

  Result<std::vector<Instance>> load_instances();
  Result<std::vector<Forward>> load_forwards();
  Result<std::vector<ApiKey>> load_api_keys();
  Result<std::vector<StoredUsage>> load_usage();
  Result<NodeDrain> load_drain();
  Result<std::optional<IdempotentAnswer>> find_answer(std::string_view scope, std::string_view key);

  // --- The parts of transactions; they throw SQLite::Exception.

  void put_instance(const Instance& instance);
  void delete_instance(std::string_view id);
  void add_forward(const Forward& forward);
  /// False if there is no such forward.
  bool update_forward(const Forward& forward);
  void delete_forward(const ForwardId& id);
  void delete_forwards(std::string_view instance_id);
  void delete_other_sessions(const Instance& instance);
  void add_api_key(const ApiKey& key);
  /// False if there is no such key, as for the next one.
  bool change_api_key(const Uuid& id, const ApiKeyChange& change);
  bool rotate_api_key(const Uuid& id, const std::array<std::uint8_t, 32>& secret_sha256,
                      std::optional<Timestamp> old_valid_until);
  void save_api_key_use(const ApiKeyUse& use);
  void delete_api_key(const Uuid& id);
  void save_usage(const StoredUsage& usage);
  void put_drain(const NodeDrain& drain);
  void add_answer(const IdempotentAnswer& answer) { answers_.add(answer); }
  /// The schema's version, which is what it was: a page for the disk all the same.
  void write_nothing_new();

 private:
  template <class Row>
  Result<std::vector<Row>> load(const char* table, const char* query_text, Row (*read)(rows::RowReader&));
  Error failure(const SQLite::Exception& exception) const;
  static int on_commit(void* self, sqlite3* handle, const char* name, int log_pages);

  const std::string path_;
  const BootClock clock_;
  std::string checkpoint_fault_;
  std::string restored_;
  bool is_copy_ = false;
  std::optional<std::chrono::steady_clock::time_point> shrunk_at_;
  StoreFiles files_;  // outlives the database's connection
  SQLite::Database database_;
  StatementCache statements_{database_};
  StoreAnswers answers_;
};

}  // namespace portway
