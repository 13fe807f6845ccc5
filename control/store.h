// The promises that outlive the process: instances, forwards and API keys, in one SQLite file.
//
// Belongs to the control thread. A call that changes something is one transaction, and is on disk when it
// returns (WAL with synchronous=FULL: a power loss takes nothing that was acknowledged). A call that fails
// has changed nothing, and the next one works once the disk does. What only a failed fsync(2) kept from being
// acknowledged may still turn up when the machine crashes right after it: the disk did not say.
//
// SQLite, and so the disk, has a thread of its own (control/store_thread.h), which works off one call after
// the other. The control thread waits for its call to be done, which may take as long as a disk likes, and
// continues to do what cannot wait (Meanwhile). The rule that follows for callers: **what was true before a
// call may not be true after it**. Look again; pointers into the registry do not survive a call. And what
// runs meanwhile only changes memory: it must not call the store, except for save_sessions(), which does not
// wait.
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
#include "base/forward.h"
#include "control/policy.h"

namespace portway {

/// A bearer key. The secret itself is shown once and stored nowhere.
struct ApiKey {
  Uuid id{};
  Role role = Role::kTenant;
  std::string owner;  // check_owner()'s shape; whose instances a tenant sees
  std::array<std::uint8_t, 32> secret_sha256{};
  Timestamp created_at{};

  friend bool operator==(const ApiKey&, const ApiKey&) = default;
};

/// The answer to a POST that carried an Idempotency-Key: sent again when the same request comes again.
struct IdempotentAnswer {
  std::string scope;  // whose key it is: the same word from two callers is two keys
  std::string key;
  std::array<std::uint8_t, 32> request_sha256{};
  std::string location;  // of the answer; empty if it has none
  std::string body;
  Timestamp created_at{};

  friend bool operator==(const IdempotentAnswer&, const IdempotentAnswer&) = default;
};

/// Another process has it open.
bool is_open_elsewhere(const Error& error);

class StoreConnection;
class StoreThread;

class Store {
 public:
  /// How long an answer is remembered, by the time that passes and not by the clock that somebody sets: after
  /// a reboot, what was between the last answer and the kernel's start does not count. How many of one scope,
  /// and about how many bytes of bodies: the last one always, and up to a quarter more.
  static constexpr std::chrono::hours kAnswerKept{24};
  static constexpr std::size_t kAnswersMax = 10'000;
  static constexpr std::size_t kAnswerBytesMax = std::size_t{4} << 20;

  /// Opens or creates the database, directories (0700) and file (0600) included, and brings its schema up to
  /// date. Refuses a file that another store has open, by whatever name, one that a newer Portway wrote, and
  /// one that is not Portway's. Other programs may read it meanwhile, as backups do. What looks as if
  /// something had been lost is in take_notices(). `prepare_thread` runs first on the store's thread; `clock`
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

  /// What the calling thread does while it waits for a call: `dispatch` is called whenever `descriptor` is
  /// readable. It must not block.
  struct Meanwhile {
    int descriptor = -1;
    std::function<void()> dispatch = nullptr;
  };
  void set_meanwhile(Meanwhile meanwhile) { meanwhile_ = std::move(meanwhile); }

  /// Files that are deleted or moved meanwhile are written again from the ones that are still open, before
  /// the next change, or by this, without waiting. If that fails, or another file has the store's name,
  /// changes are refused with kStoreUnavailable.
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

  /// Adds the instance, or replaces the one with its id and keeps its forwards.
  Result<void> put_instance(const Instance& instance);
  /// As put_instance(), and deletes the instance's forwards of other sessions.
  Result<void> start_session(const Instance& instance);
  /// As put_instance(), and deletes the instance's forwards. `stopped` has the state kStopped.
  Result<void> end_session(const Instance& stopped);
  /// As put_instance() and, for those that are stopped, end_session(), all in one transaction. Does not wait:
  /// `done` is called on the store's thread, after the calls that were made before.
  void save_sessions(std::vector<Instance> sessions, std::function<void(Result<void>)> done);
  /// Deletes the instance with its forwards; success if there is none.
  Result<void> delete_instance(std::string_view id);

  /// The instance must be stored, the id and the host port must be new.
  Result<void> add_forward(const Forward& forward);
  /// All of them or none. With `answer`, which is remembered in the same transaction: a crash cannot keep one
  /// without the other. Forgets what is too old or too much.
  Result<void> add_forwards(std::span<const Forward> forwards, const IdempotentAnswer* answer = nullptr);
  /// The answer that was remembered and is not too old.
  Result<std::optional<IdempotentAnswer>> find_answer(std::string_view scope, std::string_view key);
  /// Writes what may change in a forward's life: its label, its limits and who set them, its source mode.
  /// kNotFound if there is no such forward.
  Result<void> update_forward(const Forward& forward);
  /// Success if there is none.
  Result<void> delete_forward(const ForwardId& id);

  /// The id and the secret must be new.
  Result<void> add_api_key(const ApiKey& key);
  /// Success if there is none.
  Result<void> delete_api_key(const Uuid& id);

  /// The result of the last write: kStoreUnavailable while the disk refuses. Does not wait for the disk, and
  /// asks it (with a transaction that changes nothing) if that was more than kAskAgain ago, so that the next
  /// call knows. A disk that has not answered for kPatience counts as refusing.
  Result<void> writable();
  static constexpr std::chrono::milliseconds kAskAgain{1000};
  static constexpr std::chrono::milliseconds kPatience{5000};

 private:
  struct Health;
  Store(std::string path, BootClock clock, std::unique_ptr<StoreConnection> connection,
        std::unique_ptr<StoreThread> thread);

  template <class Call>
  std::invoke_result_t<Call> on_thread(const Call& call);
  template <class Change>
  Result<void> transact(const Change& change);
  template <class Change>
  Result<void> transact_here(const Change& change);
  Result<void> keep_files();
  void set_fault(const std::string& fault);
  void note(Notice notice);

  static constexpr std::size_t kNoticesMax = 16;

  const std::string path_;
  const BootClock clock_;
  std::unique_ptr<StoreConnection> connection_;  // the thread's; null while suspended
  const std::unique_ptr<Health> health_;
  std::string checkpoint_fault_;  // that a notice was made of; the thread's
  mutable std::mutex mutex_;
  std::string fault_;                  // under mutex_
  std::vector<Notice> notices_;        // under mutex_
  std::atomic<bool> looking_ = false;  // a look is on its way
  Meanwhile meanwhile_;
  bool waiting_ = false;
  const std::unique_ptr<StoreThread> thread_;  // ends before what it uses
};

}  // namespace portway
