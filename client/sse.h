// Parser of server-sent events (HTML standard, section 9.2.6, "Interpreting an event stream").
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace portway {

struct ServerEvent {
  std::string id;    // the last id received, possibly with an earlier event
  std::string type;  // "message" if none was sent
  std::string data;
};

class SseParser {
 public:
  /// The limit of a line and of an event's data; Portway sends nothing longer.
  static constexpr std::size_t kLineMax = 1 << 20;

  /// Returns false to stop.
  using OnEvent = std::function<bool(const ServerEvent& event)>;
  explicit SseParser(OnEvent on_event) : on_event_(std::move(on_event)) {}

  /// Parses the next bytes of the stream, split anywhere. False if on_event returned false or a limit was
  /// exceeded.
  bool feed(std::string_view data);
  /// Call when the connection has ended: drops an incomplete event, keeps the last id before it.
  void restart();

  /// Of the last complete event: what follows it has not been seen.
  const std::string& last_id() const { return id_; }
  /// How long the server asks clients to wait before they connect again.
  std::optional<std::chrono::milliseconds> retry() const { return retry_; }

 private:
  bool on_line(std::string_view line);

  OnEvent on_event_;
  std::string line_;
  bool after_return_ = false;  // "\r\n" is one line end
  ServerEvent event_;
  bool has_data_ = false;
  std::string id_;
  std::string next_id_;  // of the event that is not complete yet
  std::optional<std::chrono::milliseconds> retry_;
};

}  // namespace portway
