// The answers that are remembered for repeated requests (Idempotency-Key), and how old they are: table
// idempotent_answers. The store's thread; SQLite's exceptions pass through.
#pragma once

#include <SQLiteCpp/Database.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "base/boot_clock.h"
#include "control/statement_cache.h"
#include "control/store.h"

namespace portway {

/// Milliseconds that have passed on the node since the store was made, over restarts and reboots, whatever
/// the node's clock is set to. The ages of answers are differences of it.
class RunningTime {
 public:
  /// In the boot that the store knows, it has run all the time. In another one it has run from the last
  /// answer since the kernel's start; if either boot is unknown, it continues from the last answer now.
  RunningTime(SQLite::Database& database, const BootClock& clock);

  /// What a store must know to continue from here.
  const std::string& boot_id() const { return boot_id_; }
  std::int64_t boot_began() const { return boot_began_; }

  std::int64_t now() const { return boot_began_ + clock_.uptime().count(); }
  /// Later than the one before, so that the order of answers is the one in which they came.
  std::int64_t next();

 private:
  const BootClock clock_;
  const std::string boot_id_;
  std::int64_t boot_began_ = 0;  // below 0 if the store is younger than the boot
  std::int64_t last_ = 0;
};

class StoreAnswers {
 public:
  /// Both must outlive it.
  StoreAnswers(SQLite::Database& database, StatementCache& statements, const BootClock& clock)
      : statements_(statements), running_time_(database, clock) {}

  /// One that is not too old.
  std::optional<IdempotentAnswer> find(std::string_view scope, std::string_view key);
  /// In a transaction. Forgets what is too old or too much (Store::kAnswerKept and the following).
  void add(const IdempotentAnswer& answer);

 private:
  std::int64_t oldest_kept() const;
  void bound(const IdempotentAnswer& newest, std::int64_t made_at);
  void bound_all(std::int64_t newest);
  void keep_newest(const std::string& payer, std::size_t bytes, std::size_t bytes_a_row, std::int64_t newest);

  StatementCache& statements_;
  RunningTime running_time_;
  std::unordered_map<std::string, std::size_t> bytes_added_;  // by payer, since they were last counted
  // By all of them. The first answer counts: nobody knows what was added before.
  std::size_t all_bytes_added_ = Store::kAllAnswersBytesMax;
};

}  // namespace portway
