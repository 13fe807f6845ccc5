#include "control/store.h"

#include <algorithm>
#include <cassert>
#include <filesystem>
#include <system_error>
#include <utility>

#include "control/store_connection.h"
#include "control/store_files.h"
#include "control/store_thread.h"
#include "control/wal_damage.h"

namespace portway {
namespace fs = std::filesystem;

/// What is known of the disk. Any thread.
struct Store::Health {
  std::mutex mutex;  // protects what follows
  std::optional<Error> refused;
  std::chrono::steady_clock::time_point known_at = std::chrono::steady_clock::now();
  std::optional<std::chrono::steady_clock::time_point> asked_at;  // while it is being asked

  void note(const Result<void>& written) {
    const std::lock_guard lock(mutex);
    refused.reset();
    if (!written && written.error().code == ErrorCode::kStoreUnavailable) refused = written.error();
    known_at = std::chrono::steady_clock::now();
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

template <class Call>
std::invoke_result_t<Call> Store::on_thread(const Call& call) {
  assert(!waiting_ && "what runs meanwhile calls the store");
  waiting_ = true;
  std::optional<std::invoke_result_t<Call>> result;
  thread_->run_and_wait([&] { result.emplace(call()); }, meanwhile_);
  waiting_ = false;
  return std::move(*result);
}

template <class Change>
Result<void> Store::transact(const Change& change) {
  return on_thread([&] { return transact_here(change); });
}

/// On the store's thread.
template <class Change>
Result<void> Store::transact_here(const Change& change) {
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

void Store::look_after_files() {
  if (looking_.exchange(true)) return;
  thread_->post([this] {
    if (const auto kept = keep_files(); !kept) health_->note(kept);
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

Result<void> Store::writable() {
  const auto now = std::chrono::steady_clock::now();
  const std::lock_guard lock(health_->mutex);
  if (!health_->asked_at && now - health_->known_at >= kAskAgain) {
    health_->asked_at = now;
    thread_->post([this] {
      (void)transact_here([this] { connection_->write_nothing_new(); });
      const std::lock_guard answered(health_->mutex);
      health_->asked_at.reset();
    });
  }
  if (health_->refused) return *health_->refused;
  if (health_->asked_at && now - *health_->asked_at >= kPatience) {
    return Error{ErrorCode::kStoreUnavailable,
                 "The store: the disk does not answer; look for its errors in the kernel log."};
  }
  return {};
}

Result<std::unique_ptr<Store>> Store::open(const std::string& given_path,
                                           const std::function<void()>& prepare_thread,
                                           const BootClock& clock) {
  // One name for one file, or two daemons could hold two locks.
  std::error_code error;
  const std::string path = fs::weakly_canonical(fs::absolute(given_path, error), error).string();
  if (error) return store_call_failed(given_path, "realpath", error.value());
  auto files = StoreFiles::open(path);
  if (!files) return files.error();
  const std::string damage = wal_damage(path);  // before SQLite overwrites it
  auto connection = StoreConnection::open(path, std::move(*files), clock);
  if (!connection) {
    Error refusal = connection.error();
    if (!damage.empty()) refusal.detail += " " + damage + ".";
    return refusal;
  }
  auto thread = StoreThread::start(prepare_thread);
  if (!thread) return thread.error();
  std::unique_ptr<Store> store(new Store(path, clock, std::move(*connection), std::move(*thread)));
  if (!damage.empty()) store->note({.is_error = true, .text = "The store " + path + ": " + damage});
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
    connection_.reset();
    return true;
  });
}

Result<void> Store::resume() {
  return on_thread([&]() -> Result<void> {
    auto files = StoreFiles::open(path_);
    if (!files) return files.error();
    auto connection = StoreConnection::open(path_, std::move(*files), clock_);
    if (!connection) return connection.error();
    connection_ = std::move(*connection);
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

Result<void> Store::put_instance(const Instance& instance) {
  return transact([&] { connection_->put_instance(instance); });
}

Result<void> Store::start_session(const Instance& instance) {
  return transact([&] {
    connection_->put_instance(instance);
    connection_->delete_other_sessions(instance);
  });
}

Result<void> Store::end_session(const Instance& stopped) {
  return transact([&] {
    connection_->put_instance(stopped);
    connection_->delete_forwards(stopped.id);
  });
}

void Store::save_sessions(std::vector<Instance> sessions, std::function<void(Result<void>)> done) {
  thread_->post([this, sessions = std::move(sessions), done = std::move(done)] {
    done(transact_here([&] {
      for (const Instance& session : sessions) {
        connection_->put_instance(session);
        if (session.state == InstanceState::kStopped) connection_->delete_forwards(session.id);
      }
    }));
  });
}

Result<void> Store::delete_instance(std::string_view id) {
  return transact([&] { connection_->delete_instance(id); });
}

Result<void> Store::add_forward(const Forward& forward) {
  return add_forwards({&forward, 1});
}

Result<void> Store::add_forwards(std::span<const Forward> forwards, const IdempotentAnswer* answer) {
  return transact([&] {
    for (const Forward& forward : forwards) connection_->add_forward(forward);
    if (answer != nullptr) connection_->add_answer(*answer);
  });
}

Result<std::optional<IdempotentAnswer>> Store::find_answer(std::string_view scope, std::string_view key) {
  return on_thread([&] { return connection_->find_answer(scope, key); });
}

Result<void> Store::update_forward(const Forward& forward) {
  bool found = false;
  auto updated = transact([&] { found = connection_->update_forward(forward); });
  if (updated && !found) {
    return Error{ErrorCode::kNotFound, "There is no port forward " + to_string(forward.id) + "."};
  }
  return updated;
}

Result<void> Store::delete_forward(const ForwardId& id) {
  return transact([&] { connection_->delete_forward(id); });
}

Result<void> Store::add_api_key(const ApiKey& key) {
  return transact([&] { connection_->add_api_key(key); });
}

Result<void> Store::delete_api_key(const Uuid& id) {
  return transact([&] { connection_->delete_api_key(id); });
}

}  // namespace portway
