// A listening Unix socket and its file, which no other process can use at any moment.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/error.h"
#include "base/fd.h"
#include "base/listen_address.h"

namespace portway {

class UnixListener {
 public:
  /// Listens at the path, with mode 0660; replaces the file of a dead daemon. kHostPortTaken if somebody
  /// listens there; kInvalidConfig if the path is something else, has no directory or may not be used;
  /// kResourceExhausted. With the path and the remedy. `inherited`: a predecessor's, which listens there.
  static Result<UnixListener> open(const UnixPath& path, Fd inherited = Fd());

  /// Removes the file, unless another has taken its place.
  ~UnixListener() { remove(); }
  UnixListener(UnixListener&& other) noexcept;
  UnixListener& operator=(UnixListener&&) = delete;
  void remove();

  /// Passes the socket to the caller.
  Fd take_socket() { return std::move(socket_); }

 private:
  UnixListener(std::string path, Fd socket) : path_(std::move(path)), socket_(std::move(socket)) {}

  std::string path_;  // empty once removed
  Fd socket_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

}  // namespace portway
