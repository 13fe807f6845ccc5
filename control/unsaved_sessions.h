// Sessions that are otherwise in memory than on disk: a machine came up, or is gone. Memory goes first, since
// what it says is done at once; the disk follows, with all of them in one transaction, as soon as the thread
// has worked off what else had happened, and again and again until it takes them.
//
// Belongs to the control thread, and never makes it wait.
#pragma once

#include <boost/asio/io_context.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/forward.h"
#include "control/registry.h"
#include "control/store.h"

namespace portway {

class UnsavedSessions {
 public:
  struct Entry {
    Instance on_disk;               // as it is there
    std::vector<Forward> forwards;  // that have ended and are on disk still: their ports stay taken
    bool end_reported = true;       // false: it has ended, and nobody knows yet
    std::uint64_t change = 0;       // the last one
  };
  struct Callbacks {
    /// For each, before it is tried to save them.
    std::function<void(const std::string& instance_id, Entry& entry)> before_save;
    /// For each that has been saved as it is in memory.
    std::function<void(const std::string& instance_id, const Entry& saved)> on_saved;
  };

  /// All must outlive it.
  UnsavedSessions(boost::asio::io_context& context, Store& store, const Registry& registry,
                  Callbacks callbacks);

  /// The instance, which is `known` still, is about to change in memory.
  Entry& change(const Instance& known);
  /// nullptr when the disk has the instance as memory has it.
  Entry* find(std::string_view instance_id);
  const Entry* find(std::string_view instance_id) const;
  /// The instance was saved, or deleted, otherwise; an empty entry when nothing was unsaved.
  Entry take(std::string_view instance_id);

  /// A change of the instance by a caller is on its way to the disk: what memory says is saved afterwards, or
  /// it could arrive later than the change and undo it. Until release().
  void hold(std::string instance_id) { held_.insert(std::move(instance_id)); }
  void release(const std::string& instance_id);

  /// Saves what there is, unless it is being saved. Done already for each change; to be called again for what
  /// the disk did not take.
  void save();
  /// The same, at the end: whatever is being saved.
  void save_at_end();

  std::size_t size() const { return entries_.size(); }

 private:
  void save_soon();
  void on_done(const std::vector<std::pair<std::string, std::uint64_t>>& changes, const Result<void>& saved);

  boost::asio::io_context& context_;
  Store& store_;
  const Registry& registry_;
  const Callbacks callbacks_;
  const std::shared_ptr<void> alive_ = std::make_shared<char>();  // what is posted looks here first
  std::map<std::string, Entry, std::less<>> entries_;             // by instance
  std::set<std::string, std::less<>> held_;
  std::uint64_t last_change_ = 0;
  bool saving_ = false;
  bool posted_ = false;
  bool refused_ = false;  // the last time
};

}  // namespace portway
