#include "api/sse.h"

#include <fmt/format.h>

#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <utility>

#include "base/forward.h"

namespace portway {
namespace {

// A read returns about this much at most, so that what waits for a slow client is not in memory twice.
constexpr std::size_t kPieceBytes = 64 * 1024;
constexpr std::string_view kRetry = "retry: 1000\n";  // ms that a client waits before it reconnects
constexpr std::string_view kComment = ":\n\n";        // readers skip it

class SseStream final : public BodyStream {
 public:
  explicit SseStream(std::unique_ptr<SseSource> source) : source_(std::move(source)) {}

  void on_ready(std::function<void()> wake) override { source_->on_event(std::move(wake)); }

  std::optional<std::string> read() override {
    std::string text;
    const std::string begins_after = source_->position();
    auto item = source_->next();
    if (std::exchange(first_, false)) {
      text = kRetry;
      // The comment shows at once that the stream is open. With the id, a client that loses the stream before
      // its first event continues where it began.
      if (!item || !item->is_gap) text += fmt::format("id: {}\n{}", begins_after, kComment);
    }
    while (item) {
      text += item->text;
      if (text.size() >= kPieceBytes) break;
      item = source_->next();
    }
    return text;
  }

  std::string heartbeat() override { return std::string(kComment); }

 private:
  const std::unique_ptr<SseSource> source_;
  bool first_ = true;
};

}  // namespace

std::string sse_event(std::string_view id, std::string_view type, std::string_view data) {
  return fmt::format("id: {}\nevent: {}\ndata: {}\n\n", id, type, data);
}

std::string reset_event(std::string_view id, std::string_view code, std::string_view reason) {
  const boost::json::object data{
      {"time", to_rfc3339(now())},
      {"reason", fmt::format("{}; events are missing here: read the lists again", reason)},
      {"code", code}};
  return sse_event(id, "reset", boost::json::serialize(data));
}

std::shared_ptr<BodyStream> sse_stream(std::unique_ptr<SseSource> source) {
  return std::make_shared<SseStream>(std::move(source));
}

}  // namespace portway
