#include "control/line_writer.h"

#include <fmt/format.h>
#include <limits.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/blocked_signals.h"

namespace portway {
namespace {

using std::chrono::milliseconds;

/// Waits for as long as it takes. Fewer bytes than there are: the descriptor refuses the rest.
std::size_t write_all(int fd, std::string_view bytes) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t written = ::write(fd, bytes.data() + done, bytes.size() - done);
    if (written > 0) {
      done += static_cast<std::size_t>(written);
    } else if (written < 0 && errno == EAGAIN) {  // somebody else has set O_NONBLOCK on it
      pollfd writable{.fd = fd, .events = POLLOUT, .revents = 0};
      ::poll(&writable, 1, -1);
    } else if (written == 0 || errno != EINTR) {
      break;
    }
  }
  return done;
}

}  // namespace

class LineWriter::Core {
 public:
  Core(Fd target, LineWriterOptions options)
      : options_(std::move(options)), target_(std::make_shared<Target>(std::move(target))) {}

  void write(std::string line) {
    const std::lock_guard lock(mutex_);
    bytes_ += line.size();
    queue_.push_back({std::move(line), target_});
    while (queue_.size() > options_.lines_max || bytes_ > options_.bytes_max) {
      pop();
      ++dropped_;
      ++untold_;
    }
    changed_.notify_one();
  }

  void redirect(Fd target) {
    const std::lock_guard lock(mutex_);
    target_ = std::make_shared<Target>(std::move(target));
  }

  void reopen(Open open, Opened done) {
    const std::lock_guard lock(mutex_);
    if (target_->open && !target_->opening) return;
    auto next = std::make_shared<Target>(Fd());
    next->open = std::move(open);
    next->done = std::move(done);
    next->before = target_;
    target_ = std::move(next);
    changed_.notify_one();
  }

  bool drain(milliseconds timeout) {
    std::unique_lock lock(mutex_);
    return written_.wait_for(lock, timeout, [this] { return is_done(); });
  }

  std::uint64_t dropped() const {
    const std::lock_guard lock(mutex_);
    return dropped_;
  }

  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return stopping_ || !queue_.empty() || target_->open; });
      if (!queue_.empty()) {
        write_some(lock);
      } else if (stopping_) {
        break;
      } else {
        const std::shared_ptr<Target> target = target_;  // it may be another one meanwhile
        open(*target, lock);
      }
    }
    ended_ = true;
    written_.notify_all();
  }

  /// The thread ends once the queue is empty. False when it has not after `timeout`; what is queued is lost.
  bool stop(milliseconds timeout) {
    std::unique_lock lock(mutex_);
    stopping_ = true;
    changed_.notify_one();
    if (written_.wait_for(lock, timeout, [this] { return ended_; })) return true;
    queue_.clear();
    return false;
  }

 private:
  struct File {
    Fd fd;
    bool torn = false;  // a part of a line is at its end: the next one must not continue it
  };
  /// Where lines go. The file is the thread's once it is open.
  struct Target {
    explicit Target(Fd target) : file(std::make_shared<File>(File{.fd = std::move(target)})) {}

    std::shared_ptr<File> file;
    Open open = nullptr;  // until it has been called
    Opened done = nullptr;
    std::shared_ptr<Target> before = nullptr;  // which is open by the time that this one is opened
    bool opening = false;
  };
  struct Line {
    std::string text;
    std::shared_ptr<Target> target;
  };

  bool is_done() const { return queue_.empty() && !writing_ && !target_->open; }

  /// `lock` is let go of meanwhile, but for reporting what came of it: nothing is reported after stop().
  void open(Target& target, std::unique_lock<std::mutex>& lock) {
    writing_ = true;
    target.opening = true;
    lock.unlock();
    Result<Fd> opened = target.open();
    lock.lock();
    writing_ = false;
    target.file = opened ? std::make_shared<File>(File{.fd = std::move(*opened)}) : target.before->file;
    target.open = nullptr;
    target.before.reset();
    if (!stopping_) target.done(opened ? Result<void>() : Result<void>(opened.error()));
    if (is_done()) written_.notify_all();
  }

  void pop() {
    bytes_ -= queue_.front().text.size();
    queue_.pop_front();
  }

  /// As many lines as one write(2) of a pipe takes as a whole, at least one. `lock` is let go of meanwhile.
  void write_some(std::unique_lock<std::mutex>& lock) {
    const std::shared_ptr<Target> target = queue_.front().target;
    if (target->open) return open(*target, lock);
    const std::uint64_t told = options_.lost_note ? untold_ : 0;
    File& file = *target->file;
    std::string text = file.torn ? "\n" : "";
    if (told > 0) text += options_.lost_note(told);
    const std::size_t note_end = text.size();
    std::vector<std::size_t> line_ends;
    const auto goes_along = [&] {
      if (queue_.empty() || queue_.front().target != target) return false;
      if (options_.one_by_one) return text.empty();
      return line_ends.empty() || text.size() + queue_.front().text.size() <= PIPE_BUF;
    };
    while (goes_along()) {
      text += queue_.front().text;
      line_ends.push_back(text.size());
      pop();
    }
    writing_ = true;
    lock.unlock();
    const std::size_t written = write_all(file.fd.get(), text);
    if (written > 0) file.torn = text[written - 1] != '\n';
    lock.lock();
    writing_ = false;
    if (written >= note_end) untold_ -= told;
    // A line that lacks its line feed alone is whole: the next write begins with one.
    const auto lost = static_cast<std::uint64_t>(
        std::ranges::count_if(line_ends, [&](auto end) { return end > written + 1; }));
    dropped_ += lost;
    untold_ += lost;
    if (is_done()) written_.notify_all();
  }

  const LineWriterOptions options_;
  mutable std::mutex mutex_;  // protects all below; never held while something is written
  std::condition_variable changed_;
  std::condition_variable written_;  // or ended
  std::deque<Line> queue_;
  std::size_t bytes_ = 0;           // in it
  std::shared_ptr<Target> target_;  // of the next line
  std::uint64_t dropped_ = 0;
  std::uint64_t untold_ = 0;  // of those: no note has been written yet
  bool writing_ = false;      // or opening
  bool stopping_ = false;
  bool ended_ = false;
};

Result<std::unique_ptr<LineWriter>> LineWriter::start(Fd target, LineWriterOptions options) {
  const milliseconds end_wait = options.end_wait;
  auto core = std::make_shared<Core>(std::move(target), std::move(options));
  std::error_code failed;
  try {
    const BlockedSignals blocked;
    // Detached: the process must be able to end while it is stuck.
    std::thread([core] { core->run(); }).detach();
  } catch (const std::system_error& error) {
    failed = error.code();
  }
  if (failed) {
    return Error{ErrorCode::kResourceExhausted,
                 fmt::format("a thread for a log: {}; raise the limit on processes", failed.message())};
  }
  return std::unique_ptr<LineWriter>(new LineWriter(std::move(core), end_wait));
}

LineWriter::LineWriter(std::shared_ptr<Core> core, milliseconds end_wait)
    : core_(std::move(core)), end_wait_(end_wait) {}

LineWriter::~LineWriter() {
  core_->stop(end_wait_);
}

void LineWriter::write(std::string line) {
  core_->write(std::move(line));
}

void LineWriter::redirect(Fd target) {
  core_->redirect(std::move(target));
}

void LineWriter::reopen(Open open, Opened done) {
  core_->reopen(std::move(open), std::move(done));
}

bool LineWriter::drain(milliseconds timeout) {
  return core_->drain(timeout);
}

std::uint64_t LineWriter::dropped() const {
  return core_->dropped();
}

}  // namespace portway
