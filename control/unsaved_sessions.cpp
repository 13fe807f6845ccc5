#include "control/unsaved_sessions.h"

#include <spdlog/spdlog.h>

#include <boost/asio/post.hpp>
#include <utility>

namespace portway {

UnsavedSessions::UnsavedSessions(boost::asio::io_context& context, Store& store, const Registry& registry,
                                 Callbacks callbacks)
    : context_(context), store_(store), registry_(registry), callbacks_(std::move(callbacks)) {}

UnsavedSessions::Entry& UnsavedSessions::change(const Instance& known) {
  Entry& entry = entries_.try_emplace(known.id, Entry{.on_disk = known, .forwards = {}}).first->second;
  entry.change = ++last_change_;
  save_soon();
  return entry;
}

UnsavedSessions::Entry* UnsavedSessions::find(std::string_view instance_id) {
  const auto found = entries_.find(instance_id);
  return found == entries_.end() ? nullptr : &found->second;
}

const UnsavedSessions::Entry* UnsavedSessions::find(std::string_view instance_id) const {
  const auto found = entries_.find(instance_id);
  return found == entries_.end() ? nullptr : &found->second;
}

UnsavedSessions::Entry UnsavedSessions::take(std::string_view instance_id) {
  const auto found = entries_.find(instance_id);
  if (found == entries_.end()) return {};
  return std::move(entries_.extract(found).mapped());
}

void UnsavedSessions::release(const std::string& instance_id) {
  held_.erase(instance_id);
  if (entries_.contains(instance_id)) save_soon();
}

void UnsavedSessions::save_soon() {
  if (std::exchange(posted_, true)) return;
  boost::asio::post(context_, [this, alive = std::weak_ptr(alive_)] {
    if (alive.expired()) return;
    posted_ = false;
    save();
  });
}

void UnsavedSessions::save_at_end() {
  saving_ = false;  // nobody waits for what is under way any more; the store does one after the other
  save();
}

void UnsavedSessions::save() {
  for (auto& [id, entry] : entries_) callbacks_.before_save(id, entry);
  if (saving_ || entries_.empty()) return;
  std::vector<Instance> sessions;
  std::vector<std::pair<std::string, std::uint64_t>> changes;
  for (const auto& [id, entry] : entries_) {
    if (held_.contains(id)) continue;
    sessions.push_back(*registry_.find_instance(id));
    changes.emplace_back(id, entry.change);
  }
  if (sessions.empty()) return;
  saving_ = true;
  store_.save_sessions(std::move(sessions), [this, &context = context_, alive = std::weak_ptr(alive_),
                                             changes = std::move(changes)](Result<void> saved) {
    boost::asio::post(context, [this, alive, changes, saved = std::move(saved)] {
      if (!alive.expired()) on_done(changes, saved);
    });
  });
}

void UnsavedSessions::on_done(const std::vector<std::pair<std::string, std::uint64_t>>& changes,
                              const Result<void>& saved) {
  saving_ = false;
  if (!saved) {
    if (!std::exchange(refused_, true)) {
      spdlog::error("{} session changes could not be saved; retrying: {}", changes.size(),
                    saved.error().detail);
    }
    return;
  }
  if (std::exchange(refused_, false)) spdlog::info("all sessions are saved again");
  for (const auto& [id, change] : changes) {
    const auto found = entries_.find(id);
    if (found == entries_.end() || found->second.change != change) continue;
    const auto entry = entries_.extract(found);
    callbacks_.on_saved(entry.key(), entry.mapped());
  }
  if (!entries_.empty()) save_soon();  // what has changed meanwhile
}

}  // namespace portway
