#include "client/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

namespace portway {

namespace fs = std::filesystem;

std::string OutputFile::empty() const {
  return part() + "." + std::to_string(::getpid());
}

Outcome<void> OutputFile::open(const std::string& path, mode_t mode) {
  std::error_code ignored;
  const fs::path target = fs::weakly_canonical(path, ignored);  // the target, not the link
  path_ = target.empty() ? path : target.string();
  struct stat status {};
  is_file_ = ::stat(path_.c_str(), &status) != 0 || S_ISREG(status.st_mode);
  if (is_file_) {
    ::unlink(empty().c_str());  // of an earlier process with this number
    file_.reset(::open(empty().c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode));
  } else {
    file_.reset(::open(path_.c_str(), O_WRONLY | O_CLOEXEC));
  }
  if (file_) return {};
  return Failure{
      Exit::kUsage,
      (is_file_ ? empty() : path_) + " cannot be written: " + std::system_category().message(errno) + ".",
      "Give another file."};
}

bool OutputFile::write(std::string_view data) {
  if (is_file_ && !agreed_ && ::rename(empty().c_str(), part().c_str()) != 0) error_ = errno;
  agreed_ = true;
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

int OutputFile::finish() {
  if (error_ != 0 || !is_file_) return error_;
  if (::fsync(file_.get()) != 0 || ::rename(part().c_str(), path_.c_str()) != 0) return error_ = errno;
  const fs::path directory = fs::absolute(path_).parent_path();
  const Fd opened(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (opened && ::fsync(opened.get()) != 0) error_ = errno;
  return error_;
}

std::string OutputFile::give_up() {
  if (is_file_ && agreed_ && size_ > 0) return "The received part is in " + part() + ".";
  remove();
  return "";
}

void OutputFile::remove() {
  if (is_file_) ::unlink((agreed_ ? part() : empty()).c_str());
}

}  // namespace portway
