#include "api/backup_stream.h"

#include <spdlog/spdlog.h>

#include <boost/asio/post.hpp>
#include <optional>
#include <string>
#include <utility>

namespace portway {
namespace {

constexpr std::size_t kBackupPiece = 64 * 1024;

class BackupStream final : public BodyStream, public std::enable_shared_from_this<BackupStream> {
 public:
  BackupStream(boost::asio::io_context& context, std::shared_ptr<StoreBackup> backup)
      : context_(context), backup_(std::move(backup)) {}

  void on_ready(std::function<void()> wake) override {
    wake_ = std::move(wake);
    fetch();
  }

  std::optional<std::string> read() override {
    if (piece_.empty()) {
      if (failed_ || fetched_ == backup_->bytes()) return std::nullopt;
      return std::string();  // it is on its way
    }
    std::string piece = std::exchange(piece_, {});
    if (fetched_ < backup_->bytes()) fetch();
    return piece;
  }

 private:
  /// One at a time: that is all the memory it takes.
  void fetch() {
    backup_->read(fetched_, kBackupPiece, [&context = context_, weak = weak_from_this()](std::string bytes) {
      boost::asio::post(context, [weak, bytes = std::move(bytes)]() mutable {
        if (const auto self = weak.lock()) self->on_fetched(std::move(bytes));
      });
    });
  }

  void on_fetched(std::string bytes) {
    failed_ = bytes.empty();
    if (failed_) {
      spdlog::error("a backup of the store breaks off after {} of {} bytes: the disk cannot read the copy",
                    fetched_, backup_->bytes());
    }
    fetched_ += bytes.size();
    piece_ = std::move(bytes);
    wake_();
  }

  boost::asio::io_context& context_;
  const std::shared_ptr<StoreBackup> backup_;
  std::function<void()> wake_;
  std::uint64_t fetched_ = 0;
  std::string piece_;  // not read yet
  bool failed_ = false;
};

}  // namespace

Result<std::shared_ptr<BodyStream>> stream_backup(boost::asio::io_context& context,
                                                  std::shared_ptr<StoreBackup> backup) {
  return std::shared_ptr<BodyStream>(std::make_shared<BackupStream>(context, std::move(backup)));
}

}  // namespace portway
