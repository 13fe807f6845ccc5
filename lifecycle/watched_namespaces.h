// The network namespaces, other than the node's own, whose links are watched for sessions: one object, and
// with it one descriptor, for each. A namespace is watched as long as somebody holds it.
//
// Belongs to one thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>

#include "base/error.h"
#include "base/namespace_identity.h"
#include "lifecycle/link_monitor.h"
#include "network/namespace.h"

namespace portway {

class WatchedNamespace {
 public:
  /// Called by WatchedNamespaces; `links` has the namespace already.
  WatchedNamespace(LinkMonitor& links, NetworkNamespace::Ptr netns, NetnsId id)
      : links_(links), netns_(std::move(netns)), id_(id) {}
  ~WatchedNamespace() { links_.remove_namespace(id_); }
  WatchedNamespace(const WatchedNamespace&) = delete;
  WatchedNamespace& operator=(const WatchedNamespace&) = delete;

  const NetworkNamespace::Ptr& netns() const { return netns_; }
  NetnsId id() const { return id_; }

 private:
  LinkMonitor& links_;
  const NetworkNamespace::Ptr netns_;
  const NetnsId id_;
};

class WatchedNamespaces {
 public:
  using Ptr = std::shared_ptr<const WatchedNamespace>;

  /// `links` must outlive what watch() returns.
  explicit WatchedNamespaces(LinkMonitor& links) : links_(links) {}

  /// The same again if it is watched already. Errors as of LinkMonitor::add_namespace(). Not from within a
  /// callback of the monitor.
  Result<Ptr> watch(NetworkNamespace::Ptr netns);
  std::size_t size() const;
  /// Null if it is not watched.
  Ptr find(const NamespaceIdentity& identity) const;

 private:
  using File = std::pair<std::uint64_t, std::uint64_t>;  // device and inode: its own while it is open

  LinkMonitor& links_;
  std::map<File, std::weak_ptr<const WatchedNamespace>> watched_;
};

}  // namespace portway
