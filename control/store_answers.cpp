#include "control/store_answers.h"

#include <SQLiteCpp/Statement.h>

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "control/store_rows.h"
#include "control/store_schema.h"

namespace portway {
namespace {

// About what a row takes beside its body.
constexpr std::size_t kRowBytes = 512;

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
                          .payer = row.text("payer"),
                          .request_sha256 = row.sha256("request_sha256"),
                          .location = row.text("location"),
                          .etag = row.text("etag"),
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
  const std::int64_t made_at = running_time_.next();
  statements_.execute(
      "INSERT OR REPLACE INTO idempotent_answers (scope, key, payer, request_sha256, location, etag, body, "
      "created_at, running_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
      answer.scope, answer.key, answer.payer, answer.request_sha256, answer.location, answer.etag,
      answer.body, answer.created_at, made_at);
  bound(answer, made_at);
}

/// Forgets what is too much with `newest`, but not that one.
void StoreAnswers::bound(const IdempotentAnswer& newest, std::int64_t made_at) {
  // The (kAnswersMax + 1)th from the newest, and what is older.
  statements_.execute(
      "DELETE FROM idempotent_answers WHERE payer = ?1 AND running_ms <= (SELECT running_ms FROM "
      "idempotent_answers WHERE payer = ?1 ORDER BY running_ms DESC LIMIT 1 OFFSET ?2)",
      newest.payer, static_cast<std::int64_t>(Store::kAnswersMax));
  // Not each time: that reads them all.
  std::size_t& added = bytes_added_[newest.payer];
  added += newest.body.size();
  all_bytes_added_ += newest.body.size() + kRowBytes;
  if (all_bytes_added_ > Store::kAllAnswersBytesMax / 4) {
    all_bytes_added_ = 0;
    bytes_added_.clear();
    bound_all(made_at);
  } else if (added > Store::kAnswerBytesMax / 4) {
    added = 0;
    keep_newest(newest.payer, Store::kAnswerBytesMax, 0, made_at);
  }
}

void StoreAnswers::bound_all(std::int64_t newest) {
  std::vector<std::pair<std::size_t, std::string>> payers;  // and their bytes
  {
    auto query =
        statements_.use("SELECT payer, sum(length(body)), count(*) FROM idempotent_answers GROUP BY payer");
    while (query.statement().executeStep()) {
      const auto bytes = static_cast<std::size_t>(query.statement().getColumn(1).getInt64());
      const auto rows = static_cast<std::size_t>(query.statement().getColumn(2).getInt64());
      payers.emplace_back(bytes + rows * kRowBytes, query.statement().getColumn(0).getString());
    }
  }
  std::ranges::sort(payers);
  std::size_t left = Store::kAllAnswersBytesMax;
  for (std::size_t i = 0; i < payers.size(); ++i) {
    // Whoever has less than an equal part of what is left leaves the rest to the others.
    const auto& [bytes, payer] = payers[i];
    const std::size_t share = left / (payers.size() - i);
    if (bytes > share) keep_newest(payer, share, kRowBytes, newest);
    if (bytes > Store::kAnswerBytesMax) keep_newest(payer, Store::kAnswerBytesMax, 0, newest);
    left -= std::min(bytes, share);
  }
}

/// Forgets the first of the payer's answers, from the newest, with which it has more than `bytes`, and what
/// is older.
void StoreAnswers::keep_newest(const std::string& payer, std::size_t bytes, std::size_t bytes_a_row,
                               std::int64_t newest) {
  statements_.execute(
      "DELETE FROM idempotent_answers WHERE payer = ?1 AND running_ms <> ?4 AND running_ms <= (SELECT "
      "max(running_ms) FROM (SELECT running_ms, sum(length(body) + ?3) OVER (ORDER BY running_ms DESC, key "
      "ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS bytes FROM idempotent_answers WHERE payer = ?1) "
      "WHERE bytes > ?2)",
      payer, static_cast<std::int64_t>(bytes), static_cast<std::int64_t>(bytes_a_row), newest);
}

}  // namespace portway
