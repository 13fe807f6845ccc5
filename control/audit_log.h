// The audit log: a line of JSON for each change that somebody has asked for, made or refused.
//
// It is bounded: at a size it is rotated, FILE becomes FILE.1 and so on, and the oldest file is deleted. What
// is refused is limited for each actor, so that nobody can push out what others have done. Lines are written
// by a LineWriter, so nobody waits for the disk. Control thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/forward.h"
#include "base/line_budget.h"

namespace portway {

class LineWriter;

struct AuditEntry {
  Timestamp time{};
  std::string actor;         // who() asks: "key ID", "uid:0", "key ID via GATEWAY"; "portwayd" for itself
  std::string owner = {};    // of the key
  std::string key_id = {};   // empty: none
  std::string client = {};   // address, or "unix"; empty: none
  std::string action;        // "POST /instances/{id}/port-forwards", "SIGHUP"
  std::string target = {};   // "/instances/vm-1/port-forwards"
  unsigned status = 0;       // HTTP; 0: no request
  std::string result;        // "ok", or the problem's code
  std::string created = {};  // Location of what has been made
  std::string request_id = {};
};
/// In one line, without a line feed. Empty members are left out.
std::string to_json_line(const AuditEntry& entry);

struct AuditLogOptions {
  std::string path;
  std::uint64_t bytes_max = std::uint64_t{16} << 20;  // of one file, about
  std::uint32_t files = 8;                            // all of them; 1 or more
};

class AuditLog {
 public:
  /// Appends to the file, which is made with mode 0640 if it is missing. kInvalidConfig if it cannot be
  /// opened, kResourceExhausted if no thread can be had.
  static Result<std::unique_ptr<AuditLog>> open(const AuditLogOptions& options);
  /// Writes what is queued, for half a second at most.
  ~AuditLog();
  AuditLog(const AuditLog&) = delete;
  AuditLog& operator=(const AuditLog&) = delete;

  void write(const AuditEntry& entry);
  /// Goes on in a new file of the same path, as AccessLog::reopen().
  void reopen(std::function<void(const Result<void>&)> done);

  /// Lines lost: the queue was full, or the disk.
  std::uint64_t dropped() const;

 private:
  AuditLog(AuditLogOptions options, std::unique_ptr<LineWriter> writer, std::uint64_t bytes);

  const AuditLogOptions options_;
  const std::unique_ptr<LineWriter> writer_;
  std::uint64_t bytes_;  // in the file, with those on their way
  LineBudget refused_{20, 5};
};

}  // namespace portway
