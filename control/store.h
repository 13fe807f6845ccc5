// The promises that outlive the process: instances, forwards and API keys, in one SQLite file.
//
// SQLite, and so the disk, has a thread of its own (control/store_thread.h). A change is a coroutine of the
// control thread (control/change.h): it is one transaction, on disk when it is done (WAL with
// synchronous=FULL: a power loss takes nothing that was acknowledged). What is asked for while the disk is
// busy is committed together. A change that fails has changed nothing, and the next one works once the disk
// does. What only a failed fsync(2) kept from being acknowledged may still turn up when the machine crashes
// right after it: the disk did not say. Changes reach the disk in the order in which they were asked for.
//
// Belongs to the control thread, which waits only for what is needed at start and at an upgrade: open(), the
// load_ functions, suspend() and resume(). The context that awaits a change outlives the store, whose thread
// may still be about to leave the call that has woken it.
//
// The open file and its SQL are in control/store_connection.h, the schema in control/store_schema.h.
//
// Unless said otherwise errors are kStoreUnavailable, with the file, SQLite's message and a remedy; a
// contradiction to what is stored (an id or host port that is there already, an unknown instance) is
// kInternal, since the registry should have known.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/boot_clock.h"
#include "base/error.h"
#include "base/fd.h"
#include "base/forward.h"
#include "control/change.h"
#include "control/policy.h"
#include "proxy/usage_meter.h"

namespace portway {

/// A bearer key. The secret itself is shown once and stored nowhere.
struct ApiKey {
  Uuid id{};
  Role role = Role::kTenant;
  std::string owner;  // check_owner()'s shape; whose instances a tenant sees
  std::array<std::uint8_t, 32> secret_sha256{};
  Timestamp created_at{};
  std::string description = {};  // check_description()'s shape
  KeyScope scope = KeyScope::kFull;
  std::string instance_id = {};  // the only one that it sees; empty: all of its owner's
  std::optional<Timestamp> expires_at = std::nullopt;
  std::optional<Timestamp> last_used_at = std::nullopt;

  /// The secret before the last rotation, for as long as it is valid besides.
  struct OldSecret {
    std::array<std::uint8_t, 32> sha256{};
    Timestamp valid_until{};

    friend bool operator==(const OldSecret&, const OldSecret&) = default;
  };
  std::optional<OldSecret> old_secret = std::nullopt;

  friend bool operator==(const ApiKey&, const ApiKey&) = default;
};

/// What may change in a key's life, apart from its secret.
struct ApiKeyChange {
  std::optional<std::string> description = std::nullopt;
  std::optional<std::optional<Timestamp>> expires_at = std::nullopt;  // an empty one: it does not expire
};

/// What an instance or a forward has carried.
struct StoredUsage {
  enum class Kind : std::uint8_t { kInstance, kForward };

  Kind kind = Kind::kInstance;
  std::string id;
  Timestamp since{};        // when counting began
  UsageTotals totals = {};  // on disk, times are as fine as a millisecond
  std::string key = {};     // the caller's own; not stored

  friend bool operator==(const StoredUsage&, const StoredUsage&) = default;
};

/// Whether the node is emptied by its operator.
struct NodeDrain {
  std::optional<Timestamp> since = std::nullopt;  // absent: it is not

  friend bool operator==(const NodeDrain&, const NodeDrain&) = default;
};

struct ApiKeyUse {
  Uuid id{};
  Timestamp last_used_at{};
};

/// The answer to a POST that carried an Idempotency-Key: sent again when the same request comes again.
struct IdempotentAnswer {
  std::string scope;  // whose key it is: the same word from two callers is two keys
  std::string key;
  std::string payer;  // whose share of what is remembered it takes; of one scope there may be several
  std::array<std::uint8_t, 32> request_sha256{};
  std::string location;   // of the answer; empty if it has none
  std::string etag = {};  // likewise
  std::string body;
  Timestamp created_at{};

  friend bool operator==(const IdempotentAnswer&, const IdempotentAnswer&) = default;
};

class StoreThread;

/// A copy of the store that has been made (Store::back_up): a file without a name, which is gone with this.
class StoreBackup {
 public:
  StoreBackup(std::shared_ptr<const Fd> file, std::uint64_t bytes, std::weak_ptr<StoreThread> reader,
              std::shared_ptr<const int> place)
      : file_(std::move(file)), bytes_(bytes), reader_(std::move(reader)), place_(std::move(place)) {}

