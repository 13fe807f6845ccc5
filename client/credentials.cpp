#include "client/credentials.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <system_error>

namespace portway {
namespace {

constexpr std::size_t kKeyMax = 4096;

std::string trimmed(const std::string& text) {
  constexpr const char* kBlanks = " \t\r\n";
  const std::size_t first = text.find_first_not_of(kBlanks);
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}

/// Whether the key can be sent in a header. Rejects text that cannot be a key, such as several lines.
bool looks_like_key(const std::string& key) {
  return !key.empty() && key.size() <= kKeyMax &&
         std::ranges::all_of(key, [](char c) { return c > ' ' && c <= '~'; });
}

Outcome<std::string> read_file(const std::string& path) {
  std::string text(kKeyMax + 1, '\0');
  std::ifstream file(path, std::ios::binary);
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.is_open() || file.bad()) {
    return Failure{Exit::kUsage,
                   path + ": the key cannot be read: " + std::system_category().message(errno) + ".",
                   "Give a readable file in --key-file or PORTWAY_API_KEY_FILE."};
  }
  text.resize(static_cast<std::size_t>(file.gcount()));
  return text;
}

std::string warning_about(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode) || (status.st_mode & 077) == 0) {
    return {};
  }
  return path + ": other users of this machine can access the key; chmod 600 " + path;
}

}  // namespace

Outcome<Credentials> read_credentials(const Arguments& arguments, const Environment& environment) {
  Credentials credentials;
  const std::string& path = arguments.text("--key-file");
  std::string origin = path;
  if (!path.empty()) {
    const auto text = read_file(path);
    if (!text) return text.error();
    credentials.key = trimmed(*text);
    credentials.warning = warning_about(path);
  } else if (const auto variable = environment.find("PORTWAY_API_KEY"); variable != environment.end()) {
    origin = variable->first;
    credentials.key = trimmed(variable->second);
    if (credentials.key.empty()) return credentials;
  } else {
    return credentials;
  }
  if (!looks_like_key(credentials.key)) {
    return Failure{Exit::kUsage, origin + ": this is not an API key.",
                   "Give one line of printable characters, as \"portway keys create\" prints it."};
  }
  return credentials;
}

}  // namespace portway
