#include "control/store_schema.h"

#include <SQLiteCpp/Transaction.h>

#include <array>
#include <cstddef>

#include "control/store_files.h"

namespace portway {
namespace {

constexpr std::int32_t kApplicationId =
    0x50574159;  // "PWAY": distinguishes our files from other SQLite databases

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
    R"sql(
      ALTER TABLE instances ADD COLUMN device TEXT NOT NULL DEFAULT '';
    )sql",
    // target_port: of a vsock. guest_port is 0 if target_kind is not 'tcp'.
    R"sql(
      ALTER TABLE forwards ADD COLUMN target_kind TEXT NOT NULL DEFAULT 'tcp';
      ALTER TABLE forwards ADD COLUMN target_socket TEXT NOT NULL DEFAULT '';
      ALTER TABLE forwards ADD COLUMN target_port INTEGER NOT NULL DEFAULT 0;
    )sql",
    // tap is empty if only vmm_pid is watched. The identities: base/namespace_identity.h.
    R"sql(
      ALTER TABLE instances ADD COLUMN netns TEXT NOT NULL DEFAULT '';
      ALTER TABLE instances ADD COLUMN netns_identity TEXT NOT NULL DEFAULT '';
      ALTER TABLE instances ADD COLUMN tap_netns TEXT NOT NULL DEFAULT '';
      ALTER TABLE instances ADD COLUMN tap_netns_identity TEXT NOT NULL DEFAULT '';
    )sql",
    R"sql(
      ALTER TABLE instances ADD COLUMN target_kind TEXT NOT NULL DEFAULT 'tcp';
      ALTER TABLE instances ADD COLUMN target_socket TEXT NOT NULL DEFAULT '';
      ALTER TABLE instances ADD COLUMN target_port INTEGER NOT NULL DEFAULT 0;
    )sql",
    // instance_id: empty if the key is not about one. Older keys may do all that they could.
    R"sql(
      ALTER TABLE api_keys ADD COLUMN description TEXT NOT NULL DEFAULT '';
      ALTER TABLE api_keys ADD COLUMN scope TEXT NOT NULL DEFAULT 'full';
      ALTER TABLE api_keys ADD COLUMN instance_id TEXT NOT NULL DEFAULT '';
      ALTER TABLE api_keys ADD COLUMN expires_at INTEGER;
      ALTER TABLE api_keys ADD COLUMN last_used_at INTEGER;
      ALTER TABLE api_keys ADD COLUMN old_secret_sha256 BLOB;
      ALTER TABLE api_keys ADD COLUMN old_secret_until INTEGER;
    )sql",
    // metadata: lines of KEY=VALUE.
    R"sql(
      ALTER TABLE instances ADD COLUMN metadata TEXT NOT NULL DEFAULT '';
      ALTER TABLE forwards ADD COLUMN metadata TEXT NOT NULL DEFAULT '';
      ALTER TABLE forwards ADD COLUMN enabled INTEGER NOT NULL DEFAULT 1;
      ALTER TABLE forwards ADD COLUMN expires_at INTEGER;
    )sql",
    // payer: whose share of what is remembered an answer takes.
    R"sql(
      ALTER TABLE idempotent_answers ADD COLUMN etag TEXT NOT NULL DEFAULT '';
      ALTER TABLE idempotent_answers ADD COLUMN payer TEXT NOT NULL DEFAULT '';
      UPDATE idempotent_answers SET payer = scope;
      DROP INDEX idempotent_answers_by_scope;
      CREATE INDEX idempotent_answers_by_payer ON idempotent_answers (payer, running_ms);
    )sql",
    // Nobody has counted what was carried before: since now. last_ columns: 0 is never.
    R"sql(
      CREATE TABLE instance_usage (
        id TEXT PRIMARY KEY NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
        since INTEGER NOT NULL,
        connections INTEGER NOT NULL DEFAULT 0,
        received_bytes INTEGER NOT NULL DEFAULT 0,
        sent_bytes INTEGER NOT NULL DEFAULT 0,
        connection_ms INTEGER NOT NULL DEFAULT 0,
        last_byte_at INTEGER NOT NULL DEFAULT 0,
        last_connection_at INTEGER NOT NULL DEFAULT 0
      ) STRICT, WITHOUT ROWID;
      CREATE TABLE forward_usage (
        id TEXT PRIMARY KEY NOT NULL REFERENCES forwards (id) ON DELETE CASCADE,
        since INTEGER NOT NULL,
        connections INTEGER NOT NULL DEFAULT 0,
        received_bytes INTEGER NOT NULL DEFAULT 0,
        sent_bytes INTEGER NOT NULL DEFAULT 0,
        connection_ms INTEGER NOT NULL DEFAULT 0,
        last_byte_at INTEGER NOT NULL DEFAULT 0,
        last_connection_at INTEGER NOT NULL DEFAULT 0
      ) STRICT, WITHOUT ROWID;
      INSERT INTO instance_usage (id, since)
        SELECT id, CAST(strftime('%s', 'now') AS INTEGER) * 1000 FROM instances;
      INSERT INTO forward_usage (id, since)
        SELECT id, CAST(strftime('%s', 'now') AS INTEGER) * 1000 FROM forwards;
    )sql",
    // The node itself, one row. draining_since: absent if it is not drained.
    R"sql(
      CREATE TABLE node (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        draining_since INTEGER
      ) STRICT;
      INSERT INTO node (id) VALUES (1);
    )sql",
});

std::int32_t read_pragma(SQLite::Database& database, const char* pragma) {
  return database.execAndGet(pragma).getInt();
}

}  // namespace

std::int32_t store_schema_version() {
  return static_cast<std::int32_t>(kMigrations.size());
}

bool is_store(SQLite::Database& database) {
  return read_pragma(database, "PRAGMA application_id") == kApplicationId;
}

Result<void> check_store_ownership(SQLite::Database& database, const std::string& path) {
  const bool empty = read_pragma(database, "SELECT count(*) FROM sqlite_schema") == 0;
  if (!empty && !is_store(database)) {
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

void migrate_store(SQLite::Database& database) {
  const auto version = static_cast<std::size_t>(read_pragma(database, "PRAGMA user_version"));
  for (std::size_t next = version; next < kMigrations.size(); ++next) {
    SQLite::Transaction transaction(database, SQLite::TransactionBehavior::IMMEDIATE);
    database.exec(kMigrations[next]);
    database.exec("PRAGMA user_version = " + std::to_string(next + 1));
    transaction.commit();
  }
}

}  // namespace portway
