#include "api/ticketed_stream.h"

#include <optional>
#include <string>
#include <utility>

namespace portway {
namespace {

class TicketedStream final : public BodyStream {
 public:
  TicketedStream(std::unique_ptr<StreamTicket> ticket, std::shared_ptr<BodyStream> inner)
      : inner_(std::move(inner)), ticket_(std::move(ticket)) {
    ticket_->on_recheck([this] {
      end_if_void();
      if (inner_ != nullptr) inner_->on_change();
    });
  }

  void on_ready(std::function<void()> wake) override {
    wake_ = std::move(wake);
    if (inner_ != nullptr) inner_->on_ready(wake_);
  }

  std::optional<std::string> read() override {
    end_if_void();
    if (inner_ != nullptr) return inner_->read();
    if (last_words_.empty()) return std::nullopt;
    return std::exchange(last_words_, {});
  }

  bool is_broken() const override { return inner_ != nullptr && inner_->is_broken(); }

  std::string heartbeat() override { return inner_ != nullptr ? inner_->heartbeat() : std::string(); }

 private:
  void end_if_void() {
    if (inner_ == nullptr) return;
    const StreamTicket::Validity validity = ticket_->validity();
    if (validity == StreamTicket::Validity::kValid) return;
    if (validity == StreamTicket::Validity::kSubjectGone) last_words_ = inner_->finish_early();
    inner_.reset();
    if (wake_) wake_();
  }

  std::shared_ptr<BodyStream> inner_;  // null once the ticket is void
  std::string last_words_;
  std::function<void()> wake_;
  const std::unique_ptr<StreamTicket> ticket_;
};

}  // namespace

Result<std::shared_ptr<BodyStream>> open_stream(Streams& streams, const StreamTerms& terms,
                                                const MakeStream& make) {
  auto ticket = streams.open(terms);
  if (!ticket) return ticket.error();
  auto made = make();
  if (!made) return made.error();
  return std::shared_ptr<BodyStream>(std::make_shared<TicketedStream>(std::move(*ticket), std::move(*made)));
}

}  // namespace portway
