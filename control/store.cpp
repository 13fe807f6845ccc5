#include "control/store.h"

#include <SQLiteCpp/Database.h>
#include <SQLiteCpp/Exception.h>
#include <SQLiteCpp/Statement.h>
#include <SQLiteCpp/Transaction.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sqlite3.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <limits>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <utility>

#include "base/blocked_signals.h"
#include "base/fd.h"
#include "control/store_files.h"
#include "control/wal_damage.h"

namespace portway {
namespace {

namespace fs = std::filesystem;

constexpr std::int32_t kApplicationId = 0x50574159;  // "PWAY": tells our files from other SQLite databases
constexpr int kCheckpointPages = 1000;               // as SQLite's own
constexpr int kBusyTimeoutMs = 500;                  // for a sqlite3 shell that writes at this moment
constexpr std::int64_t kEndOfYear9999Ms = 253'402'300'799'999;  // the last that RFC 3339 can write

/// Script N takes the schema from version N to N + 1 (PRAGMA user_version). Released scripts never change.
/// Ids and addresses are text and times are Unix milliseconds, so that a shell shows what is meant.
constexpr auto kMigrations = std::to_array<const char*>({
    R"sql(
      PRAGMA application_id = 0x50574159;
      CREATE TABLE instances (
        id TEXT PRIMARY KEY NOT NULL,
        guest_address TEXT NOT NULL,
        tap TEXT NOT NULL,
        owner TEXT NOT NULL,
        profile TEXT NOT NULL,
        vmm_pid INTEGER,
        session_id TEXT NOT NULL,
        state TEXT NOT NULL,
        created_at INTEGER NOT NULL
      ) STRICT, WITHOUT ROWID;
      CREATE TABLE forwards (
        id TEXT PRIMARY KEY NOT NULL,
        instance_id TEXT NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
        session_id TEXT NOT NULL,
        guest_port INTEGER NOT NULL,
        host_port INTEGER NOT NULL UNIQUE,
        protocol TEXT NOT NULL,
        label TEXT NOT NULL,
        created_at INTEGER NOT NULL
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX forwards_by_instance ON forwards (instance_id);
      CREATE TABLE api_keys (
        id TEXT PRIMARY KEY NOT NULL,
        role TEXT NOT NULL,
        owner TEXT NOT NULL,
        secret_sha256 BLOB NOT NULL UNIQUE,
        created_at INTEGER NOT NULL
      ) STRICT, WITHOUT ROWID;
    )sql",
    R"sql(
      ALTER TABLE instances ADD COLUMN ended TEXT;
      ALTER TABLE instances ADD COLUMN tap_index INTEGER NOT NULL DEFAULT 0;
      ALTER TABLE instances ADD COLUMN vmm_started INTEGER NOT NULL DEFAULT 0;
      ALTER TABLE instances ADD COLUMN boot_id TEXT NOT NULL DEFAULT '';
      CREATE TABLE idempotent_answers (
        scope TEXT NOT NULL,
        key TEXT NOT NULL,
        request_sha256 BLOB NOT NULL,
        location TEXT NOT NULL,
        body TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        PRIMARY KEY (scope, key)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX idempotent_answers_by_scope ON idempotent_answers (scope, created_at);
      CREATE INDEX idempotent_answers_by_age ON idempotent_answers (created_at);
    )sql",
    R"sql(
      ALTER TABLE forwards ADD COLUMN allowed_cidrs TEXT NOT NULL DEFAULT '';
      ALTER TABLE forwards ADD COLUMN max_connections INTEGER NOT NULL DEFAULT 0;
      ALTER TABLE forwards ADD COLUMN max_connections_per_source INTEGER NOT NULL DEFAULT 0;
      ALTER TABLE forwards ADD COLUMN max_new_connections_per_second INTEGER NOT NULL DEFAULT 0;
      ALTER TABLE forwards ADD COLUMN max_bytes_per_second INTEGER NOT NULL DEFAULT 0;
    )sql",
    R"sql(
      ALTER TABLE forwards ADD COLUMN source_mode TEXT NOT NULL DEFAULT 'auto';
    )sql",
    R"sql(
      ALTER TABLE forwards ADD COLUMN admin_limits TEXT NOT NULL DEFAULT '';
      ALTER TABLE instances ADD COLUMN tap_carrier_downs INTEGER;
      ALTER TABLE instances ADD COLUMN idle_tap_index INTEGER NOT NULL DEFAULT 0;
      ALTER TABLE instances ADD COLUMN idle_tap_carrier_downs INTEGER;
    )sql",
    R"sql(
      ALTER TABLE instances ADD COLUMN guest_address_v6 TEXT;
    )sql",
    // running_ms: when an answer was made, by RunningTime. Of older ones only the clock can tell.
    R"sql(
      CREATE TABLE running_time (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        boot_id TEXT NOT NULL,
        boot_began_ms INTEGER NOT NULL
      ) STRICT;
      ALTER TABLE idempotent_answers ADD COLUMN running_ms INTEGER NOT NULL DEFAULT 0;
      UPDATE idempotent_answers
        SET running_ms = min(0, created_at - CAST(strftime('%s', 'now') AS INTEGER) * 1000);
      DROP INDEX idempotent_answers_by_scope;
      DROP INDEX idempotent_answers_by_age;
      CREATE INDEX idempotent_answers_by_scope ON idempotent_answers (scope, running_ms);
      CREATE INDEX idempotent_answers_by_age ON idempotent_answers (running_ms);
    )sql",
});

