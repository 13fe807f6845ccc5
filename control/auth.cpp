#include "control/auth.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <new>
#include <span>

#include "base/fd.h"
#include "base/random.h"

namespace portway {
namespace {

constexpr std::string_view kPrefix = "pwk_";
constexpr std::size_t kIdSize = 36;
constexpr std::size_t kSecretBytes = 32;
constexpr std::size_t kKeyFileMax = 4096;

Error key_file_error(const std::string& path, std::string_view what, int error) {
  return {ErrorCode::kInvalidConfig, fmt::format("{}: cannot {}: {}", path, what, std::strerror(error)),
          "api.admin_key_file"};
}

Result<std::string> read_key(const std::string& path, const Fd& file) {
  struct stat status {};
  if (::fstat(file.get(), &status) < 0) return key_file_error(path, "stat", errno);
  if (!S_ISREG(status.st_mode)) {
    return Error{ErrorCode::kInvalidConfig, fmt::format("{}: not a regular file; choose another path", path),
                 "api.admin_key_file"};
  }
  if ((status.st_mode & 077) != 0) {
    return Error{ErrorCode::kInvalidConfig, fmt::format("{}: others may read it; chmod 600 {}", path, path),
                 "api.admin_key_file"};
  }
  std::array<char, kKeyFileMax> buffer;
  const auto got = ::read(file.get(), buffer.data(), buffer.size());
  if (got < 0) return key_file_error(path, "read", errno);
  std::string key(buffer.data(), static_cast<std::size_t>(got));
  key.erase(key.find_last_not_of(" \t\r\n") + 1);
  if (!key.starts_with(kPrefix) || key.size() < kPrefix.size() + kSecretBytes) {
    return Error{ErrorCode::kInvalidConfig,
                 fmt::format("{}: this is no key; put one there, or delete the file: then the next start or "
                             "SIGHUP makes a new one",
                             path),
                 "api.admin_key_file"};
  }
  return key;
}

/// Written beside it and moved into place: a crash leaves a whole key or none.
Result<std::string> make_key(const std::string& path) {
  std::error_code ignored;  // the open below reports it better
  const std::filesystem::path directory = std::filesystem::path(path).parent_path();
  std::filesystem::create_directories(directory, ignored);
  const std::string key = make_secret(make_uuid());
  const std::string beside = path + ".new";
  // A new file: one that is left over may have another mode, or still be open in somebody's hands.
  ::unlink(beside.c_str());
  Fd file(::open(beside.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!file) return key_file_error(beside, "make", errno);
  const std::string line = key + "\n";
  if (::write(file.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()) ||
      ::fsync(file.get()) < 0 || ::rename(beside.c_str(), path.c_str()) < 0) {
    return key_file_error(beside, "write", errno);
  }
  const Fd parent(::open(directory.empty() ? "." : directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (parent) ::fsync(parent.get());
  return key;
}

}  // namespace

Principal admin_user(std::uint32_t uid) {
  return {.key_id = {}, .role = Role::kAdmin, .owner = fmt::format("uid:{}", uid)};
}

std::string who(const Principal& caller) {
  std::string name = caller.key_id == Uuid{} ? caller.owner : "key " + to_string(caller.key_id);
  if (!caller.via.empty()) name += " via " + caller.via;
  return name;
}

Actor actor_of(const Principal& caller) {
  return {.name = who(caller), .request_id = caller.request_id};
}

std::string_view bearer_secret(std::string_view authorization) {
  constexpr std::string_view kScheme = "bearer ";
  const bool is_bearer = std::ranges::equal(authorization.substr(0, kScheme.size()), kScheme,
                                            [](char a, char b) { return (a | 0x20) == b || a == b; });
  return is_bearer ? authorization.substr(kScheme.size()) : std::string_view();
}

std::string make_secret(const Uuid& key_id) {
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  std::array<std::byte, kSecretBytes + 1> random;  // one more: 33 bytes are a whole number of 6-bit groups
  fill_random(random);
  std::string secret = std::string(kPrefix) + to_string(key_id) + "_";
  for (std::size_t bit = 0; bit + 6 <= kSecretBytes * 8 + 5; bit += 6) {
    const unsigned pair =
        std::to_integer<unsigned>(random[bit / 8]) << 8 | std::to_integer<unsigned>(random[bit / 8 + 1]);
    secret += kAlphabet[(pair >> (10 - bit % 8)) & 63U];
  }
  return secret;
}

std::optional<Uuid> key_id_in(std::string_view secret) {
  if (!secret.starts_with(kPrefix)) return std::nullopt;
  secret.remove_prefix(kPrefix.size());
  if (secret.size() <= kIdSize || secret[kIdSize] != '_') return std::nullopt;
  return parse_uuid(secret.substr(0, kIdSize));
}

Sha256 sha256(std::string_view text) {
  Sha256 digest{};
  // It fails for want of memory only; a digest of zeros would make all secrets alike.
  if (::EVP_Digest(text.data(), text.size(), digest.data(), nullptr, ::EVP_sha256(), nullptr) != 1) {
    throw std::bad_alloc();
  }
  return digest;
}

Result<std::string> load_or_make_admin_key(const std::string& path) {
  const Fd file(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));  // a FIFO would wait for a writer
  if (file) return read_key(path, file);
  if (errno != ENOENT) return key_file_error(path, "open", errno);
  auto made = make_key(path);
  if (made) spdlog::info("made the first admin key: {}", path);
  return made;
}

void KeyRing::add(const ApiKey& key, KeyHome home) {
  Entry entry{.key = key, .home = home, .last_used_saved = key.last_used_at};
  if (const auto before = keys_.find(key.id); before != keys_.end()) {
    entry.expiry = before->second.expiry;
    entry.old_secret_end = before->second.old_secret_end;
    remove(key.id);
  }
  if (const auto same = secrets_.find(key.secret_sha256); same != secrets_.end()) {
    Entry& other = keys_.at(same->second);
    if (other.key.secret_sha256 == key.secret_sha256) {
      remove(same->second);
    } else {
      forget_old_secret(other);
    }
  }
  set_ends(entry);
  entry.reported = is_over(entry.expiry);
  secrets_.emplace(key.secret_sha256, key.id);
  if (key.old_secret) secrets_.emplace(key.old_secret->sha256, key.id);  // unless that is another key's
  keys_.emplace(key.id, std::move(entry));
}

void KeyRing::change(const Uuid& id, const ApiKeyChange& change) {
  Entry& entry = keys_.at(id);
  if (change.description) entry.key.description = *change.description;
  if (!change.expires_at) return;
  entry.key.expires_at = *change.expires_at;
  entry.expiry.reset();
  set_ends(entry);
}

void KeyRing::rotate(const Uuid& id, const Sha256& secret_sha256, std::optional<Timestamp> old_valid_until) {
  Entry& entry = keys_.at(id);
  forget_old_secret(entry);
  if (old_valid_until) {
    entry.key.old_secret = {.sha256 = entry.key.secret_sha256, .valid_until = *old_valid_until};
  } else {
    secrets_.erase(entry.key.secret_sha256);
  }
  entry.key.secret_sha256 = secret_sha256;
  secrets_.insert_or_assign(secret_sha256, id);
  set_ends(entry);
}

bool KeyRing::remove(const Uuid& id) {
  const auto found = keys_.find(id);
  if (found == keys_.end()) return false;
  forget_old_secret(found->second);
  secrets_.erase(found->second.key.secret_sha256);
  keys_.erase(found);
  return true;
}

const ApiKey* KeyRing::find(const Uuid& id) const {
  const auto found = keys_.find(id);
  return found == keys_.end() ? nullptr : &found->second.key;
}

bool KeyRing::is_fleets(const Uuid& id) const {
  const auto found = keys_.find(id);
  return found != keys_.end() && found->second.home == KeyHome::kFleet;
}

std::optional<Uuid> KeyRing::find_secret(const Sha256& secret_sha256) const {
  const auto found = secrets_.find(secret_sha256);
  return found == secrets_.end() ? std::nullopt : std::optional(found->second);
}

std::size_t KeyRing::count(KeyHome home) const {
  return static_cast<std::size_t>(
      std::ranges::count(keys_, home, [](const auto& key) { return key.second.home; }));
}

std::vector<const ApiKey*> KeyRing::all() const {
  std::vector<const ApiKey*> keys;
  for (const auto& [id, entry] : keys_) keys.push_back(&entry.key);
  return keys;
}

KeyStatus KeyRing::status_of(const ApiKey& key) const {
  const Entry& entry = keys_.at(key.id);
  KeyStatus status{
      .key = entry.key, .expired = is_over(entry.expiry), .old_secret_valid_until = {}, .home = entry.home};
  if (entry.key.old_secret && !is_over(entry.old_secret_end) && !status.expired) {
    const Timestamp until = entry.key.old_secret->valid_until;
    status.old_secret_valid_until = std::min(until, entry.key.expires_at.value_or(until));
  }
  return status;
}

bool KeyRing::holds(const Principal& caller) const {
  if (!caller.via.empty()) return std::ranges::find(gateways_, caller.via) != gateways_.end();
  if (caller.key_id.is_nil()) return true;  // api.admin_uids does not change while the daemon runs
  const auto found = keys_.find(caller.key_id);
  if (found == keys_.end() || is_over(found->second.expiry)) return false;
  const Entry& entry = found->second;
  if (entry.key.secret_sha256 == caller.secret_sha256) return true;
  return entry.key.old_secret && entry.key.old_secret->sha256 == caller.secret_sha256 &&
         !is_over(entry.old_secret_end);
}

// --- What ends.

std::optional<KeyRing::End> KeyRing::end_at(std::optional<Timestamp> at) const {
  if (!at) return std::nullopt;
  const auto left = *at - clock_.now();
  if (left.count() <= 0) return End{.at = *at, .uptime = std::nullopt};
  return End{.at = *at, .uptime = clock_.uptime() + left};
}

bool KeyRing::is_over(const std::optional<End>& end) const {
  return end && (clock_.now() >= end->at || (end->uptime && clock_.uptime() >= *end->uptime));
}

void KeyRing::set_ends(Entry& entry) const {
  const std::optional<Timestamp> until =
      entry.key.old_secret ? std::optional(entry.key.old_secret->valid_until) : std::nullopt;
  // What is counted down already is not counted from the start again, by a clock that was set back meanwhile.
  const auto set = [this](std::optional<End>& end, std::optional<Timestamp> at) {
    if (!end || !at || end->at != *at) end = end_at(at);
  };
  set(entry.expiry, entry.key.expires_at);
  set(entry.old_secret_end, until);
  entry.reported = false;
}

void KeyRing::forget_old_secret(Entry& entry) {
  if (!entry.key.old_secret) return;
  const auto found = secrets_.find(entry.key.old_secret->sha256);
  if (found != secrets_.end() && found->second == entry.key.id) secrets_.erase(found);
  entry.key.old_secret.reset();
  entry.old_secret_end.reset();
}

std::optional<std::chrono::milliseconds> KeyRing::until_next_end() const {
  std::optional<std::chrono::milliseconds> next;
  const auto consider = [&](const std::optional<End>& end) {
    if (!end) return;
    auto left = end->at - clock_.now();
    if (end->uptime) left = std::min(left, *end->uptime - clock_.uptime());
    left = std::max(left, std::chrono::milliseconds(0));
    next = next ? std::min(*next, left) : left;
  };
  for (const auto& [id, entry] : keys_) {
    if (!entry.reported) consider(entry.expiry);
    consider(entry.old_secret_end);
  }
  return next;
}

std::vector<std::string> KeyRing::drop_ended() {
  std::vector<std::string> ended;
  for (auto& [id, entry] : keys_) {
    const bool expired = is_over(entry.expiry);
    if (expired && !entry.reported) ended.push_back(fmt::format("key {} has expired", to_string(id)));
    entry.reported = expired;
    if (!is_over(entry.old_secret_end)) continue;
    forget_old_secret(entry);
    ended.push_back(fmt::format("the old secret of key {} is not valid any more", to_string(id)));
  }
  return ended;
}

const ApiKey* KeyRing::first_expired(KeyHome home) const {
  const Entry* first = nullptr;
  for (const auto& [id, entry] : keys_) {
    if (entry.home != home) continue;
    if (is_over(entry.expiry) && (first == nullptr || entry.expiry->at < first->expiry->at)) first = &entry;
  }
  return first == nullptr ? nullptr : &first->key;
}

// --- Uses.

std::vector<ApiKeyUse> KeyRing::unsaved_uses() const {
  std::vector<ApiKeyUse> uses;
  for (const auto& [id, entry] : keys_) {
    if (entry.home == KeyHome::kOwn && entry.key.last_used_at &&
        entry.key.last_used_at != entry.last_used_saved)
      uses.push_back({.id = id, .last_used_at = *entry.key.last_used_at});
  }
  return uses;
}

void KeyRing::note_saved(const ApiKeyUse& use) {
  if (const auto found = keys_.find(use.id); found != keys_.end())
    found->second.last_used_saved = use.last_used_at;
}

Result<Principal> KeyRing::authenticate(std::string_view authorization) {
  const std::string_view secret = bearer_secret(authorization);
  if (secret.empty()) {
    return Error{ErrorCode::kUnauthorized, "Send an API key: \"Authorization: Bearer pwk_...\"."};
  }
  const Sha256 hash = sha256(secret);
  const auto found = secrets_.lower_bound(hash);
  if (found == secrets_.end() || ::CRYPTO_memcmp(found->first.data(), hash.data(), hash.size()) != 0) {
    return Error{ErrorCode::kUnauthorized, "This API key is not known here."};
  }
  Entry& entry = keys_.at(found->second);
  Principal caller{.key_id = entry.key.id,
                   .role = entry.key.role,
                   .owner = entry.key.owner,
                   .scope = entry.key.scope,
                   .instance_id = entry.key.instance_id,
                   .secret_sha256 = hash};
  if (!holds(caller)) return refusal_of(entry.key);
  entry.key.last_used_at = clock_.now();
  return caller;
}

/// To whoever has one of its secrets.
Error KeyRing::refusal_of(const ApiKey& key) const {
  if (status_of(key).expired) {
    return {ErrorCode::kUnauthorized,
            fmt::format("This API key expired at {}; ask for another one, or for a later end of this one.",
                        to_rfc3339(*key.expires_at))};
  }
  return {ErrorCode::kUnauthorized, "This API key was rotated; use its new secret."};
}

}  // namespace portway
