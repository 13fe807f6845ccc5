#include "process/daemon_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/null_sink.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "base/fd.h"
#include "base/log_fields.h"
#include "control/line_writer.h"
#include "process/log_line.h"

namespace portway {
namespace {

constexpr std::chrono::milliseconds kPatience(500);
constexpr std::string_view kJournalSocket = "/run/systemd/journal/socket";

LogLevel level_of(spdlog::level::level_enum level) {
  if (level >= spdlog::level::err) return LogLevel::kError;
  if (level == spdlog::level::warn) return LogLevel::kWarning;
  return level == spdlog::level::info ? LogLevel::kInfo : LogLevel::kDebug;
}

spdlog::level::level_enum level_of(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      break;
  }
  return spdlog::level::err;
}

/// Whether systemd has connected standard error to the journal ($JOURNAL_STREAM, systemd.exec(5)).
bool standard_error_is_the_journal() {
  const char* stream = std::getenv("JOURNAL_STREAM");
  struct stat status {};
  return stream != nullptr && ::fstat(STDERR_FILENO, &status) == 0 &&
         fmt::format("{}:{}", status.st_dev, status.st_ino) == stream;
}

std::string to_line(LogFormat format, const LogLine& line) {
  if (format == LogFormat::kJson) return to_json(line);
  return format == LogFormat::kJournal ? to_journal(line) : to_text(line);
}

std::string lost_note(LogFormat format, std::uint64_t lost) {
  const std::string text =
      fmt::format("{} lines of this log are missing here: they were not read fast enough", lost);
  return to_line(format,
                 {.time = std::chrono::system_clock::now(), .level = LogLevel::kWarning, .text = text});
}

/// Of a descriptor of its own: number 2 can be closed and reused for another file.
Fd open_standard_error() {
  return Fd(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3));
}

Fd open_journal() {
  Fd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  kJournalSocket.copy(address.sun_path, sizeof address.sun_path - 1);
  if (!socket || ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return Fd();
  return socket;
}

}  // namespace

class DaemonLog::Sink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  Sink() { set_format(LogFormat::kText); }

  /// kAuto is none. False, with an errno, if journald cannot be reached; then nothing changes.
  bool set_format(LogFormat format) {
    Fd target = format == LogFormat::kJournal ? open_journal() : open_standard_error();
    if (format == LogFormat::kJournal && !target) return false;
    auto started = LineWriter::start(
        std::move(target), {.end_wait = kPatience,
                            .one_by_one = format == LogFormat::kJournal,
                            .lost_note = [format](std::uint64_t lost) { return lost_note(format, lost); }});
    std::unique_ptr<LineWriter> before;  // ends without the lock: it waits for its reader
    const std::lock_guard lock(mutex_);
    before = std::move(writer_);
    writer_ = started ? std::move(*started) : nullptr;
    format_ = format;
    if (before) dropped_before_ += before->dropped();
    return true;
  }

  LogFormat format() {
    const std::lock_guard lock(mutex_);
    return format_;
  }
  void drain() {
    const std::lock_guard lock(mutex_);
    if (writer_) writer_->drain(kPatience);
  }
  std::uint64_t dropped() {
    const std::lock_guard lock(mutex_);
    return dropped_before_ + (writer_ ? writer_->dropped() : 0);
  }

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    std::string line = to_line(format_, {.time = message.time,
                                         .level = level_of(message.level),
                                         .text = {message.payload.data(), message.payload.size()},
                                         .fields = LogFields::current()});
    if (writer_) return writer_->write(std::move(line));
    (void)!::write(STDERR_FILENO, line.data(), line.size());  // there could be no thread
  }
  void flush_() override {}

  LogFormat format_ = LogFormat::kText;
  std::unique_ptr<LineWriter> writer_;  // null: lines are written directly
  std::uint64_t dropped_before_ = 0;
};

DaemonLog::DaemonLog() : sink_(std::make_shared<Sink>()) {
  auto logger = std::make_shared<spdlog::logger>("portwayd", sink_);
  // If memory runs out, spdlog would report it on standard error and wait for the reader.
  logger->set_error_handler([](const std::string&) {});
  spdlog::set_default_logger(std::move(logger));
}

DaemonLog::~DaemonLog() {
  // From now on this object is the sink's last owner and ends its writer.
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("portwayd", std::make_shared<spdlog::sinks::null_sink_mt>()));
}

void DaemonLog::configure(const Config::Log& log) {
  spdlog::set_level(level_of(log.level));
  LogFormat format = log.format;
  if (format == LogFormat::kAuto) {
    format = standard_error_is_the_journal() ? LogFormat::kJournal : LogFormat::kText;
  }
  if (format == sink_->format()) return;
  if (!sink_->set_format(format)) {
    spdlog::error("log.format: {}: {}; the log stays on standard error", kJournalSocket,
                  std::strerror(errno));
  }
}

void DaemonLog::drain() {
  sink_->drain();
}

std::uint64_t DaemonLog::dropped() const {
  return sink_->dropped();
}

}  // namespace portway
