#include "control/keys.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <utility>

namespace portway {

namespace {

constexpr std::chrono::milliseconds kWaitMax = std::chrono::minutes(1);

}  // namespace

/// Any thread.
struct Keys::Saving {
  std::atomic<bool> running = false;
  std::atomic<bool> saved = false;
};

Keys::Keys(boost::asio::io_context& context, Store& store, const Config& config, std::function<void()> on_end,
           KeyClock clock)
    : store_(store),
      config_(config),
      on_end_(std::move(on_end)),
      ring_(std::move(clock)),
      timer_(context),
      saving_(std::make_shared<Saving>()) {}

void Keys::add_stored(const ApiKey& key) {
  // The admin key file may have the secret that a stored key once had, and so its id.
  if (const ApiKey* admin = ring_.find(admin_key_id_); admin != nullptr && key.id == admin_key_id_) {
    ApiKey renamed = *admin;
    ring_.remove(admin_key_id_);
    renamed.id = admin_key_id_ = make_uuid();
    ring_.add(renamed);
  }
  ring_.add(key);
}

Change<NewKey> Keys::create(KeySpec spec, Principal caller) {
  auto made = make_key(std::move(spec), ring_.now());
  if (!made) co_return made.error();
  if (auto room = co_await make_room(); !room) co_return room.error();
  if (auto stored = co_await store_.add_api_key(made->key); !stored) co_return stored.error();
  ring_.add(made->key);
  shared_.apply();
  wait_for_next_end();
  const LogFields fields = actor_of(caller).fields();
  spdlog::info("key {} ({}) made by {}", to_string(made->key.id), reach_of(made->key), who(caller));
  co_return NewKey{.status = {.key = made->key}, .secret = std::move(made->secret)};
}

/// For one more.
Change<void> Keys::make_room() {
  const std::size_t keys = ring_.count(KeyHome::kOwn);
  if (keys <= kApiKeysMax) co_return Result<void>();  // the admin key file's is one more
  const ApiKey* expired = ring_.first_expired();
  if (expired == nullptr) co_return too_many_keys("This node", keys - 1);
  const Uuid id = expired->id;
  if (auto stored = co_await store_.delete_api_key(id); !stored) co_return stored;
  ring_.remove(id);
  spdlog::info("key {}, which has expired, makes room for another one", to_string(id));
  co_return Result<void>();
}

Result<const ApiKey*> Keys::find_changeable(const Uuid& id) const {
  if (id == admin_key_id_) {
    return Error{ErrorCode::kForbidden,
                 fmt::format("This is the key in {}; replace that file and send SIGHUP to change it.",
                             config_.api.admin_key_file)};
  }
  const ApiKey* key = ring_.find(id);
  if (key == nullptr) return no_such_key();
  if (ring_.is_fleets(id))
    return Error{ErrorCode::kForbidden, "This key belongs to the fleet: change it at a gateway."};
  return key;
}

Change<KeyStatus> Keys::change(Uuid id, ApiKeyChange change, Principal caller) {
  if (auto found = find_changeable(id); !found) co_return found.error();
  if (auto checked = check_key_change(change, ring_.now()); !checked) co_return checked.error();
  if (auto stored = co_await store_.change_api_key(id, change); !stored) co_return stored.error();
  const ApiKey* key = ring_.find(id);
  if (key == nullptr) co_return no_such_key();  // it was deleted meanwhile
  ring_.change(id, change);
  wait_for_next_end();
  const LogFields fields = actor_of(caller).fields();
  spdlog::info("key {} ({}) changed by {}", to_string(id), reach_of(*key), who(caller));
  co_return ring_.status_of(*key);
}

Change<NewKey> Keys::rotate(Uuid id, std::chrono::seconds overlap, Principal caller) {
  const auto found = find_changeable(id);
  if (!found) co_return found.error();
  auto rotated = rotated_key(ring_.status_of(**found), overlap, ring_.now());
  if (!rotated) co_return rotated.error();
  const Sha256 hash = rotated->key.secret_sha256;
  std::optional<Timestamp> old_valid_until;
  if (rotated->key.old_secret) old_valid_until = rotated->key.old_secret->valid_until;
  if (auto stored = co_await store_.rotate_api_key(id, hash, old_valid_until); !stored)
    co_return stored.error();
  const ApiKey* key = ring_.find(id);
  if (key == nullptr) co_return no_such_key();  // it was deleted meanwhile
  ring_.rotate(id, hash, old_valid_until);
  wait_for_next_end();
  const LogFields fields = actor_of(caller).fields();
  spdlog::info("key {} rotated by {}; its old secret {}", to_string(id), who(caller),
               old_secret_end_of(rotated->key));
  co_return NewKey{.status = ring_.status_of(*key), .secret = std::move(rotated->secret)};
}

Change<void> Keys::remove(Uuid id, Principal caller) {
  if (auto found = find_changeable(id); !found) co_return found.error();
  if (auto stored = co_await store_.delete_api_key(id); !stored) co_return stored.error();
  ring_.remove(id);
  shared_.apply();
  const LogFields fields = actor_of(caller).fields();
  spdlog::info("key {} deleted by {}", to_string(id), who(caller));
  co_return Result<void>();
}

void Keys::set_shared(std::map<Uuid, ApiKey> keys) {
  shared_.set(std::move(keys));
  wait_for_next_end();
}

void Keys::look_at_ends() {
  const std::vector<std::string> ended = ring_.drop_ended();
  for (const std::string& what : ended) spdlog::info("{}", what);
  wait_for_next_end();
  if (!ended.empty()) on_end_();
}

void Keys::wait_for_next_end() {
  const auto left = ring_.until_next_end();
  if (!left) {
    timer_.cancel();
    return;
  }
  // Not for longer, because the clocks that it is measured by do not stop while the machine sleeps.
  timer_.expires_after(std::min(*left, kWaitMax));
  timer_.async_wait([this, alive = std::weak_ptr(alive_)](const boost::system::error_code& error) {
    if (!error && !alive.expired()) look_at_ends();
  });
}

void Keys::save_uses(bool now) {
  if (saving_->running) return;
  const auto time = std::chrono::steady_clock::now();
  if (!now && time - uses_saved_at_ < kSaveUsesEvery) return;
  uses_saved_at_ = time;
  if (saving_->saved.exchange(false)) {
    for (const ApiKeyUse& use : uses_written_) ring_.note_saved(use);
  }
  uses_written_ = ring_.unsaved_uses();
  std::erase_if(uses_written_, [this](const ApiKeyUse& use) { return use.id == admin_key_id_; });
  if (uses_written_.empty()) return;
  saving_->running = true;
  store_.save_api_key_uses(uses_written_, [saving = saving_](const Result<void>& saved) {
    saving->saved = static_cast<bool>(saved);
    saving->running = false;
  });
}

bool Keys::set_admin_key(std::string_view secret) {
  if (!replace_admin_key(ring_, admin_key_id_, secret)) return false;
  shared_.apply();
  return true;
}

bool replace_admin_key(KeyRing& ring, Uuid& id, std::string_view secret) {
  const Sha256 hash = sha256(secret);
  const ApiKey* known = ring.find(id);
  if (known != nullptr && known->secret_sha256 == hash) return false;  // its users are not disturbed
  const std::string before = known == nullptr ? "" : to_string(id);
  ring.remove(id);
  ApiKey key;
  // The id that its secret names, so that a leaked one can be traced, unless a stored key has it.
  const std::optional<Uuid> named = key_id_in(secret);
  key.id = id = named && ring.find(*named) == nullptr ? *named : make_uuid();
  key.role = Role::kAdmin;
  key.owner = "admin";
  key.secret_sha256 = hash;
  key.created_at = ring.now();
  ring.add(key);
  spdlog::info("the key in api.admin_key_file is key {}{}", to_string(key.id),
               before.empty() ? "" : fmt::format(", in place of key {}", before));
  return true;
}

}  // namespace portway
