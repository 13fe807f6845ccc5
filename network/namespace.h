// Network namespaces of guests. A thread of the daemon enters one for as long as a call takes, and returns.
// A socket that it made inside stays there, and works from any thread and any ring afterwards.
//
// A thread that cannot return would do its next work in a guest's network: the process aborts instead.
//
// There is one object, and one descriptor, for each namespace. It keeps the namespace and the links in it
// alive, as does each socket made there: drop the last reference when the last session ends. A thread that
// has entered a namespace keeps a descriptor of its own one besides.
//
// Any thread. Entering needs CAP_SYS_ADMIN, and Linux 5.6 (openat2). It costs 3 us.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/fd.h"
#include "base/namespace_identity.h"

namespace portway {

/// While it lives, the thread that entered is in the namespace. For a few calls that do not block; start
/// no thread meanwhile. It must end on the same thread, and before the NetworkNamespace.
class InNamespace {
 public:
  InNamespace(InNamespace&& other) noexcept : before_(std::exchange(other.before_, -1)) {}
  InNamespace& operator=(InNamespace&&) = delete;
  ~InNamespace();

 private:
  friend class NamespaceStay;
  friend class NetworkNamespace;
  explicit InNamespace(int before) : before_(before) {}

  int before_;  // the namespace to return to; -1: moved from
};

class NetworkNamespace;

/// A stay of the thread that saves going in and out for each of many sockets (2.7 us). Until end(), the
/// thread may be in the namespace of its last socket: nothing else may depend on where it is. One thread.
class NamespaceStay {
 public:
  /// As NetworkNamespace::make_socket().
  int make_socket(std::shared_ptr<const NetworkNamespace> netns, int domain, int type, int protocol);
  /// Returns to the namespace that the thread was in. Does nothing where it is there.
  void end();

 private:
  std::shared_ptr<const NetworkNamespace> netns_;  // where it is; null: where it was
  std::optional<InNamespace> inside_;              // destroyed before netns_
};

class NetworkNamespace {
 public:
  using Ptr = std::shared_ptr<const NetworkNamespace>;

  /// The namespace that is mounted at `path`, below one of the directories (guests.netns_directories);
  /// /var/run is /run. Symbolic links are not followed. Errors have the field "netns".
  /// kInvalidRequest: the path is wrong, or no network namespace other than the node's own is there.
  /// kResourceExhausted: descriptors or memory ran out, or a capability is missing.
  static Result<Ptr> open(std::string_view path, std::span<const std::string> directories);

  /// The namespace of a process. `is_the_one` is called once the namespace is open, and returns whether
  /// the pid still is that of the process that was meant. Errors are those of open().
  static Result<Ptr> open_of_process(std::int32_t pid, const std::function<bool()>& is_the_one);

  /// How open_of_process() opens the file of this name in /proc: a descriptor, or a negative errno. Set it
  /// before other threads use this class, if they may not do it themselves (Landlock).
  using OpenFile = std::function<int(const std::string& path)>;
  static void open_processes_by(OpenFile open_file);

  NetworkNamespace(const NetworkNamespace&) = delete;
  NetworkNamespace& operator=(const NetworkNamespace&) = delete;
  ~NetworkNamespace();

  int fd() const { return fd_.get(); }
  const NamespaceIdentity& identity() const { return identity_; }

  /// As socket(2), inside: a descriptor, which the caller owns, or a negative errno (-EPERM also if
  /// CAP_SYS_ADMIN is missing).
  int make_socket(int domain, int type, int protocol) const;

  /// Enters it until the guard's end. kResourceExhausted, as for open().
  Result<InNamespace> enter() const;

 private:
  NetworkNamespace(Fd fd, const NamespaceIdentity& identity) : fd_(std::move(fd)), identity_(identity) {}
  static Result<Ptr> from(Fd fd, const std::string& what);

  Fd fd_;
  const NamespaceIdentity identity_;
};

}  // namespace portway
