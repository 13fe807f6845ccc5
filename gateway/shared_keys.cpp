#include "gateway/shared_keys.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <map>
#include <utility>
#include <variant>

#include "api/shared_records.h"
#include "gateway/etcd_answers.h"

namespace portway {
namespace {

// How often a change is made again because somebody else was faster.
constexpr int kTriesMax = 8;
constexpr std::chrono::seconds kKnownWithin{1};

EtcdCompare is_at(const std::string& key, std::int64_t mod_revision) {
  return {.key = key, .target = EtcdCompare::Target::kModRevision, .number = mod_revision};
}

void log_change(const Uuid& id, std::string_view what, const Principal& caller) {
  const LogFields fields = actor_of(caller).fields();
  spdlog::info("key {} of the fleet {} by {}", to_string(id), what, who(caller));
}

}  // namespace

EtcdKeyAdmin::EtcdKeyAdmin(Parts parts)
    : parts_(std::move(parts)),
      ring_(parts_.clock),
      table_({.prefix = parts_.keys.api_keys().key,
              .parse = parse_api_key_record,
              .on_change = [this] { apply(); }}),
      mirror_(parts_.executor, parts_.etcd, {.keys = parts_.keys.api_keys()}, table_) {}

void EtcdKeyAdmin::apply() {
  std::map<Uuid, ApiKey> keys;
  for (const auto& [name, entry] : table_.entries()) keys.emplace(entry.value.id, entry.value);
  shared_.set(std::move(keys));
  parts_.on_change();
}

void EtcdKeyAdmin::look_at_ends() {
  const std::vector<std::string> ended = ring_.drop_ended();
  for (const std::string& what : ended) spdlog::info("{}", what);
  if (!ended.empty()) parts_.on_change();
}

// --- Changes.

Change<NewKey> EtcdKeyAdmin::create_key(KeySpec spec, Principal caller) {
  auto made = make_key(std::move(spec), ring_.now());
  if (!made) co_return made.error();
  if (auto room = co_await make_room(); !room) co_return room.error();
  const std::string name = parts_.keys.api_key(made->key.id);
  EtcdTxn txn{.compares = {{.key = name, .target = EtcdCompare::Target::kCreateRevision, .number = 0}}};
  txn.success.emplace_back(EtcdPut{.key = name, .value = to_record(made->key)});
  const auto put = co_await parts_.etcd->txn(std::move(txn));
  const std::string what = fmt::format("key {} was to be made", to_string(made->key.id));
  if (!put) co_return unavailable(put.error(), what);
  if (!put->succeeded) co_return Error{ErrorCode::kInternal, what + ", but there is one with this id."};
  log_change(made->key.id, fmt::format("({}) made", reach_of(made->key)), caller);
  co_await wait_until_known(put->header.revision);
  co_return NewKey{.status = status_of(made->key), .secret = std::move(made->secret)};
}

/// For one more. As far as is known here: a few too many may be made at several gateways at once.
Change<void> EtcdKeyAdmin::make_room() {
  if (!mirror_.stats().warm) {
    co_return Error{ErrorCode::kStoreUnavailable, "The fleet's keys have not been read yet; try again."};
  }
  const std::size_t keys = table_.entries().size() + table_.unreadable();
  if (keys < kApiKeysMax) co_return Result<void>();
  const ApiKey* expired = ring_.first_expired(KeyHome::kFleet);
  if (expired == nullptr) co_return too_many_keys("This fleet", keys);
  const Uuid id = expired->id;
  const std::string name = parts_.keys.api_key(id);
  const auto entry = table_.entries().find(to_string(id));
  // Unless somebody has given it a later end.
  EtcdTxn txn{.compares = {is_at(name, entry->second.mod_revision)}};
  txn.success.emplace_back(EtcdDelete{.keys = EtcdKeys::one(name)});
  const auto deleted = co_await parts_.etcd->txn(std::move(txn));
  if (!deleted) co_return unavailable(deleted.error(), "an expired key was to make room");
  if (!deleted->succeeded) co_return too_many_keys("This fleet", keys);
  spdlog::info("key {} of the fleet, which has expired, makes room for another one", to_string(id));
  co_await wait_until_known(deleted->header.revision);
  co_return Result<void>();
}

Change<KeyStatus> EtcdKeyAdmin::change_key(Uuid id, ApiKeyChange change, Principal caller) {
  if (auto checked = check_key_change(change, ring_.now()); !checked) co_return checked.error();
  const Edit edit = [&](const ApiKey& before) -> Result<ApiKey> {
    ApiKey key = before;
    portway::apply(change, key);
    return key;
  };
  const auto changed = co_await update(id, edit);
  if (!changed) co_return changed.error();
  log_change(id, fmt::format("({}) changed", reach_of(*changed)), caller);
  co_return status_of(*changed);
}

Change<NewKey> EtcdKeyAdmin::rotate_key(Uuid id, std::chrono::seconds overlap, Principal caller) {
  std::string secret;
  const Edit edit = [&](const ApiKey& before) -> Result<ApiKey> {
    auto rotated = rotated_key(status_of(before), overlap, ring_.now());
    if (!rotated) return rotated.error();
    secret = std::move(rotated->secret);
    return std::move(rotated->key);
  };
  const auto changed = co_await update(id, edit);
  if (!changed) co_return changed.error();
  log_change(id, fmt::format("(its old secret {}) rotated", old_secret_end_of(*changed)), caller);
  co_return NewKey{.status = status_of(*changed), .secret = std::move(secret)};
}

Change<void> EtcdKeyAdmin::delete_key(Uuid id, Principal caller) {
  if (auto checked = check_changeable(id); !checked) co_return checked.error();
  const EtcdDelete request{.keys = EtcdKeys::one(parts_.keys.api_key(id))};
  const auto deleted = co_await parts_.etcd->erase(request);
  if (!deleted) {
    co_return unavailable(deleted.error(), fmt::format("key {} was to be deleted", to_string(id)));
  }
  if (deleted->deleted == 0) co_return no_such_key();
  log_change(id, "deleted", caller);
  co_await wait_until_known(deleted->header.revision);
  co_return Result<void>();
}

/// If another change was faster, it is made upon that one's result.
Change<ApiKey> EtcdKeyAdmin::update(const Uuid& id, const Edit& edit) {
  if (auto checked = check_changeable(id); !checked) co_return checked.error();
  const std::string name = parts_.keys.api_key(id);
  auto found = co_await find(id);
  for (int tries = 0; found && tries < kTriesMax; ++tries) {
    const auto edited = edit(found->key);
    if (!edited) co_return edited.error();
    EtcdTxn txn{.compares = {is_at(name, found->mod_revision)}};
    txn.success.emplace_back(EtcdPut{.key = name, .value = to_record(*edited)});
    txn.failure.emplace_back(EtcdRange{.keys = EtcdKeys::one(name)});
    const auto answer = co_await parts_.etcd->txn(std::move(txn));
    if (!answer) {
      co_return unavailable(answer.error(), fmt::format("key {} was to be changed", to_string(id)));
    }
    if (answer->succeeded) {
      co_await wait_until_known(answer->header.revision);
      co_return *edited;
    }
    found = read(id, std::get<EtcdRangeAnswer>(answer->answers.at(0)));
  }
  if (!found) co_return found.error();
  co_return Error{ErrorCode::kStoreUnavailable,
                  "Others change this key all the time; nothing was changed: try again."};
}

// --- What there is.

Result<void> EtcdKeyAdmin::check_changeable(const Uuid& id) const {
  if (ring_.find(id) == nullptr || ring_.is_fleets(id)) return {};
  return Error{ErrorCode::kForbidden, "This key is the gateway's own, and not one of the fleet."};
}

Change<EtcdKeyAdmin::Found> EtcdKeyAdmin::find(const Uuid& id) {
  const auto known = table_.entries().find(to_string(id));
  if (known != table_.entries().end()) {
    co_return Found{.key = known->second.value, .mod_revision = known->second.mod_revision};
  }
  // Another gateway may have made it just now.
  const EtcdRange range{.keys = EtcdKeys::one(parts_.keys.api_key(id))};
  const auto answer = co_await parts_.etcd->range(range);
  if (!answer) {
    co_return unavailable(answer.error(), fmt::format("key {} was to be changed", to_string(id)));
  }
  co_return read(id, *answer);
}

Result<EtcdKeyAdmin::Found> EtcdKeyAdmin::read(const Uuid& id, const EtcdRangeAnswer& answer) const {
  if (answer.kvs.empty()) return no_such_key();
  const EtcdKeyValue& kv = answer.kvs.front();
  auto key = parse_api_key_record(to_string(id), kv.value);
  if (!key) {
    return Error{ErrorCode::kForbidden,
                 "What etcd has of this key cannot be read, so it is not valid; it can only be deleted."};
  }
  return Found{.key = std::move(*key), .mod_revision = kv.mod_revision};
}

boost::asio::awaitable<void> EtcdKeyAdmin::wait_until_known(std::int64_t revision) {
  static_cast<void>(co_await mirror_.wait_until_at(revision, kKnownWithin));
}

/// Of what was read or written last, which need not be in the ring yet.
KeyStatus EtcdKeyAdmin::status_of(const ApiKey& key) const {
  const Timestamp time = ring_.now();
  KeyStatus status{.key = key, .home = KeyHome::kFleet};
  const ApiKey* known = ring_.find(key.id);
  if (known != nullptr) status.key.last_used_at = known->last_used_at;
  const bool same_end = known != nullptr && known->expires_at == key.expires_at;
  status.expired =
      (key.expires_at && *key.expires_at <= time) || (same_end && ring_.status_of(*known).expired);
  if (key.old_secret && key.old_secret->valid_until > time && !status.expired) {
    const Timestamp until = key.old_secret->valid_until;
    status.old_secret_valid_until = std::min(until, key.expires_at.value_or(until));
  }
  return status;
}

}  // namespace portway
