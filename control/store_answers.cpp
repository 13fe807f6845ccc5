#include "control/store_answers.h"

#include <SQLiteCpp/Statement.h>

#include <algorithm>
#include <chrono>

#include "control/store_rows.h"
#include "control/store_schema.h"

namespace portway {
namespace {

/// Somebody may have edited it, and it is added to.
std::int64_t sane(std::int64_t stored) {
  return std::clamp(stored, -kEndOfYear9999Ms, kEndOfYear9999Ms);
}

}  // namespace

RunningTime::RunningTime(SQLite::Database& database, const BootClock& clock)
    : clock_(clock), boot_id_(clock.boot_id()) {
  SQLite::Statement query(database,
                          "SELECT (SELECT boot_id FROM running_time), (SELECT boot_began_ms FROM "
                          "running_time), (SELECT max(running_ms) FROM idempotent_answers)");
  query.executeStep();  // null if there is none
  const std::string boot_before = query.getColumn(0).getString();
  last_ = std::max<std::int64_t>(0, sane(query.getColumn(2).getInt64()));
  const std::int64_t uptime = clock_.uptime().count();
  std::int64_t now = last_ + 1;
  if (!boot_id_.empty() && !boot_before.empty()) {
    now = uptime + (boot_id_ == boot_before ? sane(query.getColumn(1).getInt64()) : last_);
  }
  boot_began_ = std::max(now, last_) - uptime;
}

std::int64_t RunningTime::next() {
  return last_ = std::max(now(), last_ + 1);
}

std::int64_t StoreAnswers::oldest_kept() const {
  return running_time_.now() - std::chrono::milliseconds(Store::kAnswerKept).count();
}

std::optional<IdempotentAnswer> StoreAnswers::find(std::string_view scope, std::string_view key) {
  auto query =
      statements_.use("SELECT * FROM idempotent_answers WHERE scope = ? AND key = ? AND running_ms >= ?",
                      scope, key, oldest_kept());
  if (!query.statement().executeStep()) return std::nullopt;
  rows::RowReader row(query.statement());
  return IdempotentAnswer{.scope = std::string(scope),
                          .key = std::string(key),
                          .request_sha256 = row.sha256("request_sha256"),
                          .location = row.text("location"),
                          .body = row.text("body"),
                          .created_at = row.time("created_at")};
}

void StoreAnswers::add(const IdempotentAnswer& answer) {
  // With the first answer of a boot, and not at the start: a full disk does not keep a store from opening.
  statements_.execute(
      "INSERT INTO running_time (id, boot_id, boot_began_ms) VALUES (1, ?, ?) ON CONFLICT (id) DO UPDATE SET "
      "boot_id = excluded.boot_id, boot_began_ms = excluded.boot_began_ms "
      "WHERE boot_id <> excluded.boot_id OR boot_began_ms <> excluded.boot_began_ms",
      running_time_.boot_id(), running_time_.boot_began());
  statements_.execute("DELETE FROM idempotent_answers WHERE running_ms < ?", oldest_kept());
  statements_.execute(
      "INSERT OR REPLACE INTO idempotent_answers (scope, key, request_sha256, location, body, created_at, "
      "running_ms) VALUES (?, ?, ?, ?, ?, ?, ?)",
      answer.scope, answer.key, answer.request_sha256, answer.location, answer.body, answer.created_at,
      running_time_.next());
  // The (kAnswersMax + 1)th from the newest, and what is older.
  statements_.execute(
      "DELETE FROM idempotent_answers WHERE scope = ?1 AND running_ms <= (SELECT running_ms FROM "
      "idempotent_answers WHERE scope = ?1 ORDER BY running_ms DESC LIMIT 1 OFFSET ?2)",
      answer.scope, static_cast<std::int64_t>(Store::kAnswersMax));
  // Not each time: that reads them all.
  std::size_t& added = bytes_added_[answer.scope];
  added += answer.body.size();
  if (added <= Store::kAnswerBytesMax / 4) return;
  added = 0;
  // The first from the newest that has too many bytes after it, and what is older.
  statements_.execute(
      "DELETE FROM idempotent_answers WHERE scope = ?1 AND running_ms <= (SELECT max(running_ms) FROM "
      "(SELECT running_ms, sum(length(body)) OVER (ORDER BY running_ms DESC, key "
      "ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS newer FROM idempotent_answers WHERE scope = ?1) "
      "WHERE newer > ?2)",
      answer.scope, static_cast<std::int64_t>(Store::kAnswerBytesMax));
}

}  // namespace portway
