// Rows of the store's tables and our values: one bind() for each type of column, a reader that checks what it
// reads, and the rows as a whole. The store's thread; SQLite's exceptions pass through.
#pragma once

#include <SQLiteCpp/Statement.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/forward.h"
#include "control/store.h"

namespace portway::rows {

void bind(SQLite::Statement& statement, int index, const std::string& value);
void bind(SQLite::Statement& statement, int index, std::string_view value);
void bind(SQLite::Statement& statement, int index, std::uint16_t value);
void bind(SQLite::Statement& statement, int index, std::optional<std::int32_t> value);
void bind(SQLite::Statement& statement, int index, std::optional<std::uint32_t> value);
void bind(SQLite::Statement& statement, int index, std::int32_t value);
void bind(SQLite::Statement& statement, int index, std::int64_t value);
void bind(SQLite::Statement& statement, int index, std::uint64_t value);
void bind(SQLite::Statement& statement, int index, std::uint32_t value);
void bind(SQLite::Statement& statement, int index, const std::vector<Cidr>& networks);
void bind(SQLite::Statement& statement, int index, const LimitSet& limits);
void bind(SQLite::Statement& statement, int index, const Metadata& metadata);
void bind(SQLite::Statement& statement, int index, const std::optional<SessionEnd>& value);
void bind(SQLite::Statement& statement, int index, const std::optional<IpAddress>& value);
void bind(SQLite::Statement& statement, int index, const Uuid& value);
void bind(SQLite::Statement& statement, int index, Timestamp value);
void bind(SQLite::Statement& statement, int index, std::optional<Timestamp> value);
void bind(SQLite::Statement& statement, int index, const std::array<std::uint8_t, 32>& value);
void bind(SQLite::Statement& statement, int index, const std::optional<std::array<std::uint8_t, 32>>& value);

/// Reads the current row of a query column by column, and remembers the first value that makes no sense.
class RowReader {
 public:
  explicit RowReader(SQLite::Statement& query) : query_(query) {}

  /// Empty when all was well.
  const std::string& problem() const { return problem_; }
  void reject(const char* column, const std::string& why);
  /// `check` looked at one of the values; its detail says which.
  void require(const Result<void>& check);

  std::string text(const char* column);
  std::int64_t number(const char* column, std::int64_t least, std::int64_t most);
  std::uint16_t port(const char* column);
  Timestamp time(const char* column);
  std::optional<Timestamp> time_or_none(const char* column);
  std::optional<std::int32_t> process_id(const char* column);
  std::uint32_t number32(const char* column);
  std::optional<std::uint32_t> number32_or_none(const char* column);
  std::int32_t interface_index(const char* column);
  std::vector<Cidr> networks(const char* column);
  LimitSet limits(const char* column);
  Metadata metadata(const char* column);
  std::optional<SessionEnd> session_end(const char* column);
  NamespaceIdentity namespace_identity(const char* column);
  Uuid uuid(const char* column);
  IpAddress address(const char* column);
  /// Beside an IPv4 address.
  std::optional<IpAddress> second_address(const char* column, const IpAddress& first);
  std::array<std::uint8_t, 32> sha256(const char* column);
  bool is_null(const char* column) { return query_.isColumnNull(column); }

 private:
  SQLite::Statement& query_;
  std::string problem_;
};

Instance read_instance(RowReader& row);
Forward read_forward(RowReader& row);
ApiKey read_api_key(RowReader& row);
NodeDrain read_drain(RowReader& row);
StoredUsage read_instance_usage(RowReader& row);
StoredUsage read_forward_usage(RowReader& row);

}  // namespace portway::rows
