#include "daemon/daemon_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/null_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <chrono>
#include <mutex>
#include <string>
#include <utility>

#include "base/forward.h"
#include "control/line_writer.h"

namespace portway {
namespace {

constexpr const char* kPattern = "%Y-%m-%dT%H:%M:%S.%eZ %l %v";
constexpr std::chrono::milliseconds kPatience(500);

std::string lost_note(std::uint64_t lost) {
  return fmt::format("{} warning {} lines of this log are missing here: they were not read fast enough\n",
                     to_rfc3339(now()), lost);
}

class Sink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit Sink(std::shared_ptr<LineWriter> writer) : writer_(std::move(writer)) {}

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    writer_->write(fmt::to_string(line));
  }
  void flush_() override {}

  const std::shared_ptr<LineWriter> writer_;
};

std::shared_ptr<LineWriter> start_writer() {
  // A descriptor of its own: number 2 can be closed and reused for another file.
  Fd standard_error(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3));
  auto writer = LineWriter::start(std::move(standard_error), {.end_wait = kPatience, .lost_note = lost_note});
  return writer ? std::shared_ptr<LineWriter>(std::move(*writer)) : nullptr;
}

std::shared_ptr<spdlog::sinks::sink> make_sink(const std::shared_ptr<LineWriter>& writer) {
  if (writer != nullptr) return std::make_shared<Sink>(writer);
  return std::make_shared<spdlog::sinks::stderr_sink_mt>();
}

}  // namespace

DaemonLog::DaemonLog() : writer_(start_writer()) {
  auto logger = std::make_shared<spdlog::logger>("portwayd", make_sink(writer_));
  logger->set_pattern(kPattern, spdlog::pattern_time_type::utc);
  // If memory runs out, spdlog would report it on standard error and wait for the reader.
  logger->set_error_handler([](const std::string&) {});
  spdlog::set_default_logger(std::move(logger));
}

DaemonLog::~DaemonLog() {
  // From now on this object is the writer's last owner and ends it.
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("portwayd", std::make_shared<spdlog::sinks::null_sink_mt>()));
}

void DaemonLog::drain() {
  if (writer_ != nullptr) writer_->drain(kPatience);
}

}  // namespace portway
