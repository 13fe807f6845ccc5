// A file that a server's answer is written to.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <string>
#include <string_view>

#include "base/fd.h"
#include "client/failure.h"

namespace portway {

/// A file that is named PATH.part until it is complete, so that an existing PATH stays untouched until then;
/// what is left of an earlier try stays until the server has agreed to this one. Anything but a regular file,
/// such as a pipe, is written to directly.
class OutputFile {
 public:
  /// kUsage if it cannot be written. `mode` is of a new file, less the umask.
  Outcome<void> open(const std::string& path, mode_t mode = 0666);

  /// Called with nothing once the server has agreed, then with what it sends.
  bool write(std::string_view data);

  /// The file is complete: puts it on disk and gives it its final name. Returns 0 or an errno, also that of
  /// an earlier write().
  int finish();

  /// The file stays incomplete. Returns a sentence that says where the received part is, or nothing.
  std::string give_up();
  /// The file stays incomplete, and nothing of it stays.
  void remove();

  /// Of writing; 0: none.
  int error() const { return error_; }
  /// How much has been written.
  std::size_t size() const { return size_; }

 private:
  std::string part() const { return path_ + ".part"; }
  std::string empty() const;  // before the server's answer

  std::string path_;
  bool is_file_ = true;
  bool agreed_ = false;
  Fd file_;
  int error_ = 0;
  std::size_t size_ = 0;
};

}  // namespace portway
