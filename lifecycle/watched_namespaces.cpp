#include "lifecycle/watched_namespaces.h"

#include <algorithm>

namespace portway {

Result<WatchedNamespaces::Ptr> WatchedNamespaces::watch(NetworkNamespace::Ptr netns) {
  const NamespaceIdentity identity = netns->identity();
  if (Ptr known = find(identity)) return known;
  const auto id = links_.add_namespace(netns->fd());
  if (!id) return id.error();
  std::erase_if(watched_, [](const auto& entry) { return entry.second.expired(); });
  const auto added = std::make_shared<const WatchedNamespace>(links_, std::move(netns), *id);
  watched_.insert_or_assign(File{identity.device, identity.inode}, added);
  return Ptr(added);
}

std::size_t WatchedNamespaces::size() const {
  const auto watched = [](const auto& entry) { return !entry.second.expired(); };
  return static_cast<std::size_t>(std::ranges::count_if(watched_, watched));
}

WatchedNamespaces::Ptr WatchedNamespaces::find(const NamespaceIdentity& identity) const {
  const auto found = watched_.find({identity.device, identity.inode});
  if (found == watched_.end()) return nullptr;
  Ptr watched = found->second.lock();
  return watched && watched->netns()->identity() == identity ? watched : nullptr;
}

}  // namespace portway
