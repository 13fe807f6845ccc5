#include "client/sse.h"

#include <algorithm>
#include <charconv>
#include <utility>

namespace portway {

bool SseParser::feed(std::string_view data) {
  for (const char c : data) {
    const bool second = std::exchange(after_return_, c == '\r') && c == '\n';
    if (second) continue;
    if (c != '\r' && c != '\n') {
      if (line_.size() >= kLineMax) return false;
      line_ += c;
      continue;
    }
    const bool more = on_line(line_);
    line_.clear();
    if (!more) return false;
  }
  return true;
}

void SseParser::restart() {
  line_.clear();
  after_return_ = false;
  event_ = {};
  has_data_ = false;
  next_id_ = id_;
}

bool SseParser::on_line(std::string_view line) {
  if (line.empty()) {
    bool more = true;
    id_ = next_id_;
    if (has_data_) {
      event_.id = id_;
      if (event_.type.empty()) event_.type = "message";
      more = on_event_(event_);
    }
    event_ = {};
    has_data_ = false;
    return more;
  }
  const std::size_t colon = std::min(line.find(':'), line.size());
  const std::string_view field = line.substr(0, colon);
  std::string_view value = line.substr(std::min(colon + 1, line.size()));
  if (value.starts_with(' ')) value.remove_prefix(1);
  if (field == "event") {
    event_.type = value;
  } else if (field == "data") {
    if (event_.data.size() + value.size() > kLineMax) return false;
    if (has_data_) event_.data += '\n';
    event_.data += value;
    has_data_ = true;
  } else if (field == "id" && value.find('\0') == std::string_view::npos) {
    next_id_ = value;
  } else if (field == "retry") {
    unsigned milliseconds = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), milliseconds);
    if (error == std::errc() && end == value.data() + value.size()) {
      retry_ = std::chrono::milliseconds(milliseconds);
    }
  }
  return true;  // a line that begins with a colon is a comment: a keepalive
}

}  // namespace portway
