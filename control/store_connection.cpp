#include "control/store_connection.h"

#include <SQLiteCpp/Backup.h>
#include <SQLiteCpp/Statement.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <system_error>

#include "control/store_backup.h"
#include "control/store_rows.h"
#include "control/store_schema.h"

namespace portway {
namespace {

constexpr int kCheckpointPages = 1000;         // as SQLite's own
constexpr std::int64_t kShrinkPagesMin = 256;  // 1 MiB: less is not worth the writes
constexpr std::chrono::minutes kShrinkAgain(1);
constexpr int kBusyTimeoutMs = 500;  // for a sqlite3 shell that writes at this moment

std::string remedy(int code) {
  if (code == SQLITE_IOERR_SHMSIZE) code = SQLITE_FULL;  // no room for the -shm
  switch (code & 0xff) {
    case SQLITE_FULL:
      return "free space on its filesystem";
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
      return "make the file, its -wal and -shm and their directory writable for user " +
             std::to_string(geteuid());
    case SQLITE_IOERR:
      return "look for the disk's errors in the kernel log, and for a quota or size limit that is used up";
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return std::string(kRestoreOrDelete);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return "another program is writing to it; end that program";
    default:
      return "see https://www.sqlite.org/rescode.html";
  }
}

Error failure(const std::string& path, const SQLite::Exception& exception) {
  const int code = exception.getExtendedErrorCode();
  const std::string what = std::string(exception.what()) + " (SQLite code " + std::to_string(code) + ")";
  if (exception.getErrorCode() == SQLITE_CONSTRAINT) {
    return {ErrorCode::kInternal, "The store " + path + " contradicts the registry: " + what + "."};
  }
  return store_unavailable(path, what + "; " + remedy(code));
}

/// SQLite's settings that belong to the connection.
Result<void> set_up(SQLite::Database& database, const std::string& path) {
  const std::string mode = database.execAndGet("PRAGMA journal_mode = WAL").getString();
  if (mode != "wal") {
    return store_unavailable(path,
                             "its filesystem cannot share memory, which a write-ahead log needs; set "
                             "store.path to a local filesystem");
  }
  database.exec("PRAGMA synchronous = FULL");  // NORMAL would lose the last commits at a power loss
  database.exec("PRAGMA foreign_keys = ON");
  return {};
}

/// Makes of the database of any Portway before what this one works with. The result is take_up_restored()'s.
Result<std::string> bring_up_to_date(SQLite::Database& database, const std::string& path) {
  if (auto ours = check_store_ownership(database, path); !ours) return ours.error();
  if (auto ready = set_up(database, path); !ready) return ready.error();
  migrate_store(database);
  return take_up_restored(database);
}

/// All values of a table, in an order that only they decide.
std::vector<std::string> rows_of(SQLite::Database& database, const char* table) {
  std::vector<std::string> values;
  SQLite::Statement query(database, std::string("SELECT * FROM ") + table + " ORDER BY id");
  while (query.executeStep()) {
    for (int i = 0; i < query.getColumnCount(); ++i) values.push_back(query.getColumn(i).getString());
  }
  return values;
}

/// A directory that only this user sees. It goes with this, and what is in it.
class TemporaryDirectory {
 public:
  /// If it cannot be made, it has no path.
  explicit TemporaryDirectory(const std::string& place) {
    std::string name = place + "/portway-XXXXXX";  // mkdtemp(3) replaces the X
    if (::mkdtemp(name.data()) != nullptr) path_ = name;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace

Result<void> StoreConnection::create(const std::string& file) {
  try {
    SQLite::Database database(file, SQLite::OPEN_READWRITE);
    // Nobody looks for the file before it is complete.
    database.exec("PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF");
    migrate_store(database);
    return {};
  } catch (const SQLite::Exception& exception) {
    return portway::failure(file, exception);
  }
}

Result<std::unique_ptr<StoreConnection>> StoreConnection::open(const std::string& path, StoreFiles files,
                                                               const BootClock& clock) {
  try {
    SQLite::Database database(path, SQLite::OPEN_READWRITE, kBusyTimeoutMs);
    auto restored = bring_up_to_date(database, path);
    if (!restored) return restored.error();
    auto connection = std::make_unique<StoreConnection>(path, std::move(files), std::move(database), clock);
    connection->restored_ = std::move(*restored);
    return connection;
  } catch (const SQLite::Exception& exception) {
    return portway::failure(path, exception);
  }
}

Result<std::unique_ptr<StoreConnection>> StoreConnection::open_copy(const std::string& path,
                                                                    const BootClock& clock) {
  auto files = StoreFiles::look(path);
  if (!files) return files.error();
  std::optional<Error> failed;
  for (const char* place : {"/dev/shm", "/run", "/tmp"}) {
    try {
      const TemporaryDirectory directory(place);
      const Result<void> copied =
          directory.path().empty()
              ? Result<void>(store_unavailable(path, "no directory can be made in " + std::string(place)))
              : files->copy_to(directory.path());
      if (!copied) {
        if (!failed) failed = copied.error();
        continue;
      }
      // SQLite's recovery takes what the -wal has into the database; it needs a file for that.
      SQLite::Database file(directory.path() / std::filesystem::path(path).filename(),
                            SQLite::OPEN_READWRITE);
      auto restored = bring_up_to_date(file, path);
      if (!restored) return restored.error();
      SQLite::Database memory(":memory:", SQLite::OPEN_READWRITE);
      SQLite::Backup(memory, file).executeStep(-1);
      auto connection = std::make_unique<StoreConnection>(path, std::move(*files), std::move(memory), clock);
      connection->is_copy_ = true;
      connection->restored_ = std::move(*restored);
      return connection;
    } catch (const SQLite::Exception& exception) {
      if (!failed) failed = portway::failure(path, exception);
    }
  }
  return *failed;
}

Result<bool> StoreConnection::has_the_same_as(StoreConnection& other) {
  try {
    for (const char* table : {"instances", "forwards", "api_keys", "node"}) {
      if (rows_of(database_, table) != rows_of(other.database_, table)) return false;
    }
    return true;
  } catch (const SQLite::Exception& exception) {
    return failure(exception);
  }
}

StoreConnection::StoreConnection(std::string path, StoreFiles files, SQLite::Database database,
                                 const BootClock& clock)
    : path_(std::move(path)),
      clock_(clock),
      files_(std::move(files)),
      database_(std::move(database)),
      answers_(database_, statements_, clock) {
  files_.remember();
  ::sqlite3_wal_hook(database_.getHandle(), &StoreConnection::on_commit, this);
}

Error StoreConnection::failure(const SQLite::Exception& exception) const {
  return portway::failure(path_, exception);
}

Result<std::unique_ptr<StoreConnection>> StoreConnection::move_to_new_files() {
  try {
    if (auto locked = files_.keep_lock(); !locked) return locked.error();
    if (files_.change().empty()) return std::unique_ptr<StoreConnection>();
    if (files_.is_replaced()) {
      return store_unavailable(
          path_,
          "another file has its name; move that one away, and this one's content is "
          "written there within seconds; or else stop portwayd, to start with that file");
    }
    if (files_.has_database()) {  // it must be complete before its log is deleted
      const bool busy = database_.execAndGet("PRAGMA wal_checkpoint(TRUNCATE)").getInt() != 0;
      if (busy) return store_unavailable(path_, "another program is reading it; end that program");
    }
    auto successor = files_.make_successor();
    if (!successor) return successor.error();
    SQLite::Statement copy(database_, "VACUUM INTO ?");
    copy.bind(1, path_ + ".new");
    copy.exec();
    if (auto done = files_.hand_over(*successor); !done) return done.error();
    return open(path_, std::move(*successor), clock_);
  } catch (const SQLite::Exception& exception) {
    return failure(exception);
  }
}

Result<std::shared_ptr<SQLite::Database>> StoreConnection::open_reader() const {
  try {
    auto reader = std::make_shared<SQLite::Database>(path_, SQLite::OPEN_READONLY, kBusyTimeoutMs);
    reader->exec("PRAGMA synchronous = OFF");                        // of the copies that it makes
    (void)reader->execAndGet("SELECT count(*) FROM sqlite_schema");  // opens the -wal, too
    // Else the name may have led it to another file.
    if (const std::string change = files_.change(); !change.empty()) {
      return store_unavailable(path_, "its files were moved just now (" + change + "); try again");
    }
    return reader;
  } catch (const SQLite::Exception& exception) {
    return failure(exception);
  }
}

void StoreConnection::shrink() {
  try {
    const std::int64_t pages = database_.execAndGet("PRAGMA page_count").getInt64();
    if (pages < kShrinkPagesMin || 2 * database_.execAndGet("PRAGMA freelist_count").getInt64() < pages)
      return;
    const auto now = std::chrono::steady_clock::now();
    if (shrunk_at_ && now - *shrunk_at_ < kShrinkAgain) return;
    shrunk_at_ = now;
    database_.exec("VACUUM");
    // The file gets smaller when its log is copied into it; while somebody reads, a later commit does that.
    (void)database_.execAndGet("PRAGMA wal_checkpoint(TRUNCATE)");
  } catch (const SQLite::Exception&) {
    // No space for it, or another program writes: the file stays as it was.
  }
}

void StoreConnection::set_names_are_ours(bool ours) {
  ::sqlite3_db_config(database_.getHandle(), SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, ours ? 0 : 1, nullptr);
}

/// What SQLite does by itself, without reporting what came of it: the commit does not fail for it.
int StoreConnection::on_commit(void* self, sqlite3* handle, const char* name, int log_pages) {
  if (log_pages < kCheckpointPages) return SQLITE_OK;
  const int code = ::sqlite3_wal_checkpoint_v2(handle, name, SQLITE_CHECKPOINT_PASSIVE, nullptr, nullptr);
  std::string& fault = static_cast<StoreConnection*>(self)->checkpoint_fault_;
  fault.clear();
  if (code != SQLITE_OK && code != SQLITE_BUSY) fault = ::sqlite3_errstr(code) + ("; " + remedy(code));
  return SQLITE_OK;
}

template <class Row>
Result<std::vector<Row>> StoreConnection::load(const char* table, const char* query_text,
                                               Row (*read)(rows::RowReader&)) {
  try {
    std::vector<Row> rows;
    SQLite::Statement query(database_, query_text);
    while (query.executeStep()) {
      rows::RowReader reader(query);
      rows.push_back(read(reader));
      if (!reader.problem().empty()) {
        return store_unavailable(
            path_, "in table " + std::string(table) + ", the row with id " + in_quotes(reader.text("id")) +
                       " makes no sense: " + reader.problem() + "; correct or delete that row with sqlite3");
      }
    }
    return rows;
  } catch (const SQLite::Exception& exception) {
    return failure(exception);
  }
}

Result<std::vector<Instance>> StoreConnection::load_instances() {
  return load("instances", "SELECT * FROM instances ORDER BY id", rows::read_instance);
}

Result<std::vector<Forward>> StoreConnection::load_forwards() {
  return load("forwards",
              "SELECT *, EXISTS (SELECT 1 FROM instances WHERE instances.id = instance_id) AS "
              "instance_exists FROM forwards ORDER BY id",
              rows::read_forward);
}

Result<std::vector<ApiKey>> StoreConnection::load_api_keys() {
  return load("api_keys", "SELECT * FROM api_keys ORDER BY id", rows::read_api_key);
}

Result<std::vector<StoredUsage>> StoreConnection::load_usage() {
  auto usage = load("instance_usage", "SELECT * FROM instance_usage ORDER BY id", rows::read_instance_usage);
  if (!usage) return usage;
  auto forwards = load("forward_usage", "SELECT * FROM forward_usage ORDER BY id", rows::read_forward_usage);
  if (!forwards) return forwards;
  usage->insert(usage->end(), forwards->begin(), forwards->end());
  return usage;
}

Result<NodeDrain> StoreConnection::load_drain() {
  auto drains = load("node", "SELECT * FROM node", rows::read_drain);
  if (!drains) return drains.error();
  return drains->empty() ? NodeDrain() : drains->front();
}

Result<std::optional<IdempotentAnswer>> StoreConnection::find_answer(std::string_view scope,
                                                                     std::string_view key) {
  try {
    return answers_.find(scope, key);
  } catch (const SQLite::Exception& exception) {
    return failure(exception);
  }
}

void StoreConnection::put_instance(const Instance& instance) {
  // Not REPLACE, which would delete the row first and, by cascade, its forwards.
  statements_.execute(
      "INSERT INTO instances (id, guest_address, tap, owner, profile, vmm_pid, session_id, state, "
      "created_at, ended, tap_index, vmm_started, boot_id, tap_carrier_downs, idle_tap_index, "
      "idle_tap_carrier_downs, guest_address_v6, device, netns, netns_identity, tap_netns, "
      "tap_netns_identity, target_kind, target_socket, target_port, metadata) "
      "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
      "ON CONFLICT (id) DO UPDATE SET "
      "guest_address = excluded.guest_address, tap = excluded.tap, owner = excluded.owner, "
      "profile = excluded.profile, vmm_pid = excluded.vmm_pid, session_id = excluded.session_id, "
      "state = excluded.state, created_at = excluded.created_at, ended = excluded.ended, "
      "tap_index = excluded.tap_index, vmm_started = excluded.vmm_started, boot_id = excluded.boot_id, "
      "tap_carrier_downs = excluded.tap_carrier_downs, idle_tap_index = excluded.idle_tap_index, "
      "idle_tap_carrier_downs = excluded.idle_tap_carrier_downs, "
      "guest_address_v6 = excluded.guest_address_v6, device = excluded.device, netns = excluded.netns, "
      "netns_identity = excluded.netns_identity, tap_netns = excluded.tap_netns, "
      "tap_netns_identity = excluded.tap_netns_identity, "
      "target_kind = excluded.target_kind, target_socket = excluded.target_socket, "
      "target_port = excluded.target_port, metadata = excluded.metadata",
      instance.id, instance.guest_address.to_string(), instance.tap, instance.owner, instance.profile,
      instance.vmm_pid, instance.session_id, to_string(instance.state), instance.created_at, instance.ended,
      instance.tap_index, instance.vmm_started, instance.boot_id, instance.tap_carrier_downs,
      instance.idle_tap.index, instance.idle_tap.carrier_downs, instance.guest_address_v6, instance.device,
      instance.netns, to_string(instance.netns_identity), instance.tap_netns,
      to_string(instance.tap_netns_identity), to_string(instance.target.kind), instance.target.socket,
      instance.target.port, instance.metadata);
}

void StoreConnection::delete_instance(std::string_view id) {
  statements_.execute("DELETE FROM instances WHERE id = ?", id);
}

void StoreConnection::add_forward(const Forward& forward) {
  const TrafficLimits& limits = forward.limits;
  statements_.execute(
      "INSERT INTO forwards (id, instance_id, session_id, guest_port, host_port, protocol, label, "
      "created_at, allowed_cidrs, max_connections, max_connections_per_source, "
      "max_new_connections_per_second, max_bytes_per_second, source_mode, admin_limits, target_kind, "
      "target_socket, target_port, metadata, enabled, expires_at) "
      "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
      forward.id, forward.instance_id, forward.session_id, forward.guest_port, forward.host_port,
      forward.protocol, forward.label, forward.created_at, limits.allowed_cidrs, limits.max_connections,
      limits.max_connections_per_source, limits.max_new_connections_per_second, limits.max_bytes_per_second,
      to_string(forward.source_mode), forward.admin_limits, to_string(forward.target.kind),
      forward.target.socket, forward.target.port, forward.metadata, std::int32_t{forward.enabled},
      forward.expires_at);
}

bool StoreConnection::update_forward(const Forward& forward) {
  const TrafficLimits& limits = forward.limits;
  return statements_.execute(
             "UPDATE forwards SET label = ?, allowed_cidrs = ?, max_connections = ?, "
             "max_connections_per_source = ?, max_new_connections_per_second = ?, "
             "max_bytes_per_second = ?, source_mode = ?, admin_limits = ?, guest_port = ?, metadata = ?, "
             "enabled = ?, expires_at = ? WHERE id = ?",
             forward.label, limits.allowed_cidrs, limits.max_connections, limits.max_connections_per_source,
             limits.max_new_connections_per_second, limits.max_bytes_per_second,
             to_string(forward.source_mode), forward.admin_limits, forward.guest_port, forward.metadata,
             std::int32_t{forward.enabled}, forward.expires_at, forward.id) > 0;
}

void StoreConnection::delete_forward(const ForwardId& id) {
  statements_.execute("DELETE FROM forwards WHERE id = ?", id);
}

void StoreConnection::delete_forwards(std::string_view instance_id) {
  statements_.execute("DELETE FROM forwards WHERE instance_id = ?", instance_id);
}

void StoreConnection::delete_other_sessions(const Instance& instance) {
  statements_.execute("DELETE FROM forwards WHERE instance_id = ? AND session_id <> ?", instance.id,
                      instance.session_id);
}

void StoreConnection::add_api_key(const ApiKey& key) {
  const auto& old = key.old_secret;
  statements_.execute(
      "INSERT INTO api_keys (id, role, owner, secret_sha256, created_at, description, scope, instance_id, "
      "expires_at, last_used_at, old_secret_sha256, old_secret_until) "
      "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
      key.id, to_string(key.role), key.owner, key.secret_sha256, key.created_at, key.description,
      to_string(key.scope), key.instance_id, key.expires_at, key.last_used_at,
      old ? std::optional(old->sha256) : std::nullopt, old ? std::optional(old->valid_until) : std::nullopt);
}

bool StoreConnection::change_api_key(const Uuid& id, const ApiKeyChange& change) {
  return statements_.execute(
             "UPDATE api_keys SET description = iif(?, ?, description), expires_at = iif(?, ?, expires_at) "
             "WHERE id = ?",
             std::int32_t{change.description.has_value()}, change.description.value_or(""),
             std::int32_t{change.expires_at.has_value()}, change.expires_at.value_or(std::nullopt), id) > 0;
}

bool StoreConnection::rotate_api_key(const Uuid& id, const std::array<std::uint8_t, 32>& secret_sha256,
                                     std::optional<Timestamp> old_valid_until) {
  // The right sides are of the row as it was.
  return statements_.execute(
             "UPDATE api_keys SET old_secret_sha256 = iif(?, secret_sha256, NULL), old_secret_until = ?, "
             "secret_sha256 = ? WHERE id = ?",
             std::int32_t{old_valid_until.has_value()}, old_valid_until, secret_sha256, id) > 0;
}

void StoreConnection::save_api_key_use(const ApiKeyUse& use) {
  statements_.execute("UPDATE api_keys SET last_used_at = ? WHERE id = ?", use.last_used_at, use.id);
}

void StoreConnection::save_usage(const StoredUsage& usage) {
  // It is saved late: what it is about may be gone. So a SELECT, which finds nothing then.
  constexpr const char* kOfInstance =
      "INSERT INTO instance_usage (id, since, connections, received_bytes, sent_bytes, connection_ms, "
      "last_byte_at, last_connection_at) SELECT id, ?, ?, ?, ?, ?, ?, ? FROM instances WHERE id = ? "
      "ON CONFLICT (id) DO UPDATE SET since = excluded.since, connections = excluded.connections, "
      "received_bytes = excluded.received_bytes, sent_bytes = excluded.sent_bytes, "
      "connection_ms = excluded.connection_ms, last_byte_at = excluded.last_byte_at, "
      "last_connection_at = excluded.last_connection_at";
  constexpr const char* kOfForward =
      "INSERT INTO forward_usage (id, since, connections, received_bytes, sent_bytes, connection_ms, "
      "last_byte_at, last_connection_at) SELECT id, ?, ?, ?, ?, ?, ?, ? FROM forwards WHERE id = ? "
      "ON CONFLICT (id) DO UPDATE SET since = excluded.since, connections = excluded.connections, "
      "received_bytes = excluded.received_bytes, sent_bytes = excluded.sent_bytes, "
      "connection_ms = excluded.connection_ms, last_byte_at = excluded.last_byte_at, "
      "last_connection_at = excluded.last_connection_at";
  const UsageTotals& totals = usage.totals;
  statements_.execute(usage.kind == StoredUsage::Kind::kInstance ? kOfInstance : kOfForward, usage.since,
                      totals.connections, totals.received_bytes, totals.sent_bytes,
                      totals.connection_us / 1000, totals.last_byte_at_ms, totals.last_connection_at_ms,
                      usage.id);
}

void StoreConnection::delete_api_key(const Uuid& id) {
  statements_.execute("DELETE FROM api_keys WHERE id = ?", id);
}

void StoreConnection::put_drain(const NodeDrain& drain) {
  statements_.execute("UPDATE node SET draining_since = ? WHERE id = 1", drain.since);
  write_nothing_new();  // SQLite leaves out what is so already, and then does not ask the disk
}

void StoreConnection::write_nothing_new() {
  database_.exec("PRAGMA user_version = " + std::to_string(store_schema_version()));
}

}  // namespace portway