std::string remedy(int code) {
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
      return "restore it from a backup, or move it away to start without instances and forwards";
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

// One bind() for each type of our columns.
void bind(SQLite::Statement& statement, int index, const std::string& value) {
  statement.bind(index, value);
}
void bind(SQLite::Statement& statement, int index, std::string_view value) {
  statement.bind(index, std::string(value));
}
void bind(SQLite::Statement& statement, int index, std::uint16_t value) {
  statement.bind(index, std::int32_t{value});
}
void bind(SQLite::Statement& statement, int index, std::optional<std::int32_t> value) {
  value ? statement.bind(index, *value) : statement.bind(index);
}
void bind(SQLite::Statement& statement, int index, std::optional<std::uint32_t> value) {
  value ? statement.bind(index, std::int64_t{*value}) : statement.bind(index);
}
void bind(SQLite::Statement& statement, int index, std::int32_t value) {
  statement.bind(index, value);
}
void bind(SQLite::Statement& statement, int index, std::int64_t value) {
  statement.bind(index, value);
}
void bind(SQLite::Statement& statement, int index, std::uint64_t value) {
  statement.bind(index, static_cast<std::int64_t>(value));
}
void bind(SQLite::Statement& statement, int index, std::uint32_t value) {
  statement.bind(index, std::int64_t{value});
}
void bind(SQLite::Statement& statement, int index, const std::vector<Cidr>& networks) {
  std::string text;
  for (const Cidr& network : networks) text += (text.empty() ? "" : ",") + network.to_string();
  statement.bind(index, text);
}
void bind(SQLite::Statement& statement, int index, const LimitSet& limits) {
  std::string text;
  for (const std::string_view name : names_of(limits)) text.append(text.empty() ? "" : ",").append(name);
  statement.bind(index, text);
}
void bind(SQLite::Statement& statement, int index, const std::optional<SessionEnd>& value) {
  value ? statement.bind(index, std::string(to_string(*value))) : statement.bind(index);
}
void bind(SQLite::Statement& statement, int index, const std::optional<IpAddress>& value) {
  value ? statement.bind(index, value->to_string()) : statement.bind(index);
}
void bind(SQLite::Statement& statement, int index, const Uuid& value) {
  statement.bind(index, to_string(value));
}
void bind(SQLite::Statement& statement, int index, Timestamp value) {
  statement.bind(index, std::int64_t{value.time_since_epoch().count()});
}
void bind(SQLite::Statement& statement, int index, const std::array<std::uint8_t, 32>& value) {
  statement.bind(index, value.data(), static_cast<int>(value.size()));
}

/// Returns how many rows changed. However it ends, the statement can be used again.
template <class... Values>
int execute(SQLite::Statement& statement, const Values&... values) {
  struct Reset {
    SQLite::Statement& statement;
    ~Reset() { statement.tryReset(); }
  };
  const Reset reset{statement};
  int index = 0;
  (bind(statement, ++index, values), ...);
  return statement.exec();
}

/// Reads the current row of a query column by column, and remembers the first value that makes no sense.
class RowReader {
 public:
  explicit RowReader(SQLite::Statement& query) : query_(query) {}

  /// Empty when all was well.
  const std::string& problem() const { return problem_; }
  void reject(const char* column, const std::string& why) {
    if (problem_.empty()) problem_ = std::string(column) + " " + in_quotes(text(column)) + " " + why;
  }
  /// `check` looked at one of the values; its detail says which.
  void require(const Result<void>& check) {
    if (check || !problem_.empty()) return;
    problem_ = check.error().detail;
    if (problem_.ends_with('.')) problem_.pop_back();
  }

  std::string text(const char* column) { return query_.getColumn(column).getString(); }
  std::int64_t number(const char* column, std::int64_t least, std::int64_t most) {
    const std::int64_t value = query_.getColumn(column).getInt64();
    if (least <= value && value <= most) return value;
    reject(column, "is not " + std::to_string(least) + " to " + std::to_string(most));
    return least;
  }
  std::uint16_t port(const char* column) {
    return static_cast<std::uint16_t>(number(column, 1, std::numeric_limits<std::uint16_t>::max()));
  }
  Timestamp time(const char* column) {
    return Timestamp(std::chrono::milliseconds(number(column, 0, kEndOfYear9999Ms)));
  }
  std::optional<std::int32_t> process_id(const char* column) {
    if (query_.isColumnNull(column)) return std::nullopt;
    return static_cast<std::int32_t>(number(column, 2, std::numeric_limits<std::int32_t>::max()));
  }
  std::uint32_t number32(const char* column) {
    return static_cast<std::uint32_t>(number(column, 0, std::numeric_limits<std::uint32_t>::max()));
  }
  std::optional<std::uint32_t> number32_or_none(const char* column) {
    if (query_.isColumnNull(column)) return std::nullopt;
    return number32(column);
  }
  std::int32_t interface_index(const char* column) {
    return static_cast<std::int32_t>(number(column, 0, std::numeric_limits<std::int32_t>::max()));
  }
  std::vector<Cidr> networks(const char* column) {
    std::vector<Cidr> list;
    const std::string all = text(column);
    for (std::size_t at = 0; at < all.size();) {
      const std::size_t end = std::min(all.find(',', at), all.size());
      const auto network = Cidr::parse(std::string_view(all).substr(at, end - at));
      if (!network) {
        reject(column, "is no list of networks");
        break;
      }
      list.push_back(*network);
      at = end + 1;
    }
    return list;
  }
  LimitSet limits(const char* column) {
    LimitSet set;
    const std::string all = text(column);
    for (std::size_t at = 0; at < all.size();) {
      const std::size_t end = std::min(all.find(',', at), all.size());
      const auto limit = parse_limit(std::string_view(all).substr(at, end - at));
      if (!limit) {
        reject(column, "is no list of limits");
        break;
      }
      set.set(static_cast<std::size_t>(*limit));
      at = end + 1;
    }
    return set;
  }
  std::optional<SessionEnd> session_end(const char* column) {
    if (query_.isColumnNull(column)) return std::nullopt;
    const auto value = parse_session_end(text(column));
    if (!value) reject(column, "is no reason for a session's end");
    return value;
  }
  Uuid uuid(const char* column) {
    const auto value = parse_uuid(text(column));
    if (!value) reject(column, "is not a UUID");
    return value.value_or(Uuid{});
  }
  IpAddress address(const char* column) {
    const auto value = parse_address(text(column));
    if (!value) reject(column, "is not an IP address");
    return value ? *value : IpAddress{};
  }
  /// Beside an IPv4 address.
  std::optional<IpAddress> second_address(const char* column, const IpAddress& first) {
    if (query_.isColumnNull(column)) return std::nullopt;
    const IpAddress value = address(column);
    if (first.is_v6() || value.is_v4()) reject(column, "is not an IPv6 address beside an IPv4 one");
    return value;
  }
  std::array<std::uint8_t, 32> sha256(const char* column) {
    std::array<std::uint8_t, 32> hash{};
    const SQLite::Column value = query_.getColumn(column);
    if (value.getBytes() == static_cast<int>(hash.size())) {
      const auto* bytes = static_cast<const std::uint8_t*>(value.getBlob());
      std::copy_n(bytes, hash.size(), hash.begin());
    } else {
      reject(column, "is not a SHA-256, which has 32 bytes");
    }
    return hash;
  }

 private:
  SQLite::Statement& query_;
  std::string problem_;
};

Instance read_instance(RowReader& row) {
  Instance instance;
  instance.id = row.text("id");
  instance.guest_address = row.address("guest_address");
  instance.guest_address_v6 = row.second_address("guest_address_v6", instance.guest_address);
  instance.tap = row.text("tap");
  instance.owner = row.text("owner");
  instance.profile = row.text("profile");
  instance.vmm_pid = row.process_id("vmm_pid");
  instance.session_id = row.uuid("session_id");
  const std::string state = row.text("state");
  if (state == to_string(InstanceState::kStopped)) {
    instance.state = InstanceState::kStopped;
  } else if (state != to_string(InstanceState::kRunning)) {
    row.reject("state", "is neither running nor stopped");
  }
  instance.created_at = row.time("created_at");
  instance.ended = row.session_end("ended");
  instance.tap_index = row.interface_index("tap_index");
  instance.tap_carrier_downs = row.number32_or_none("tap_carrier_downs");
  instance.idle_tap = {.index = row.interface_index("idle_tap_index"),
                       .carrier_downs = row.number32_or_none("idle_tap_carrier_downs")};
  instance.vmm_started =
      static_cast<std::uint64_t>(row.number("vmm_started", 0, std::numeric_limits<std::int64_t>::max()));
  instance.boot_id = row.text("boot_id");
  row.require(check_instance_id(instance.id));
  row.require(check_tap(instance.tap));
  row.require(check_owner(instance.owner));
  return instance;
}

Forward read_forward(RowReader& row) {
  Forward forward;
  forward.id = row.uuid("id");
  forward.instance_id = row.text("instance_id");
  forward.session_id = row.uuid("session_id");
  forward.guest_port = row.port("guest_port");
  forward.host_port = row.port("host_port");
  forward.protocol = row.text("protocol");
  if (forward.protocol != "tcp") row.reject("protocol", "is not tcp");
  forward.label = row.text("label");
  row.require(check_label(forward.label));
  forward.created_at = row.time("created_at");
  forward.limits = {.allowed_cidrs = row.networks("allowed_cidrs"),
                    .max_connections = row.number32("max_connections"),
                    .max_connections_per_source = row.number32("max_connections_per_source"),
                    .max_new_connections_per_second = row.number32("max_new_connections_per_second"),
                    .max_bytes_per_second = static_cast<std::uint64_t>(
                        row.number("max_bytes_per_second", 0, std::numeric_limits<std::int64_t>::max()))};
  const auto source_mode = parse_source_mode(row.text("source_mode"));
  if (!source_mode) row.reject("source_mode", "is none of auto, transparent, plain, proxy_v2");
  forward.source_mode = source_mode.value_or(SourceMode::kAuto);
  forward.admin_limits = row.limits("admin_limits");
  // A shell does not watch over foreign keys unless it is told to.
  if (row.number("instance_exists", 0, 1) == 0) row.reject("instance_id", "is no instance");
  return forward;
}

ApiKey read_api_key(RowReader& row) {
  ApiKey key;
  key.id = row.uuid("id");
  const auto role = parse_role(row.text("role"));
  if (!role) row.reject("role", "is neither admin nor tenant");
  key.role = role.value_or(Role::kTenant);
  key.owner = row.text("owner");
  row.require(check_owner(key.owner));
  key.secret_sha256 = row.sha256("secret_sha256");
  key.created_at = row.time("created_at");
  return key;
}

std::int32_t read_pragma(SQLite::Database& database, const char* pragma) {
  return database.execAndGet(pragma).getInt();
}

/// Looks without touching: whose file is it, and how old?
Result<void> check_ownership(SQLite::Database& database, const std::string& path) {
  const bool empty = read_pragma(database, "SELECT count(*) FROM sqlite_schema") == 0;
  if (!empty && read_pragma(database, "PRAGMA application_id") != kApplicationId) {
    return store_unavailable(path,
                             "this database belongs to another program; set store.path to another file");
  }
  const std::int32_t version = read_pragma(database, "PRAGMA user_version");
  if (version < 0 || static_cast<std::size_t>(version) > kMigrations.size()) {
    return store_unavailable(path, "a newer Portway wrote it (schema " + std::to_string(version) +
                                       ", this one knows " + std::to_string(kMigrations.size()) +
                                       "); run that Portway, or restore a backup from before the upgrade");
  }
  return {};
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

/// Milliseconds that have passed on the node since the store was made, over restarts and reboots, whatever
/// the node's clock is set to. The ages of answers are differences of it.
class RunningTime {
 public:
  /// In the boot that the store knows, it has gone on all the time. In another one it has gone on from the
  /// last answer since the kernel's start; where either boot is unknown, it goes on from the last answer now.
  RunningTime(SQLite::Database& database, const BootClock& clock) : clock_(clock), boot_id_(clock.boot_id()) {
    SQLite::Statement query(
        database,
        "SELECT (SELECT boot_id FROM running_time), (SELECT boot_began_ms FROM running_time), "
        "(SELECT max(running_ms) FROM idempotent_answers)");  // null where there is none
    query.executeStep();
    const std::string boot_before = query.getColumn(0).getString();
    last_ = std::max<std::int64_t>(0, sane(query.getColumn(2).getInt64()));
    const std::int64_t uptime = clock_.uptime().count();
    std::int64_t now = last_ + 1;
    if (!boot_id_.empty() && !boot_before.empty()) {
      now = uptime + (boot_id_ == boot_before ? sane(query.getColumn(1).getInt64()) : last_);
    }
    boot_began_ = std::max(now, last_) - uptime;
  }

  /// What a store must know to go on from here.
  const std::string& boot_id() const { return boot_id_; }
  std::int64_t boot_began() const { return boot_began_; }

  std::int64_t now() const { return boot_began_ + clock_.uptime().count(); }
  /// Later than the one before, so that the order of answers is the one in which they came.
  std::int64_t next() { return last_ = std::max(now(), last_ + 1); }

 private:
  /// Somebody may have edited it, and it is added to.
  static std::int64_t sane(std::int64_t stored) {
    return std::clamp(stored, -kEndOfYear9999Ms, kEndOfYear9999Ms);
  }

  const BootClock clock_;
  const std::string boot_id_;
  std::int64_t boot_began_ = 0;  // below 0 where the store is younger than the boot
  std::int64_t last_ = 0;
};

void migrate(SQLite::Database& database) {
  const auto version = static_cast<std::size_t>(read_pragma(database, "PRAGMA user_version"));
  for (std::size_t next = version; next < kMigrations.size(); ++next) {
    SQLite::Transaction transaction(database, SQLite::TransactionBehavior::IMMEDIATE);
    database.exec(kMigrations[next]);
    database.exec("PRAGMA user_version = " + std::to_string(next + 1));
    transaction.commit();
  }
}

}  // namespace

/// The open file and its statements, compiled once. Its functions translate SQLite's exceptions, which go no
/// further; what `change` or `read` throws otherwise is a mistake of ours.
class Store::Connection {
 public:
  /// Throws SQLite::Exception when a statement does not fit the schema.
  Connection(std::string path, StoreFiles files, SQLite::Database database, const BootClock& clock)
      : path_(std::move(path)),
        clock_(clock),
        files_(std::move(files)),
        database_(std::move(database)),
        running_time_(database_, clock) {
    files_.remember();
    ::sqlite3_wal_hook(database_.getHandle(), &Connection::on_commit, this);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  static Result<std::unique_ptr<Connection>> open(const std::string& path, StoreFiles files,
                                                  const BootClock& clock) {
    try {
      SQLite::Database database(path, SQLite::OPEN_READWRITE, kBusyTimeoutMs);
      if (auto ours = check_ownership(database, path); !ours) return ours.error();
      if (auto ready = set_up(database, path); !ready) return ready.error();
      migrate(database);
      return std::make_unique<Connection>(path, std::move(files), std::move(database), clock);
    } catch (const SQLite::Exception& exception) {
      return failure(path, exception);
    }
  }

  const StoreFiles& files() const { return files_; }
  /// Why the log could not be copied into the database when that was last tried; empty where it could.
  const std::string& checkpoint_fault() const { return checkpoint_fault_; }

  /// The same in new files, to take the place of this one, whose files have lost their names. They are still
  /// open, and have everything. Null where only the lock's was gone.
  Result<std::unique_ptr<Connection>> move_to_new_files() {
    try {
      if (auto locked = files_.keep_lock(); !locked) return locked.error();
      if (files_.change().empty()) return std::unique_ptr<Connection>();
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
      return failure(path_, exception);
    }
  }

  /// Closing deletes -wal and -shm by their names. `ours`: whether those are this one's.
  void set_names_are_ours(bool ours) {
    ::sqlite3_db_config(database_.getHandle(), SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, ours ? 0 : 1, nullptr);
  }

  /// Does `change` in a transaction. IMMEDIATE, so that a busy file is found before anything is written.
  template <class Change>
  Result<void> transact(const Change& change) {
    try {
      SQLite::Transaction transaction(database_, SQLite::TransactionBehavior::IMMEDIATE);
      change();
      transaction.commit();
      return {};
    } catch (const SQLite::Exception& exception) {
      return failure(path_, exception);  // and ~Transaction has rolled back
    }
  }

  template <class Row>
  Result<std::vector<Row>> load(const char* table, const char* query_text, Row (*read)(RowReader&)) {
    try {
      std::vector<Row> rows;
      SQLite::Statement query(database_, query_text);
      while (query.executeStep()) {
        RowReader reader(query);
        rows.push_back(read(reader));
        if (!reader.problem().empty()) {
          return store_unavailable(path_, "in table " + std::string(table) + ", the row with id " +
                                              in_quotes(reader.text("id")) + " makes no sense: " +
                                              reader.problem() + "; correct or delete that row with sqlite3");
        }
      }
      return rows;
    } catch (const SQLite::Exception& exception) {
      return failure(path_, exception);
    }
  }

  Result<std::optional<IdempotentAnswer>> find_answer(std::string_view scope, std::string_view key) {
    try {
      SQLite::Statement query(database_,
                              "SELECT * FROM idempotent_answers WHERE scope = ? AND key = ? AND "
                              "running_ms >= ?");
      bind(query, 1, scope);
      bind(query, 2, key);
      bind(query, 3, oldest_kept());
      if (!query.executeStep()) return std::optional<IdempotentAnswer>();
      RowReader row(query);
      return std::optional(IdempotentAnswer{.scope = std::string(scope),
                                            .key = std::string(key),
                                            .request_sha256 = row.sha256("request_sha256"),
                                            .location = row.text("location"),
                                            .body = row.text("body"),
                                            .created_at = row.time("created_at")});
    } catch (const SQLite::Exception& exception) {
      return failure(path_, exception);
    }
  }

  // The parts of transactions; they throw SQLite::Exception.
  void put_instance(const Instance& instance) {
    execute(put_instance_, instance.id, instance.guest_address.to_string(), instance.tap, instance.owner,
            instance.profile, instance.vmm_pid, instance.session_id, to_string(instance.state),
            instance.created_at, instance.ended, instance.tap_index, instance.vmm_started, instance.boot_id,
            instance.tap_carrier_downs, instance.idle_tap.index, instance.idle_tap.carrier_downs,
            instance.guest_address_v6);
  }
  void delete_instance(std::string_view id) { execute(delete_instance_, id); }
  void add_forward(const Forward& forward) {
    execute(add_forward_, forward.id, forward.instance_id, forward.session_id, forward.guest_port,
            forward.host_port, forward.protocol, forward.label, forward.created_at,
            forward.limits.allowed_cidrs, forward.limits.max_connections,
            forward.limits.max_connections_per_source, forward.limits.max_new_connections_per_second,
            forward.limits.max_bytes_per_second, to_string(forward.source_mode), forward.admin_limits);
  }
  bool update_forward(const Forward& forward) {
    return execute(update_forward_, forward.label, forward.limits.allowed_cidrs,
                   forward.limits.max_connections, forward.limits.max_connections_per_source,
                   forward.limits.max_new_connections_per_second, forward.limits.max_bytes_per_second,
                   to_string(forward.source_mode), forward.admin_limits, forward.id) > 0;
  }
  void delete_forward(const ForwardId& id) { execute(delete_forward_, id); }
  void delete_forwards(std::string_view instance_id) { execute(delete_forwards_, instance_id); }
  void delete_other_sessions(const Instance& instance) {
    execute(delete_other_sessions_, instance.id, instance.session_id);
  }
  void add_api_key(const ApiKey& key) {
    execute(add_api_key_, key.id, to_string(key.role), key.owner, key.secret_sha256, key.created_at);
  }
  void delete_api_key(const Uuid& id) { execute(delete_api_key_, id); }
  /// The schema's version, which is what it was: a page for the disk all the same.
  void write_nothing_new() { database_.exec("PRAGMA user_version = " + std::to_string(kMigrations.size())); }
  void add_answer(const IdempotentAnswer& answer) {
    execute(keep_running_time_, running_time_.boot_id(), running_time_.boot_began());
    execute(forget_old_answers_, oldest_kept());
    execute(add_answer_, answer.scope, answer.key, answer.request_sha256, answer.location, answer.body,
            answer.created_at, running_time_.next());
    execute(forget_surplus_answers_, answer.scope, answer.scope);
    // Not each time: that reads them all.
    std::size_t& added = answer_bytes_added_[answer.scope];
    added += answer.body.size();
    if (added <= Store::kAnswerBytesMax / 4) return;
    added = 0;
    execute(forget_large_answers_, answer.scope, answer.scope);
  }

 private:
  std::int64_t oldest_kept() const {
    return running_time_.now() - std::chrono::milliseconds(Store::kAnswerKept).count();
  }

  /// What SQLite does by itself, without telling what came of it: the commit does not fail for it.
  static int on_commit(void* self, sqlite3* handle, const char* name, int log_pages) {
    if (log_pages < kCheckpointPages) return SQLITE_OK;
    const int code = ::sqlite3_wal_checkpoint_v2(handle, name, SQLITE_CHECKPOINT_PASSIVE, nullptr, nullptr);
    std::string& fault = static_cast<Connection*>(self)->checkpoint_fault_;
    fault.clear();
    if (code != SQLITE_OK && code != SQLITE_BUSY) fault = ::sqlite3_errstr(code) + ("; " + remedy(code));
    return SQLITE_OK;
  }

  const std::string path_;
  const BootClock clock_;
  std::string checkpoint_fault_;
  StoreFiles files_;  // outlives the database's connection
  SQLite::Database database_;
  RunningTime running_time_;

  // Not REPLACE, which would delete the row first and, by cascade, its forwards.
  SQLite::Statement put_instance_{
      database_,
      "INSERT INTO instances (id, guest_address, tap, owner, profile, vmm_pid, session_id, state, "
      "created_at, ended, tap_index, vmm_started, boot_id, tap_carrier_downs, idle_tap_index, "
      "idle_tap_carrier_downs, guest_address_v6) "
      "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
      "guest_address = excluded.guest_address, tap = excluded.tap, owner = excluded.owner, "
      "profile = excluded.profile, vmm_pid = excluded.vmm_pid, session_id = excluded.session_id, "
      "state = excluded.state, created_at = excluded.created_at, ended = excluded.ended, "
      "tap_index = excluded.tap_index, vmm_started = excluded.vmm_started, boot_id = excluded.boot_id, "
      "tap_carrier_downs = excluded.tap_carrier_downs, idle_tap_index = excluded.idle_tap_index, "
      "idle_tap_carrier_downs = excluded.idle_tap_carrier_downs, "
      "guest_address_v6 = excluded.guest_address_v6"};
  SQLite::Statement delete_instance_{database_, "DELETE FROM instances WHERE id = ?"};
  SQLite::Statement add_forward_{database_,
                                 "INSERT INTO forwards (id, instance_id, session_id, guest_port, host_port, "
                                 "protocol, label, created_at, allowed_cidrs, max_connections, "
                                 "max_connections_per_source, max_new_connections_per_second, "
                                 "max_bytes_per_second, source_mode, admin_limits) "
                                 "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"};
  SQLite::Statement update_forward_{
      database_,
      "UPDATE forwards SET label = ?, allowed_cidrs = ?, max_connections = ?, "
      "max_connections_per_source = ?, max_new_connections_per_second = ?, "
      "max_bytes_per_second = ?, source_mode = ?, admin_limits = ? WHERE id = ?"};
  SQLite::Statement delete_forward_{database_, "DELETE FROM forwards WHERE id = ?"};
  SQLite::Statement delete_forwards_{database_, "DELETE FROM forwards WHERE instance_id = ?"};
  SQLite::Statement delete_other_sessions_{database_,
                                           "DELETE FROM forwards WHERE instance_id = ? AND session_id <> ?"};
  SQLite::Statement add_api_key_{
      database_, "INSERT INTO api_keys (id, role, owner, secret_sha256, created_at) VALUES (?, ?, ?, ?, ?)"};
  SQLite::Statement delete_api_key_{database_, "DELETE FROM api_keys WHERE id = ?"};
  SQLite::Statement add_answer_{database_,
                                "INSERT OR REPLACE INTO idempotent_answers (scope, key, request_sha256, "
                                "location, body, created_at, running_ms) VALUES (?, ?, ?, ?, ?, ?, ?)"};
  // With the first answer of a boot: a full disk does not keep a store from being opened.
  SQLite::Statement keep_running_time_{
      database_,
      "INSERT INTO running_time (id, boot_id, boot_began_ms) VALUES (1, ?, ?) ON CONFLICT (id) DO UPDATE SET "
      "boot_id = excluded.boot_id, boot_began_ms = excluded.boot_began_ms "
      "WHERE boot_id <> excluded.boot_id OR boot_began_ms <> excluded.boot_began_ms"};
  SQLite::Statement forget_old_answers_{database_, "DELETE FROM idempotent_answers WHERE running_ms < ?"};
  // The (kAnswersMax + 1)th from the newest, and what is older.
  SQLite::Statement forget_surplus_answers_{
      database_,
      "DELETE FROM idempotent_answers WHERE scope = ? AND running_ms <= (SELECT running_ms FROM "
      "idempotent_answers WHERE scope = ? ORDER BY running_ms DESC LIMIT 1 OFFSET " +
          std::to_string(Store::kAnswersMax) + ")"};
  // The first from the newest that has too many bytes after it, and what is older.
  SQLite::Statement forget_large_answers_{
      database_,
      "DELETE FROM idempotent_answers WHERE scope = ? AND running_ms <= (SELECT max(running_ms) FROM "
      "(SELECT running_ms, sum(length(body)) OVER (ORDER BY running_ms DESC, key "
      "ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS newer FROM idempotent_answers WHERE scope = ?) "
      "WHERE newer > " +
          std::to_string(Store::kAnswerBytesMax) + ")"};
  std::unordered_map<std::string, std::size_t> answer_bytes_added_;  // by scope, since they were last counted
};

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

/// Works off jobs in their order.
class Store::Thread {
 public:
  /// kResourceExhausted when there can be no thread.
  static Result<std::unique_ptr<Thread>> start(const std::function<void()>& prepare) {
    Fd done(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!done) return no_thread("eventfd", errno);
    std::unique_ptr<Thread> thread(new Thread(std::move(done)));
    try {
      const BlockedSignals blocked;
      thread->thread_ = std::thread([self = thread.get(), prepare] {
        if (prepare) prepare();
        self->run();
      });
    } catch (const std::system_error& error) {
      return no_thread("thread", error.code().value());
    }
    ::pthread_setname_np(thread->thread_.native_handle(), "store");
    return thread;
  }
  ~Thread() {
    if (!thread_.joinable()) return;
    post(nullptr);
    thread_.join();
  }
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;

  void post(std::function<void()> job) {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
    more_.notify_one();
  }

  /// Runs `job` there and returns when it is done; until then does what is due here.
  void run_and_wait(const std::function<void()>& job, const Meanwhile& meanwhile) {
    std::atomic<bool> done = false;
    post([&] {
      job();
      done.store(true, std::memory_order_release);
      (void)::eventfd_write(done_.get(), 1);
    });
    while (!done.load(std::memory_order_acquire)) {
      std::array<pollfd, 2> waiting = {{{.fd = done_.get(), .events = POLLIN, .revents = 0},
                                        {.fd = meanwhile.descriptor, .events = POLLIN, .revents = 0}}};
      if (::poll(waiting.data(), waiting.size(), -1) < 0) continue;  // EINTR
      if (waiting[1].revents != 0) meanwhile.dispatch();
      eventfd_t count = 0;
      if (waiting[0].revents != 0) (void)::eventfd_read(done_.get(), &count);
    }
  }

 private:
  explicit Thread(Fd done) : done_(std::move(done)) {}

  static Error no_thread(const char* call, int number) {
    return {ErrorCode::kResourceExhausted, std::string("The store's thread: ") + call + ": " +
                                               std::generic_category().message(number) +
                                               "; raise the daemon's limits (LimitNOFILE=, TasksMax=)."};
  }

  void run() {
    for (;;) {
      std::function<void()> job;
      {
        std::unique_lock lock(mutex_);
        more_.wait(lock, [this] { return !jobs_.empty(); });
        job = std::move(jobs_.front());
        jobs_.pop_front();
      }
      if (!job) return;
      job();
    }
  }

  std::mutex mutex_;
  std::condition_variable more_;
  std::deque<std::function<void()>> jobs_;  // under mutex_; an empty one is the end
  const Fd done_;                           // eventfd(2) for whoever waits
  std::thread thread_;
};

Store::Store(std::string path, std::unique_ptr<Connection> connection, std::unique_ptr<Thread> thread)
    : path_(std::move(path)),
      connection_(std::move(connection)),
      health_(std::make_unique<Health>()),
      thread_(std::move(thread)) {}
Store::~Store() {
  thread_->post([this] { (void)keep_files(); });
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
  // What is gone by now is written anew with the change in it. If that fails, the change is in no greater
  // danger than everything else, which fault() and the next change tell.
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
                "). They have been written anew, and nothing is lost"});
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
  auto connection = Connection::open(path, std::move(*files), clock);
  if (!connection) {
    Error refusal = connection.error();
    if (!damage.empty()) refusal.detail += " " + damage + ".";
    return refusal;
  }
  auto thread = Thread::start(prepare_thread);
  if (!thread) return thread.error();
  std::unique_ptr<Store> store(new Store(path, std::move(*connection), std::move(*thread)));
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

Result<std::vector<Instance>> Store::load_instances() {
  return on_thread(
      [&] { return connection_->load("instances", "SELECT * FROM instances ORDER BY id", read_instance); });
}

Result<std::vector<Forward>> Store::load_forwards() {
  return on_thread([&] {
    return connection_->load("forwards",
                             "SELECT *, EXISTS (SELECT 1 FROM instances WHERE instances.id = instance_id) AS "
                             "instance_exists FROM forwards ORDER BY id",
                             read_forward);
  });
}

Result<std::vector<ApiKey>> Store::load_api_keys() {
  return on_thread(
      [&] { return connection_->load("api_keys", "SELECT * FROM api_keys ORDER BY id", read_api_key); });
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
