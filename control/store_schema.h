// The store's schema: what is in the file, and how an older file becomes a present one. Called by
// StoreConnection when it opens a file; SQLite's exceptions pass through.
#pragma once

#include <SQLiteCpp/Database.h>

#include <cstdint>
#include <string>

#include "base/error.h"

namespace portway {

inline constexpr std::int64_t kEndOfYear9999Ms = 253'402'300'799'999;  // the last that RFC 3339 can write

/// Of a file that migrate_store() has brought up to date (PRAGMA user_version).
std::int32_t store_schema_version();

/// Whether the file is Portway's (PRAGMA application_id).
bool is_store(SQLite::Database& database);

/// Looks without changing anything: kStoreUnavailable if the file `path` belongs to another program, or to a
/// newer Portway.
Result<void> check_store_ownership(SQLite::Database& database, const std::string& path);

/// Brings the schema up to date, each step in a transaction of its own.
void migrate_store(SQLite::Database& database);

}  // namespace portway
