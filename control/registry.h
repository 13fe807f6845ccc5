// The instances and forwards that exist, in memory. What the store has on disk, in the shape that requests
// need.
//
// Belongs to the control thread. No policy and no effects: it does not bind, persist or check. Ids ascend
// with time, so "in order of creation" is "by id", and a page is "what comes after this id". Pointers stay
// valid until the thing they point to is replaced or removed.
#pragma once

#include <boost/functional/hash.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/forward.h"

namespace portway {

/// Where a walk over all forwards stands: at the last one that it has visited.
struct ForwardPlace {
  std::string instance_id;  // empty: at the beginning
  ForwardId id{};
};

class Registry {
 public:
  static constexpr std::size_t kAll = std::numeric_limits<std::size_t>::max();

  /// nullptr when there is none.
  const Instance* find_instance(std::string_view id) const;
  const Forward* find_forward(const ForwardId& id) const;

  /// At most `limit` instances by id, those after `after` (empty: from the first); of one owner, or of all
  /// when absent; that `admits`, if given, is true of.
  std::vector<const Instance*> instances(std::optional<std::string_view> owner = std::nullopt,
                                         std::string_view after = {}, std::size_t limit = kAll,
                                         const std::function<bool(const Instance&)>& admits = nullptr) const;

  /// At most `limit` forwards of an instance in order of creation, those after `after` (nil: from the first);
  /// none when there is no such instance.
  std::vector<const Forward*> forwards(std::string_view instance_id, const ForwardId& after = {},
                                       std::size_t limit = kAll) const;

  /// Visits the forwards behind a place, by instance, until `visit` returns false; it must not change the
  /// registry. What the place was at may be gone by now.
  void forwards_after(const ForwardPlace& place, const std::function<bool(const Forward&)>& visit) const;

  /// Is an instance behind this network device of the node's namespace: by index if its session is armed, or
  /// was when it ended (the machine may run on), else by name?
  bool has_tap(std::int32_t link, std::string_view name) const;

  std::size_t instance_count() const { return instances_.size(); }
  std::size_t forward_count() const { return instance_of_.size(); }
  std::size_t forward_count(std::string_view instance_id) const;

  /// Adds an instance, or replaces the one with its id and keeps its forwards.
  const Instance& put_instance(Instance instance);
  /// Removes an instance and its forwards; returns the forwards. Nothing happens when there is none.
  std::vector<Forward> remove_instance(std::string_view id);

  /// The instance must exist and the id must be new.
  const Forward& add_forward(Forward forward);
  /// Replaces the one with its id, which must exist and belong to the same instance.
  const Forward& update_forward(Forward forward);
  /// Returns what was removed; nothing when there was none.
  std::optional<Forward> remove_forward(const ForwardId& id);
  /// All forwards of an instance, which stays.
  std::vector<Forward> remove_forwards(std::string_view instance_id);

 private:
  struct Entry {
    Instance instance;
    std::map<ForwardId, Forward> forwards;
  };

  std::vector<Forward> take_forwards(Entry& entry);
  void note_tap(const Instance& instance);
  void forget_tap(const Instance& instance);

  std::map<std::string, Entry, std::less<>> instances_;
  std::unordered_map<ForwardId, Entry*, boost::hash<ForwardId>>
      instance_of_;  // into instances_, whose nodes stay put
  // Of the running instances, once for each.
  std::unordered_multiset<std::int32_t> armed_links_;
  std::multiset<std::string, std::less<>> unarmed_taps_;
  std::multiset<std::string, std::less<>> devices_;  // Instance::device of running instances
};

}  // namespace portway
