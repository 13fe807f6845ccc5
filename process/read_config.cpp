#include "process/read_config.h"

#include <fmt/format.h>
#include <unistd.h>

#include <fstream>
#include <string_view>
#include <utility>
#include <vector>

namespace portway {
namespace {

constexpr std::size_t kPasswordMax = 1024;

EtcdOptions etcd_options(const Config::Fleet& fleet, std::string password) {
  return {.endpoints = fleet.etcd,
          .tls_ca = fleet.etcd_tls_ca,
          .tls_certificate = fleet.etcd_tls_certificate,
          .tls_private_key = fleet.etcd_tls_private_key,
          .user = fleet.etcd_user,
          .password = std::move(password),
          .endpoints_key = "fleet.etcd",
          .key_prefix = "fleet.etcd_"};
}

/// The first line of the file.
Result<std::string> read_password(const std::string& path) {
  if (path.empty()) return std::string();
  const auto wrong = [&](std::string_view why) {
    return Error{ErrorCode::kInvalidConfig, fmt::format("fleet.etcd_password_file: {}: {}", path, why),
                 "fleet.etcd_password_file"};
  };
  std::ifstream file(path);
  std::string password;
  if (!file || !std::getline(file, password)) {
    return wrong("it cannot be read, or is empty; put the password there, readable by this user");
  }
  if (password.empty() || password.size() > kPasswordMax)
    return wrong("its first line must have 1-1024 bytes");
  return password;
}

Result<void> check_etcd(const Config::Fleet& fleet) {
  if (fleet.etcd.empty()) return {};
  const std::string some_password = fleet.etcd_user.empty() ? "" : "*";
  if (auto checked = check_etcd_options(etcd_options(fleet, some_password)); !checked) return checked.error();
  return {};
}

}  // namespace

Result<Config> read_config(const std::string& path, std::span<const std::string> settings) {
  std::vector<Override> overrides = environment_overrides(::environ);
  for (const std::string& setting : settings) {
    auto parsed = parse_override(setting);
    if (!parsed) return parsed.error();
    overrides.push_back(std::move(*parsed));
  }
  auto config = path.empty() ? parse_config("", "defaults", overrides) : load_config(path, overrides);
  if (!config) return config;
  if (auto checked = check_etcd(config->fleet); !checked) return checked.error();
  return config;
}

Result<EtcdOptions> read_etcd_options(const Config::Fleet& fleet) {
  auto password = read_password(fleet.etcd_password_file);
  if (!password) return password.error();
  return etcd_options(fleet, std::move(*password));
}

}  // namespace portway
