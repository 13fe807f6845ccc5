#include "client/capture.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <ostream>
#include <system_error>

#include "base/fd.h"
#include "client/request.h"

namespace portway {
namespace {

std::string reason(int error) {
  return std::system_category().message(error);
}

/// A file that is named PATH.part until it is complete, so that an existing PATH stays untouched until then.
/// Anything but a regular file, such as a pipe, is written to directly.
class OutputFile {
 public:
  Outcome<void> open(const std::string& path) {
    std::error_code ignored;
    const std::filesystem::path target =
        std::filesystem::weakly_canonical(path, ignored);  // the target, not the link
    path_ = target.empty() ? path : target.string();
    struct stat status {};
    is_file_ = ::stat(path_.c_str(), &status) != 0 || S_ISREG(status.st_mode);
    if (is_file_) {
      ::unlink(part().c_str());
      file_.reset(::open(part().c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    } else {
      file_.reset(::open(path_.c_str(), O_WRONLY | O_CLOEXEC));
    }
    if (file_) return {};
    return Failure{Exit::kUsage, (is_file_ ? part() : path_) + " cannot be written: " + reason(errno) + ".",
                   "Give another file with --write."};
  }

  bool write(std::string_view data) {
    while (!data.empty() && error_ == 0) {
      const ssize_t written = ::write(file_.get(), data.data(), data.size());
      if (written >= 0) {
        data.remove_prefix(static_cast<std::size_t>(written));
        size_ += static_cast<std::size_t>(written);
      } else if (errno != EINTR) {
        error_ = errno;
      }
    }
    return error_ == 0;
  }

  /// The file is complete: gives it its final name. Returns 0 or an errno, also that of an earlier write().
  int finish() {
    if (error_ == 0 && is_file_ && ::rename(part().c_str(), path_.c_str()) != 0) error_ = errno;
    return error_;
  }

  /// The file stays incomplete. Returns a sentence that says where the received part is, or nothing.
  std::string give_up() {
    if (!is_file_) return "";
    if (size_ > 0) return "The received part is in " + part() + ".";
    ::unlink(part().c_str());
    return "";
  }

 private:
  std::string part() const { return path_ + ".part"; }

  std::string path_;
  bool is_file_ = true;
  Fd file_;
  int error_ = 0;
  std::size_t size_ = 0;
};

/// On success, the capture is complete and has been passed to `write`.
template <class Write>
Outcome<void> receive(const HttpClient& client, const Invocation& invocation, Write write) {
  const auto answer = client.stream(make_request(*invocation.command, invocation.arguments), write);
  if (!answer) return answer.error();
  if (answer->status != 200) return refusal(*answer, client.options());
  if (answer->broke_off.empty()) return {};
  return Failure{Exit::kUnreachable,
                 client.options().server.url + ": the capture was cut off: " + answer->broke_off + "."};
}

}  // namespace

Outcome<void> run_capture(const Invocation& invocation, Console& console) {
  const auto client = make_client(invocation, console);
  if (!client) return client.error();
  const std::string& path = invocation.arguments.text("--write");
  if (path.empty()) {
    if (console.terminal) {
      return Failure{Exit::kUsage, "A capture is binary and is not written to a terminal.",
                     "Give a file with --write, or pipe the output into tcpdump -r -."};
    }
    return receive(*client, invocation, [&](std::string_view data) {
      return console.out.write(data.data(), static_cast<std::streamsize>(data.size())).good();
    });
  }
  OutputFile file;
  if (auto opened = file.open(path); !opened) return opened;
  auto received = receive(*client, invocation, [&file](std::string_view data) { return file.write(data); });
  if (!received) {
    Failure failure = received.error();
    if (const std::string where = file.give_up(); !where.empty()) failure.remedy = where;
    return failure;
  }
  if (const int error = file.finish(); error != 0) {
    return Failure{Exit::kRefused,
                   path + ": the capture could not be written completely: " + reason(error) + ".",
                   file.give_up()};
  }
  return {};
}

}  // namespace portway
