#include "control/store.h"

#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "control/resume_later.h"
#include "control/store_backup.h"
#include "control/store_connection.h"
#include "control/store_files.h"
#include "control/store_thread.h"
#include "control/wal_damage.h"

namespace portway {
namespace fs = std::filesystem;

namespace {

constexpr std::string_view kServedFromMemory =
    " Until then changes are refused, and what it had at the start is served from memory.";

Result<std::unique_ptr<StoreConnection>> open_connection(const std::string& path, const BootClock& clock,
                                                         const StoreFiles::Create& create) {
  auto files = StoreFiles::open(path, create);
  if (!files) return files.error();
  return StoreConnection::open(path, std::move(*files), clock);
}

Error no_such_key(const Uuid& id) {
  return {ErrorCode::kNotFound, "There is no API key " + to_string(id) + "."};
}

}  // namespace

/// What is known of the disk. Any thread.
struct Store::Health {
  std::mutex mutex;  // protects what follows
  std::optional<Error> refused;
  std::chrono::steady_clock::time_point known_at = std::chrono::steady_clock::now();
  std::optional<std::chrono::steady_clock::time_point> asked_at;  // while a write is waited for

  void begin() {
    const std::lock_guard lock(mutex);
    if (!asked_at) asked_at = std::chrono::steady_clock::now();
  }
  void note(const Result<void>& written) {
    const std::lock_guard lock(mutex);
    refused.reset();
    if (!written && written.error().code == ErrorCode::kStoreUnavailable) refused = written.error();
    known_at = std::chrono::steady_clock::now();
    asked_at.reset();
  }
  /// `mutex` is held.
  Result<void> check_answers() const {
    if (!asked_at || std::chrono::steady_clock::now() - *asked_at < kPatience) return {};
    return Error{ErrorCode::kStoreUnavailable,
                 "The store: the disk does not answer; look for its errors in the kernel log."};
  }
};

Store::Store(std::string path, BootClock clock, std::unique_ptr<StoreConnection> connection,
             std::unique_ptr<StoreThread> thread)
    : path_(std::move(path)),
      clock_(std::move(clock)),
      connection_(std::move(connection)),
      health_(std::make_unique<Health>()),
      thread_(std::move(thread)) {}
Store::~Store() {
  thread_->post([this] {
    if (connection_) (void)keep_files();
  });
}

/// Waits: at the start, and at an upgrade.
template <class Call>
std::invoke_result_t<Call> Store::on_thread(const Call& call) {
  std::optional<std::invoke_result_t<Call>> result;
  thread_->run_and_wait([&] { result.emplace(call()); });
  return std::move(*result);
}

Change<void> Store::transact(std::function<void()> change) {
  return resume_later<Result<void>>([this, change = std::move(change)](Resume<Result<void>> done) {
    ask({.change = change, .done = std::move(done)});
  });
}

/// `change` returns whether it has found what it is about; if not, the result is `not_found`.
Change<void> Store::transact_found(std::function<bool()> change, Error not_found) {
  const auto found = std::make_shared<bool>(false);
  // Named, or GCC 12 destroys what it captures twice.
  std::function<void()> noted = [found, change = std::move(change)] { *found = change(); };
  auto done = co_await transact(std::move(noted));
  if (done && !*found) co_return not_found;
  co_return done;
}

/// What is asked for while the disk is busy becomes one transaction.
void Store::ask(Asked asked) {
  health_->begin();
  const std::lock_guard lock(mutex_);
  asked_.push_back(std::move(asked));
  if (asked_.size() == 1) thread_->post([this] { write_asked(); });
}

/// On the store's thread.
void Store::write_asked() {
  std::vector<Asked> asked;
  {
    const std::lock_guard lock(mutex_);
    asked = std::exchange(asked_, {});
  }
  const auto together = write([&] {
    for (const Asked& each : asked) each.change();
  });
  // What one cannot have is no reason to refuse the others.
  const bool alone = !together && asked.size() > 1;
  for (const Asked& each : asked) each.done(alone ? write(each.change) : together);
}

/// One transaction. On the store's thread.
Result<void> Store::write(const std::function<void()>& change) {
  health_->begin();
  auto kept = keep_files();
  if (!kept) {
    health_->note(kept);
    return kept;
  }
  auto done = connection_->transact(change);
  // What is gone by now is written again with the change in it. If that fails, the change is in no greater
  // danger than everything else, which fault() and the next change report.
  if (done) (void)keep_files();
  const std::string& fault = connection_->checkpoint_fault();
  if (!fault.empty() && checkpoint_fault_.empty()) {
    note({.is_error = true,
          .text = "The store " + path_ + ": its -wal cannot be copied into it: " + fault +
                  ". Nothing is lost; the -wal grows until it can"});
  }
  checkpoint_fault_ = fault;
  health_->note(done);
  return done;
}

/// On the store's thread. An error: what is committed now would be in no file that anybody finds.
Result<void> Store::keep_files() {
  if (connection_->is_copy()) return leave_copy();
  const std::string change = connection_->files().change();
  connection_->set_names_are_ours(change.empty());
  if (change.empty()) {
    set_fault("");
    return {};
  }
  auto moved = connection_->move_to_new_files();
  if (!moved) {
    Error error = moved.error();
    error.detail = "Files of the store were deleted, moved or replaced under the running portwayd (" +
                   change +
                   "). Changes are refused, and what portwayd knows may be in no file any more: do not stop "
                   "it before this is over. " +
                   error.detail;
    set_fault(error.detail);
    return error;
  }
  set_fault("");
  if (*moved == nullptr) return {};
  connection_ = std::move(*moved);
  note({.is_error = false,
        .text = "Files of the store " + path_ +
                " were deleted, moved or replaced under the running portwayd (" + change +
                "). They have been written again, and nothing is lost"});
  return {};
}

/// Changes go to the files from now on, if those can be written. On the store's thread.
Result<void> Store::leave_copy() {
  const auto now = std::chrono::steady_clock::now();
  if (now - left_copy_at_ < kAskAgain) return Error{ErrorCode::kStoreUnavailable, fault()};
  left_copy_at_ = now;
  connection_->unlock();
  auto opened = open_connection(path_, clock_, [this](const std::string&) {
    return store_unavailable(path_, "the file is gone; put it back, or restore a backup");
  });
  // It is taken up now: who starts with it does not see that it was a backup.
  if (opened && !(*opened)->restored().empty()) note_restored(**opened);
  auto same = opened ? connection_->has_the_same_as(**opened) : opened.error();
  if (same && !*same) {
    same = store_unavailable(path_,
                             "it can be written again, and has other content than at the start of this "
                             "portwayd; restart it, to begin with that");
  }
  if (!same) {
    opened = same.error();  // which closes it
    connection_->lock_again();
    set_fault(same.error().detail + std::string(kServedFromMemory));
    return Error{ErrorCode::kStoreUnavailable, fault()};
  }
  connection_ = std::move(*opened);
  set_fault("");
  health_->note({});
  note({.is_error = false, .text = "The store " + path_ + " can be written again, and changes are accepted"});
  return {};
}

void Store::note_restored(const StoreConnection& connection) {
  note({.is_error = false, .text = "The store " + path_ + " " + connection.restored()});
}

void Store::look_after_files() {
  if (looking_.exchange(true)) return;
  thread_->post([this] {
    if (const auto kept = keep_files(); kept) {
      connection_->shrink();
    } else {
      health_->note(kept);
    }
    looking_ = false;
  });
}

std::string Store::fault() const {
  const std::lock_guard lock(mutex_);
  return fault_;
}

void Store::set_fault(const std::string& fault) {
  if (!fault.empty() && fault != this->fault()) note({.is_error = true, .text = fault});
  const std::lock_guard lock(mutex_);
  fault_ = fault;
}

void Store::note(Notice notice) {
  const std::lock_guard lock(mutex_);
  if (notices_.size() < kNoticesMax) notices_.push_back(std::move(notice));
}

std::vector<Store::Notice> Store::take_notices() {
  const std::lock_guard lock(mutex_);
  return std::exchange(notices_, {});
}

Change<std::shared_ptr<StoreBackup>> Store::back_up() {
  const auto place = backups_;
  const std::size_t others =
      static_cast<std::size_t>(place.use_count()) - 2;  // less the store's and this one
  if (others >= kBackupsMax) {
    co_return Error{.code = ErrorCode::kStreamLimit,
                    .detail = "Other backups are being made or fetched; try again when one of them is done.",
                    .limit = static_cast<std::int64_t>(kBackupsMax),
                    .current = static_cast<std::int64_t>(others)};
  }
  if (copier_ == nullptr) {
    auto started = StoreThread::start("backup", nullptr);
    if (!started) co_return started.error();
    copier_ = std::move(*started);
  }
  auto copied = co_await resume_later<Result<BackupFile>>([this](Resume<Result<BackupFile>> done) {
    thread_->post([this, done = std::move(done)] {
      auto kept = keep_files();
      if (!kept) return done(kept.error());
      auto reader = connection_->open_reader();
      if (!reader) return done(reader.error());
      copier_->post([path = path_, reader = std::move(*reader), done]() mutable {
        auto copy = copy_store(*reader, path);
        reader.reset();  // before an upgrade may close the store
        done(std::move(copy));
      });
    });
  });
  if (!copied) co_return copied.error();
  co_return std::make_shared<StoreBackup>(std::move(copied->file), copied->bytes, copier_, place);
}

void StoreBackup::read(std::uint64_t offset, std::size_t size, std::function<void(std::string)> done) const {
  const auto reader = reader_.lock();
  if (reader == nullptr) return;
  reader->post([file = file_, offset, size, done = std::move(done)] {
    std::string bytes(size, '\0');
    ssize_t got = 0;
    do {
      got = ::pread(file->get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    } while (got < 0 && errno == EINTR);
    bytes.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
    done(std::move(bytes));
  });
}

Result<void> Store::check_answers() const {
  const std::lock_guard lock(health_->mutex);
  return health_->check_answers();
}

Result<void> Store::last_write() const {
  const std::lock_guard lock(health_->mutex);
  if (health_->refused) return *health_->refused;
  return health_->check_answers();
}

Result<void> Store::writable() {
  const std::lock_guard lock(health_->mutex);
  const auto now = std::chrono::steady_clock::now();
  if (!health_->asked_at && now - health_->known_at >= kAskAgain) {
    health_->asked_at = now;  // also while the thread is still busy with something else
    thread_->post([this] { (void)write([this] { connection_->write_nothing_new(); }); });
  }
  if (health_->refused) return *health_->refused;
  return health_->check_answers();
}

Result<std::unique_ptr<Store>> Store::open(const std::string& given_path,
                                           const std::function<void()>& prepare_thread,
                                           const BootClock& clock) {
  // One name for one file, or two daemons could hold two locks.
  std::error_code error;
  const std::string path = fs::weakly_canonical(fs::absolute(given_path, error), error).string();
  if (error) return store_call_failed(given_path, "realpath", error.value());
  const bool is_missing = fs::exists(path + ".lock", error) && !fs::exists(path, error);
  auto files = StoreFiles::open(path, StoreConnection::create);
  if (!files && is_open_elsewhere(files.error())) return files.error();
  const std::string damage = wal_damage(path);  // before SQLite overwrites it
  auto connection = files ? StoreConnection::open(path, std::move(*files), clock) : files.error();
  const Result<void> writable = connection ? Result<void>() : connection.error();
  Result<void> readable;
  if (!writable) {
    auto copy = StoreConnection::open_copy(path, clock);
    if (copy) {
      connection = std::move(copy);
    } else {
      readable = copy.error();
    }
  }
  if (!connection) {
    Error refusal = connection.error();
    if (!damage.empty()) refusal.detail += " " + damage + ".";
    if (!readable && readable.error().detail != refusal.detail) {
      refusal.detail += " Nor can it be served from memory: " + readable.error().detail;
    }
    return refusal;
  }
  auto thread = StoreThread::start("store", prepare_thread);
  if (!thread) return thread.error();
  std::unique_ptr<Store> store(new Store(path, clock, std::move(*connection), std::move(*thread)));
  if (!writable) {
    store->set_fault(writable.error().detail + std::string(kServedFromMemory));
    store->health_->note(Error{ErrorCode::kStoreUnavailable, store->fault()});
  }
  if (!damage.empty()) store->note({.is_error = true, .text = "The store " + path + ": " + damage});
  if (is_missing) {
    store->note(
        {.is_error = false,
         .text = "The store " + path +
                 " was missing, although portwayd has run with it before: it begins without instances, "
                 "forwards and API keys. If it should have some, stop portwayd and restore a backup "
                 "(portwayd --restore FILE)"});
  }
  if (!store->connection_->restored().empty()) store->note_restored(*store->connection_);
  if (const auto names = store->connection_->files().names(); names > 1) {
    store->note(
        {.is_error = false,
         .text = "The store " + path + " has " + std::to_string(names) +
                 " names (hard links). Whoever opens it by another one does not find its -wal, and what is "
                 "in there: delete the others"});
  }
  return store;
}

void Store::suspend() {
  on_thread([&] {
    if (connection_->is_copy()) {
      connection_->unlock();
    } else {
      connection_.reset();
    }
    return true;
  });
}

Result<void> Store::resume() {
  return on_thread([&]() -> Result<void> {
    if (connection_) {
      connection_->lock_again();
      return {};
    }
    auto opened = open_connection(path_, clock_, StoreConnection::create);
    if (!opened && !is_open_elsewhere(opened.error())) {
      if (auto copy = StoreConnection::open_copy(path_, clock_)) {
        set_fault(opened.error().detail + std::string(kServedFromMemory));
        opened = std::move(copy);
      }
    }
    if (!opened) return opened.error();
    connection_ = std::move(*opened);
    return {};
  });
}

Result<std::vector<Instance>> Store::load_instances() {
  return on_thread([&] { return connection_->load_instances(); });
}

Result<std::vector<Forward>> Store::load_forwards() {
  return on_thread([&] { return connection_->load_forwards(); });
}

Result<std::vector<ApiKey>> Store::load_api_keys() {
  return on_thread([&] { return connection_->load_api_keys(); });
}

Result<std::vector<StoredUsage>> Store::load_usage() {
  return on_thread([&] { return connection_->load_usage(); });
}

Result<NodeDrain> Store::load_drain() {
  return on_thread([&] { return connection_->load_drain(); });
}

Change<void> Store::put_drain(NodeDrain drain) {
  return transact([this, drain] { connection_->put_drain(drain); });
}

Change<void> Store::put_instance(Instance instance) {
  return transact([this, instance = std::move(instance)] { connection_->put_instance(instance); });
}

Change<void> Store::start_session(Instance instance) {
  return transact([this, instance = std::move(instance)] {
    connection_->put_instance(instance);
    connection_->delete_other_sessions(instance);
  });
}

Change<void> Store::end_session(Instance stopped) {
  return transact([this, stopped = std::move(stopped)] {
    connection_->put_instance(stopped);
    connection_->delete_forwards(stopped.id);
  });
}

void Store::save_sessions(std::vector<Instance> sessions, std::function<void(Result<void>)> done) {
  ask({.change =
           [this, sessions = std::move(sessions)] {
             for (const Instance& session : sessions) {
               connection_->put_instance(session);
               if (session.state == InstanceState::kStopped) connection_->delete_forwards(session.id);
             }
           },
       .done = std::move(done)});
}

Change<void> Store::delete_instance(std::string id) {
  return transact([this, id = std::move(id)] { connection_->delete_instance(id); });
}

Change<void> Store::add_forward(Forward forward) {
  return add_forwards({std::move(forward)});
}

Change<void> Store::add_forwards(std::vector<Forward> forwards, std::optional<IdempotentAnswer> answer) {
  return transact([this, forwards = std::move(forwards), answer = std::move(answer)] {
    for (const Forward& forward : forwards) connection_->add_forward(forward);
    if (answer) connection_->add_answer(*answer);
  });
}

Change<std::optional<IdempotentAnswer>> Store::find_answer(std::string scope, std::string key) {
  using Found = Result<std::optional<IdempotentAnswer>>;
  return resume_later<Found>([this, scope = std::move(scope), key = std::move(key)](Resume<Found> done) {
    thread_->post([this, scope, key, done = std::move(done)] { done(connection_->find_answer(scope, key)); });
  });
}

Change<void> Store::update_forward(Forward forward) {
  Error not_found{ErrorCode::kNotFound, "There is no port forward " + to_string(forward.id) + "."};
  return transact_found([this, forward = std::move(forward)] { return connection_->update_forward(forward); },
                        std::move(not_found));
}

Change<void> Store::delete_forward(ForwardId id) {
  return transact([this, id] { connection_->delete_forward(id); });
}

Change<void> Store::change_forwards(std::vector<Forward> added, std::vector<Forward> updated,
                                    std::vector<ForwardId> removed) {
  return transact(
      [this, added = std::move(added), updated = std::move(updated), removed = std::move(removed)] {
        for (const ForwardId& id : removed) connection_->delete_forward(id);
        for (const Forward& forward : updated) (void)connection_->update_forward(forward);
        for (const Forward& forward : added) connection_->add_forward(forward);
      });
}

Change<void> Store::add_api_key(ApiKey key) {
  return transact([this, key = std::move(key)] { connection_->add_api_key(key); });
}

Change<void> Store::change_api_key(Uuid id, ApiKeyChange change) {
  return transact_found(
      [this, id, change = std::move(change)] { return connection_->change_api_key(id, change); },
      no_such_key(id));
}

Change<void> Store::rotate_api_key(Uuid id, std::array<std::uint8_t, 32> secret_sha256,
                                   std::optional<Timestamp> old_valid_until) {
  return transact_found(
      [this, id, secret_sha256, old_valid_until] {
        return connection_->rotate_api_key(id, secret_sha256, old_valid_until);
      },
      no_such_key(id));
}

void Store::save_api_key_uses(std::vector<ApiKeyUse> uses, std::function<void(Result<void>)> done) {
  ask({.change =
           [this, uses = std::move(uses)] {
             for (const ApiKeyUse& use : uses) connection_->save_api_key_use(use);
           },
       .done = std::move(done)});
}

void Store::save_usage(std::vector<StoredUsage> usage, std::function<void(Result<void>)> done) {
  ask({.change =
           [this, usage = std::move(usage)] {
             for (const StoredUsage& each : usage) connection_->save_usage(each);
           },
       .done = std::move(done)});
}

Change<void> Store::delete_api_key(Uuid id) {
  return transact([this, id] { connection_->delete_api_key(id); });
}

}  // namespace portway
