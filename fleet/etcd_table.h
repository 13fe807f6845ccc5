// What is below a prefix of etcd, read into values: a sink for an EtcdMirror.
//
// One thread only.
#pragma once

#include <spdlog/spdlog.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "fleet/etcd_mirror.h"

namespace portway {

/// What becomes of a value that is replaced by one that cannot be read.
enum class IfUnreadable : std::uint8_t { kGone, kStays };

template <class Value>
class EtcdTable final : public EtcdSink {
 public:
  struct Entry {
    Value value;
    std::int64_t mod_revision = 0;

    friend bool operator==(const Entry&, const Entry&) = default;
  };
  using Entries = std::map<std::string, Entry, std::less<>>;  // by name: the key without the prefix
  /// How many entries, and as many that cannot be read. What is beyond counts as unreadable, until a listing
  /// finds room for it.
  static constexpr std::size_t kMax = 10'000;

  struct Parts {
    std::string prefix;
    /// An error: the value cannot be read.
    std::function<Result<Value>(std::string_view name, std::string_view value)> parse;
    IfUnreadable if_unreadable = IfUnreadable::kGone;
    /// Some entries are others than before. Of a whole listing once. It must not destroy the mirror.
    std::function<void()> on_change;
  };
  explicit EtcdTable(Parts parts) : parts_(std::move(parts)) {}

  const Entries& entries() const { return entries_; }
  /// Those that cannot be read. Each is logged once.
  std::size_t unreadable() const { return unreadable_.size(); }
  /// As if nothing had ever been read. Tells nobody.
  void clear() {
    entries_.clear();
    listed_.reset();
    unreadable_.clear();
  }

 private:
  void begin_listing() override { listed_.emplace(); }
  void end_listing(std::int64_t /*revision*/) override {
    Entries listed = std::move(listed_->entries);
    unreadable_ = std::move(listed_->unreadable);
    listed_.reset();
    if (listed == entries_) return;
    entries_ = std::move(listed);
    parts_.on_change();
  }

  void put(const EtcdKeyValue& kv) override {
    if (!kv.key.starts_with(parts_.prefix)) return;  // no etcd answers so
    const std::string name = kv.key.substr(parts_.prefix.size());
    Entries& entries = listed_ ? listed_->entries : entries_;
    Names& unreadable = listed_ ? listed_->unreadable : unreadable_;
    const bool has_room = entries.size() < kMax || entries.contains(name);
    auto parsed = has_room ? parts_.parse(name, kv.value)
                           : Result<Value>(Error{ErrorCode::kInvalidRequest, "there are too many"});
    if (parsed) {
      unreadable.erase(name);
      entries.insert_or_assign(name, Entry{std::move(*parsed), kv.mod_revision});
      if (!listed_) parts_.on_change();
      return;
    }
    if (!unreadable_.contains(name) && unreadable.size() < kMax) {
      spdlog::warn("fleet: {} cannot be read: {}", kv.key, parsed.error().detail);
    }
    if (unreadable.size() < kMax) unreadable.insert(name);
    if (parts_.if_unreadable == IfUnreadable::kGone) {
      if (entries.erase(name) != 0 && !listed_) parts_.on_change();
    } else if (const auto before = entries_.find(name); listed_ && before != entries_.end()) {
      entries.insert(*before);
    }
  }

  void erase(const std::string& key, std::int64_t /*revision*/) override {
    if (!key.starts_with(parts_.prefix)) return;
    const std::string name = key.substr(parts_.prefix.size());
    unreadable_.erase(name);
    if (entries_.erase(name) != 0) parts_.on_change();
  }

  using Names = std::set<std::string>;
  struct Listing {
    Entries entries;
    Names unreadable;
  };

  const Parts parts_;
  Entries entries_;
  Names unreadable_;
  std::optional<Listing> listed_;  // so far
};

}  // namespace portway
