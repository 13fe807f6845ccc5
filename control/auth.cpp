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
  const std::string key = make_secret();
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

std::string who(const Principal& caller) {
  return caller.key_id == Uuid{} ? caller.owner : "key " + to_string(caller.key_id);
}

std::string make_secret() {
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  std::array<std::byte, kSecretBytes + 1> random;  // one more: 33 bytes are a whole number of 6-bit groups
  fill_random(random);
  std::string secret(kPrefix);
  for (std::size_t bit = 0; bit + 6 <= kSecretBytes * 8 + 5; bit += 6) {
    const unsigned pair =
        std::to_integer<unsigned>(random[bit / 8]) << 8 | std::to_integer<unsigned>(random[bit / 8 + 1]);
    secret += kAlphabet[(pair >> (10 - bit % 8)) & 63U];
  }
  return secret;
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

void KeyRing::add(const ApiKey& key) {
  remove(key.id);
  if (const auto same = entries_.find(key.secret_sha256); same != entries_.end()) remove(same->second.key.id);
  entries_.emplace(key.secret_sha256, Entry{.key = key, .allowance = full_allowance()});
  hashes_.emplace(key.id, key.secret_sha256);
}

bool KeyRing::remove(const Uuid& id) {
  const auto hash = hashes_.extract(id);
  return !hash.empty() && entries_.erase(hash.mapped()) > 0;
}

const ApiKey* KeyRing::find(const Uuid& id) const {
  const auto hash = hashes_.find(id);
  return hash == hashes_.end() ? nullptr : &entries_.at(hash->second).key;
}

std::vector<const ApiKey*> KeyRing::all() const {
  std::vector<const ApiKey*> keys;
  for (const auto& [id, hash] : hashes_) keys.push_back(&entries_.at(hash).key);
  return keys;
}

Result<Principal> KeyRing::authenticate(std::string_view authorization) {
  constexpr std::string_view kScheme = "bearer ";
  const bool bearer = authorization.size() > kScheme.size() &&
                      std::ranges::equal(authorization.substr(0, kScheme.size()), kScheme,
                                         [](char a, char b) { return (a | 0x20) == b || a == b; });
  if (!bearer) {
    return Error{ErrorCode::kUnauthorized, "Send an API key: \"Authorization: Bearer pwk_...\"."};
  }
  const Sha256 hash = sha256(authorization.substr(kScheme.size()));
  const auto found = entries_.lower_bound(hash);
  if (found == entries_.end() || ::CRYPTO_memcmp(found->first.data(), hash.data(), hash.size()) != 0) {
    return Error{ErrorCode::kUnauthorized, "This API key is not known here."};
  }
  Entry& entry = found->second;
  if (auto spent = spend(entry.allowance); !spent) return spent.error();
  return Principal{.key_id = entry.key.id, .role = entry.key.role, .owner = entry.key.owner};
}

Result<Principal> KeyRing::authenticate_user(std::uint32_t uid) {
  Allowance& allowance = users_.try_emplace(uid, full_allowance()).first->second;
  if (auto spent = spend(allowance); !spent) return spent.error();
  return Principal{.key_id = {}, .role = Role::kAdmin, .owner = fmt::format("uid:{}", uid)};
}

KeyRing::Allowance KeyRing::full_allowance() const {
  return {.tokens = static_cast<double>(rate_limit()), .refilled = std::chrono::steady_clock::now()};
}

Result<void> KeyRing::spend(Allowance& allowance) const {
  if (rate_limit() == 0) return {};
  const auto now = std::chrono::steady_clock::now();
  const std::chrono::duration<double> elapsed = now - allowance.refilled;
  allowance.refilled = now;
  allowance.tokens = std::min<double>(rate_limit(), allowance.tokens + elapsed.count() * rate_limit());
  if (allowance.tokens < 1) {
    return Error{.code = ErrorCode::kRateLimited,
                 .detail = fmt::format("One caller may make {} calls a second; slow down.", rate_limit()),
                 .limit = rate_limit()};
  }
  allowance.tokens -= 1;
  return {};
}

}  // namespace portway
