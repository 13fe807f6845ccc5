// What a line of the daemon's log is about, beside its text: fields for those who search in logs.
//
// They hold for what the thread logs while a LogFields lives, and are written by the log's sink
// (process/daemon_log.cpp). In a coroutine it must not live over a co_await.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace portway {

struct LogField {
  std::string_view name;  // lower case with underscores: "request_id"
  std::string value;      // empty: it is left out
};

class LogFields {
 public:
  explicit LogFields(std::vector<LogField> fields) : fields_(std::move(fields)), before_(current_) {
    current_ = this;
  }
  ~LogFields() { current_ = before_; }
  LogFields(const LogFields&) = delete;
  LogFields& operator=(const LogFields&) = delete;

  /// Of the innermost one.
  static std::span<const LogField> current() {
    return current_ == nullptr ? std::span<const LogField>() : std::span<const LogField>(current_->fields_);
  }

 private:
  inline static thread_local const LogFields* current_ = nullptr;

  const std::vector<LogField> fields_;
  const LogFields* const before_;
};

/// Who has asked for a change, and by which request.
struct Actor {
  std::string name = "?";       // "key ID", "uid:0"
  std::string request_id = {};  // empty: by none

  LogFields fields() const { return LogFields({{"actor", name}, {"request_id", request_id}}); }
};

}  // namespace portway