  std::uint64_t bytes() const { return bytes_; }
  /// `done` is called, on another thread, with up to `size` bytes from `offset` on; with nothing at the end,
  /// or if the disk cannot read them.
  void read(std::uint64_t offset, std::size_t size, std::function<void(std::string)> done) const;

 private:
  const std::shared_ptr<const Fd> file_;
  const std::uint64_t bytes_;
  const std::weak_ptr<StoreThread> reader_;  // gone with the store
  const std::shared_ptr<const int> place_;   // one of kBackupsMax
};

/// Another process has it open.
bool is_open_elsewhere(const Error& error);

class StoreConnection;

class Store {
 public:
  /// How long an answer is remembered, by the time that passes and not by the clock that somebody sets: after
  /// a reboot, what was between the last answer and the kernel's start does not count. How many of one payer,
  /// and about how many bytes of bodies: the last one always, and up to a quarter more. Of all payers
  /// together about kAllAnswersBytesMax: beyond it, those with the most lose their oldest.
  static constexpr std::chrono::hours kAnswerKept{24};
  static constexpr std::size_t kAnswersMax = 10'000;
  static constexpr std::size_t kAnswerBytesMax = std::size_t{4} << 20;
  static constexpr std::size_t kAllAnswersBytesMax = std::size_t{64} << 20;

  /// Opens or creates the database, directories (0700) and file (0600) included, and brings its schema up to
  /// date. Refuses a file that another store has open, by whatever name, one that a newer Portway wrote, and
  /// one that is not Portway's. Other programs may read it meanwhile, as backups do. What looks as if
  /// something had been lost is in take_notices(). If the files can be read and not be written (a read-only
  /// or a full filesystem), the store serves what is in them from memory, says so there, and refuses changes
  /// until they can be written. `prepare_thread` runs first on the store's thread; `clock`
  /// dates the answers.
  static Result<std::unique_ptr<Store>> open(const std::string& path,
                                             const std::function<void()>& prepare_thread = nullptr,
                                             const BootClock& clock = {});
  /// After what it was asked for.
  ~Store();

  /// Closes the files, so that another process can open the store; until resume() no other call may be made.
  void suspend();
  /// Opens them again; errors of open().
  Result<void> resume();

  /// Files that are deleted or moved meanwhile are written again from the ones that are still open, before
  /// the next change, or by this, without waiting. If that fails, or another file has the store's name,
  /// changes are refused with kStoreUnavailable. It also gives back the space of what was deleted, once that
  /// is more than half of the file.
  void look_after_files();
  /// Why changes are refused now for what became of the files; empty if they are not.
  std::string fault() const;
  /// For the operator.
  struct Notice {
    bool is_error = false;
    std::string text;
  };
  /// What has been noticed about the files since the last call.
  std::vector<Notice> take_notices();

  /// Everything of its kind, by id. A row that does not make sense (somebody edited it) is an error that
  /// names the row.
  Result<std::vector<Instance>> load_instances();
  Result<std::vector<Forward>> load_forwards();
  Result<std::vector<ApiKey>> load_api_keys();
  Result<std::vector<StoredUsage>> load_usage();
  Result<NodeDrain> load_drain();

  /// Adds the instance, or replaces the one with its id and keeps its forwards.
  Change<void> put_instance(Instance instance);
  /// As put_instance(), and deletes the instance's forwards of other sessions.
  Change<void> start_session(Instance instance);
  /// As put_instance(), and deletes the instance's forwards. `stopped` has the state kStopped.
  Change<void> end_session(Instance stopped);
  /// As put_instance() and, for those that are stopped, end_session(), all in one transaction. `done` is
  /// called on the store's thread.
  void save_sessions(std::vector<Instance> sessions, std::function<void(Result<void>)> done);
  /// Deletes the instance with its forwards; success if there is none.
  Change<void> delete_instance(std::string id);

