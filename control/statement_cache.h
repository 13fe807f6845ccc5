// SQL statements of one connection: each is compiled when it is first used, and reset after each use. The
// store's thread; SQLite's exceptions pass through.
#pragma once

#include <SQLiteCpp/Database.h>
#include <SQLiteCpp/Statement.h>

#include <string_view>
#include <unordered_map>

#include "control/store_rows.h"

namespace portway {

class StatementCache {
 public:
  /// Must outlive it.
  explicit StatementCache(SQLite::Database& database) : database_(database) {}

  /// A statement with its values, until it is reset by the end of this object. One at a time of each text.
  class Use {
   public:
    explicit Use(SQLite::Statement& statement) : statement_(statement) {}
    ~Use() { statement_.tryReset(); }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

    SQLite::Statement& statement() { return statement_; }

   private:
    SQLite::Statement& statement_;
  };

  /// `sql` is a literal: it outlives the cache.
  template <class... Values>
  Use use(const char* sql, const Values&... values) {
    SQLite::Statement& statement = statements_.try_emplace(sql, database_, sql).first->second;
    int index = 0;
    (rows::bind(statement, ++index, values), ...);
    return Use(statement);
  }

  /// Returns how many rows changed.
  template <class... Values>
  int execute(const char* sql, const Values&... values) {
    return use(sql, values...).statement().exec();
  }

 private:
  SQLite::Database& database_;
  std::unordered_map<std::string_view, SQLite::Statement> statements_;  // by their text
};

}  // namespace portway
