#include "config/config_files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>
#include <variant>

#include "base/tls_files.h"

namespace portway {
namespace {

namespace fs = std::filesystem;

std::string reason(int error) {
  return std::system_category().message(error);
}

Error unusable(std::string_view key, const fs::path& file, std::string_view why) {
  return {ErrorCode::kInvalidConfig, fmt::format("{}: {}: {}", key, file.string(), why), std::string(key)};
}

class Files {
 public:
  std::vector<std::string> warnings;

  /// A file that the daemon creates if it is missing.
  Result<void> made(std::string_view key, const fs::path& file) const {
    std::error_code ignored;
    if (!fs::is_directory(file, ignored)) return {};
    return unusable(key, file, "it is a directory; name a file");
  }

  /// The directory of a file, which the daemon creates if it is missing.
  Result<void> made_directory(std::string_view key, const fs::path& file) {
    return writable(key, nearest_directory(file));
  }

  /// A directory that must exist.
  Result<void> directory(std::string_view key, const fs::path& file) {
    const fs::path directory = fs::absolute(file).parent_path();
    std::error_code error;
    if (!fs::exists(directory, error)) {
      return unusable(key, file, "its directory is not there; make it, or name another file");
    }
    return writable(key, directory);
  }

  /// A directory that systemd may create for the daemon.
  void runtime_directory(std::string_view key, const fs::path& file) {
    if (const auto found = directory(key, file); !found) {
      warnings.push_back(
          fmt::format("{}: {}: its directory is not there; make it first (systemd: RuntimeDirectory=).", key,
                      file.string()));
    }
  }

 private:
  Result<void> writable(std::string_view key, const fs::path& directory) {
    std::error_code ignored;
    if (!fs::is_directory(directory, ignored)) {
      return unusable(key, directory, "it is no directory; name a file in one");
    }
    if (::faccessat(AT_FDCWD, directory.c_str(), W_OK | X_OK, AT_EACCESS) == 0) return {};
    const int error = errno;
    if (error == EROFS) {
      return unusable(key, directory, "the disk is mounted read-only; mount it writable, or name another");
    }
    warnings.push_back(fmt::format("{}: {}: user {} cannot write there ({}); portwayd's user must.", key,
                                   directory.string(), ::geteuid(), reason(error)));
    return {};
  }
};

Result<void> check_admin_key(const std::string& path) {
  constexpr std::string_view kKey = "api.admin_key_file";
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0 || (status.st_mode & 077) == 0) return {};
  return unusable(
      kKey, path,
      fmt::format(
          "others may use it (mode {:o}); chmod 600 it, and make a new key if somebody may have read it",
          status.st_mode & 0777));
}

/// Those that are read each time that they are needed. The daemon would start without them, and report it.
Result<void> check_fleet_files(const Config::Fleet& fleet) {
  if (fleet.etcd.empty()) return {};
  for (const auto& [key, file] : {std::pair("fleet.etcd_tls_ca", fleet.etcd_tls_ca),
                                  std::pair("fleet.etcd_password_file", fleet.etcd_password_file)}) {
    if (!file.empty() && ::faccessat(AT_FDCWD, file.c_str(), R_OK, AT_EACCESS) != 0) {
      return unusable(key, file, fmt::format("{}; name a file that this user can read", reason(errno)));
    }
  }
  if (fleet.etcd_tls_certificate.empty()) return {};
  return check_tls_files({.certificate = fleet.etcd_tls_certificate,
                          .private_key = fleet.etcd_tls_private_key,
                          .key_prefix = "fleet.etcd_"});
}

}  // namespace

std::vector<std::pair<std::string_view, std::string>> log_files(const Config& config) {
  std::vector<std::pair<std::string_view, std::string>> all = {{"log.access", config.log.access},
                                                               {"log.audit", config.log.audit}};
  std::erase_if(all, [](const auto& each) { return each.second.empty(); });
  return all;
}

fs::path nearest_directory(const fs::path& file) {
  std::error_code ignored;
  fs::path directory = fs::absolute(file, ignored).parent_path();
  while (!fs::exists(directory, ignored) && directory.has_relative_path())
    directory = directory.parent_path();
  return directory;
}

Result<void> check_listeners_tls(const Config::Api& api) {
  for (std::size_t i = 0; i < api.listen.size(); ++i) {
    const TlsFiles tls = tls_of_listener(api, i);
    if (tls.certificate.empty()) continue;
    if (auto checked = check_tls_files(tls); !checked) return checked;
  }
  return {};
}

namespace {

Result<void> check_shared_files(Files& files, const Config& config) {
  Result<void> done = check_listeners_tls(config.api);
  if (done) done = check_fleet_files(config.fleet);
  if (done) done = files.made("api.admin_key_file", config.api.admin_key_file);
  if (done) done = files.made_directory("api.admin_key_file", config.api.admin_key_file);
  if (done) done = check_admin_key(config.api.admin_key_file);
  for (const auto& [key, file] : log_files(config)) {
    if (done) done = files.made(key, file);
    if (done) done = files.directory(key, file);
  }
  if (!done) return done;
  for (std::size_t i = 0; i < config.api.listen.size(); ++i) {
    if (const auto* path = std::get_if<UnixPath>(&config.api.listen[i].address)) {
      files.runtime_directory(name_of_listener(config.api, i), path->path);
    }
  }
  if (!config.metrics.listen) return {};
  if (const auto* path = std::get_if<UnixPath>(&*config.metrics.listen)) {
    files.runtime_directory("metrics.listen", path->path);
  }
  return {};
}

}  // namespace

Result<std::vector<std::string>> check_config_files(const Config& config) {
  Files files;
  Result<void> done = files.made("store.path", config.store.path);
  if (done) done = files.made_directory("store.path", config.store.path);
  if (done) done = check_shared_files(files, config);
  if (!done) return done.error();
  return std::move(files.warnings);
}

Result<std::vector<std::string>> check_gateway_files(const Config& config) {
  Files files;
  Result<void> done = check_shared_files(files, config);
  const Config::Gateway& gateway = config.gateway;
  if (done && !gateway.node_tls_certificate.empty()) {
    done = check_tls_files({.certificate = gateway.node_tls_certificate,
                            .private_key = gateway.node_tls_private_key,
                            .key_prefix = "gateway.node_"});
  }
  if (!done) return done.error();
  return std::move(files.warnings);
}

}  // namespace portway