  /// The instance must be stored, the id and the host port must be new.
  Change<void> add_forward(Forward forward);
  /// All of them or none. With `answer`, which is remembered in the same transaction: a crash cannot keep one
  /// without the other. Forgets what is too old or too much.
  Change<void> add_forwards(std::vector<Forward> forwards,
                            std::optional<IdempotentAnswer> answer = std::nullopt);
  /// The answer that was remembered and is not too old.
  Change<std::optional<IdempotentAnswer>> find_answer(std::string scope, std::string key);
  /// Writes what may change in a forward's life: its label, metadata and guest port, its limits and who set
  /// them, its source mode, whether it is enabled, and its end.
  /// kNotFound if there is no such forward.
  Change<void> update_forward(Forward forward);
  /// Success if there is none.
  Change<void> delete_forward(ForwardId id);
  /// Removes, updates and adds, all in one transaction. Updates of forwards that are not there are skipped.
  Change<void> change_forwards(std::vector<Forward> added, std::vector<Forward> updated,
                               std::vector<ForwardId> removed);

  /// The id and the secret must be new.
  Change<void> add_api_key(ApiKey key);
  /// Changes what is given; kNotFound if there is no such key.
  Change<void> change_api_key(Uuid id, ApiKeyChange change);
  /// A new secret. The one that it has is valid until then, or no longer; the one before that, no longer.
  /// kNotFound if there is no such key.
  Change<void> rotate_api_key(Uuid id, std::array<std::uint8_t, 32> secret_sha256,
                              std::optional<Timestamp> old_valid_until);
  /// `done` is called on the store's thread. Keys that are not there are skipped.
  void save_api_key_uses(std::vector<ApiKeyUse> uses, std::function<void(Result<void>)> done);
  /// Success if there is none.
  Change<void> delete_api_key(Uuid id);

  Change<void> put_drain(NodeDrain drain);

  /// Of instances and forwards that are there; others are skipped. What is stored goes with them. `done` is
  /// called on the store's thread.
  void save_usage(std::vector<StoredUsage> usage, std::function<void(Result<void>)> done);

  /// A copy of all that is stored at one moment from now on, for restore_store(). Changes do not wait for it:
  /// it has a thread of its own. kStreamLimit if there are kBackupsMax already, also those that are still
  /// being made or are not gone yet.
  Change<std::shared_ptr<StoreBackup>> back_up();
  static constexpr std::size_t kBackupsMax = 2;

  /// kStoreUnavailable if the disk has not answered for kPatience: a further change would only wait, too.
  Result<void> check_answers() const;
  /// The result of the last write: kStoreUnavailable while the disk refuses. Does not wait for the disk, and
  /// asks it (with a transaction that changes nothing) if that was more than kAskAgain ago, so that the next
  /// call knows. A disk that has not answered for kPatience counts as refusing.
  Result<void> writable();
  /// The same without asking.
  Result<void> last_write() const;
  static constexpr std::chrono::milliseconds kAskAgain{1000};
  static constexpr std::chrono::milliseconds kPatience{5000};

 private:
  struct Health;
  Store(std::string path, BootClock clock, std::unique_ptr<StoreConnection> connection,
        std::unique_ptr<StoreThread> thread);

  template <class Call>
  std::invoke_result_t<Call> on_thread(const Call& call);
  struct Asked {
    std::function<void()> change;  // a part of a transaction; may be run more than once
    std::function<void(Result<void>)> done;
  };
  Change<void> transact(std::function<void()> change);
  Change<void> transact_found(std::function<bool()> change, Error not_found);
  void ask(Asked asked);
  void write_asked();
  Result<void> write(const std::function<void()>& change);
  Result<void> keep_files();
  Result<void> leave_copy();
  void note_restored(const StoreConnection& connection);
  void set_fault(const std::string& fault);
  void note(Notice notice);

  static constexpr std::size_t kNoticesMax = 16;

  const std::string path_;
  const BootClock clock_;
  std::unique_ptr<StoreConnection> connection_;  // the thread's; null while suspended
  const std::unique_ptr<Health> health_;
  std::string checkpoint_fault_;                          // that a notice was made of; the thread's
  std::chrono::steady_clock::time_point left_copy_at_{};  // when leave_copy() last tried; the thread's
  mutable std::mutex mutex_;
  std::string fault_;                    // under mutex_
  std::vector<Notice> notices_;          // under mutex_
  std::vector<Asked> asked_;             // under mutex_; a job is on its way while there is something
  std::atomic<bool> looking_ = false;    // a look is on its way
  std::shared_ptr<StoreThread> copier_;  // of backups; null before the first one
  const std::shared_ptr<const int> backups_ = std::make_shared<int>();  // each one holds it, too
  const std::unique_ptr<StoreThread> thread_;                           // ends before what it uses
};

}  // namespace portway
