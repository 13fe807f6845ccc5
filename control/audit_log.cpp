#include "control/audit_log.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <boost/json.hpp>
#include <cstdio>
#include <utility>

#include "control/line_writer.h"
#include "control/log_file.h"

namespace portway {
namespace {

constexpr std::string_view kAuditKey = "log.audit";
constexpr std::size_t kAuditQueueLines = 65536;
constexpr std::size_t kAuditQueueBytes = std::size_t{16} << 20;

std::string numbered(const std::string& path, std::uint32_t number) {
  return number == 0 ? path : fmt::format("{}.{}", path, number);
}

/// FILE.6 becomes FILE.7, ..., FILE becomes FILE.1; of one file alone nothing is kept.
void rotate(const AuditLogOptions& options) {
  if (options.files == 1) std::remove(options.path.c_str());
  for (std::uint32_t number = options.files - 1; number > 0; --number) {
    const std::string from = numbered(options.path, number - 1);
    (void)std::rename(from.c_str(), numbered(options.path, number).c_str());  // it may not exist yet
  }
}

}  // namespace

std::string to_json_line(const AuditEntry& entry) {
  boost::json::object line{{"time", to_rfc3339(entry.time)}};
  const auto add = [&line](std::string_view name, const std::string& value) {
    if (!value.empty()) line[name] = value;
  };
  add("actor", entry.actor);
  add("owner", entry.owner);
  add("key_id", entry.key_id);
  add("client", entry.client);
  add("action", entry.action);
  add("target", entry.target);
  add("result", entry.result);
  if (entry.status != 0) line["status"] = entry.status;
  add("created", entry.created);
  add("request_id", entry.request_id);
  return boost::json::serialize(line);
}

AuditLog::AuditLog(AuditLogOptions options, std::unique_ptr<LineWriter> writer, std::uint64_t bytes)
    : options_(std::move(options)), writer_(std::move(writer)), bytes_(bytes) {}

AuditLog::~AuditLog() = default;

Result<std::unique_ptr<AuditLog>> AuditLog::open(const AuditLogOptions& options) {
  auto file = open_log_file(kAuditKey, options.path);
  if (!file) return file.error();
  struct stat status {};
  ::fstat(file->get(), &status);
  auto writer =
      LineWriter::start(std::move(*file), {.lines_max = kAuditQueueLines, .bytes_max = kAuditQueueBytes});
  if (!writer) return writer.error();
  return std::unique_ptr<AuditLog>(new AuditLog(
      options, std::move(*writer), S_ISREG(status.st_mode) ? static_cast<std::uint64_t>(status.st_size) : 0));
}

void AuditLog::write(const AuditEntry& entry) {
  const bool is_refused = entry.result != "ok";
  if (is_refused && !refused_.take(entry.actor)) return;
  std::string line;
  if (const auto left_out = is_refused ? refused_.take_left_out() : 0; left_out != 0) {
    line = to_json_line({.time = entry.time,
                         .actor = "portwayd",
                         .action = "left out",
                         .result = fmt::format("{} refused changes, of all actors", left_out)}) +
           '\n';
  }
  line += to_json_line(entry) + '\n';
  if (bytes_ + line.size() > options_.bytes_max) {
    bytes_ = 0;
    writer_->reopen(
        [options = options_]() -> Result<Fd> {
          // A FIFO or a device is not a file that fills up.
          struct stat status {};
          if (::stat(options.path.c_str(), &status) == 0 && S_ISREG(status.st_mode)) rotate(options);
          return open_log_file(kAuditKey, options.path);
        },
        [](const Result<void>& opened) {
          if (!opened) spdlog::error("{}; continuing in the old file", opened.error().detail);
        });
  }
  bytes_ += line.size();
  writer_->write(std::move(line));
}

void AuditLog::reopen(std::function<void(const Result<void>&)> done) {
  bytes_ = 0;
  writer_->reopen([path = options_.path] { return open_log_file(kAuditKey, path); }, std::move(done));
}

std::uint64_t AuditLog::dropped() const {
  return writer_->dropped();
}

}  // namespace portway
