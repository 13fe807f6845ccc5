#include "control/access_log.h"

#include <fmt/format.h>
#include <time.h>

#include <cstring>
#include <iterator>
#include <utility>

#include "control/line_writer.h"
#include "control/log_file.h"

namespace portway {
namespace {

constexpr std::string_view kKey = "log.access";
constexpr std::size_t kQueueLines = 8192;

double seconds(Nanos span) {
  return std::chrono::duration<double>(span).count();
}

Timestamp wall_clock(Nanos at, std::chrono::system_clock::time_point now, Nanos monotonic_now) {
  return std::chrono::time_point_cast<Timestamp::duration>(
      now - std::chrono::duration_cast<std::chrono::system_clock::duration>(monotonic_now - at));
}

void append_leg(fmt::memory_buffer& out, std::string_view name, const TcpSummary& tcp) {
  fmt::format_to(std::back_inserter(out), R"(,"{}_rtt_us":{},"{}_retransmits":{})", name, tcp.rtt_us, name,
                 tcp.retransmits);
}

Nanos monotonic_clock() {
  timespec time;
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return std::chrono::seconds(time.tv_sec) + Nanos(time.tv_nsec);
}

}  // namespace

std::string to_json_line(const CloseRecord& record, std::chrono::system_clock::time_point now,
                         Nanos monotonic_now) {
  // No text in it needs escaping: instance ids are [A-Za-z0-9._-], all else is numbers and our own names.
  const ForwardRoute& route = record.forward->route;
  fmt::memory_buffer out;
  const auto end = std::back_inserter(out);
  fmt::format_to(end, R"({{"time":"{}","duration_s":{:.6f},"forward":"{}","instance":"{}")",
                 to_rfc3339(wall_clock(record.accepted_at, now, monotonic_now)),
                 seconds(record.ended_at - record.accepted_at), to_string(route.id), route.instance_id);
  if (record.id != 0) fmt::format_to(end, R"(,"connection":{})", record.id);
  fmt::format_to(end, R"(,"worker":{},"client":"{}","guest":"{}","source_mode":"{}")", record.worker,
                 to_string(to_endpoint(record.client)), to_string(record.guest), source_mode(record.source));
  if (const auto why = source_fallback(record.source); !why.empty()) {
    fmt::format_to(end, R"(,"source_fallback":"{}")", why);
  }
  if (record.connected_at != Nanos::zero())
    fmt::format_to(end, R"(,"connect_s":{:.6f})", seconds(record.connected_at - record.accepted_at));
  fmt::format_to(end, R"(,"received_bytes":{},"sent_bytes":{},"side":"{}","how":"{}")", record.received_bytes,
                 record.sent_bytes, to_string(record.cause.side), to_string(record.cause.how));
  if (record.error != 0) {
    const char* name = ::strerrorname_np(record.error);
    fmt::format_to(end, R"(,"error":"{}")", name != nullptr ? name : std::to_string(record.error));
  }
  append_leg(out, "client", record.tcp[kDownstream]);
  append_leg(out, "guest", record.tcp[kUpstream]);
  out.push_back('}');
  return fmt::to_string(out);
}

std::string to_json_line(const CloseRecord& record) {
  return to_json_line(record, std::chrono::system_clock::now(), monotonic_clock());
}

AccessLog::AccessLog(std::string path, std::unique_ptr<LineWriter> writer)
    : path_(std::move(path)), writer_(std::move(writer)) {}

AccessLog::~AccessLog() = default;

Result<std::unique_ptr<AccessLog>> AccessLog::open(const std::string& path) {
  auto file = open_log_file(kKey, path);
  if (!file) return file.error();
  auto writer = LineWriter::start(std::move(*file), {.lines_max = kQueueLines});
  if (!writer) return writer.error();
  return std::unique_ptr<AccessLog>(new AccessLog(path, std::move(*writer)));
}

void AccessLog::write(const CloseRecord& record) {
  writer_->write(to_json_line(record) + '\n');
}

void AccessLog::reopen(std::function<void(const Result<void>&)> done) {
  writer_->reopen([path = path_] { return open_log_file(kKey, path); }, std::move(done));
}

std::uint64_t AccessLog::dropped() const {
  return writer_->dropped();
}

}  // namespace portway
