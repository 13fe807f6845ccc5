#include "base/listen_address.h"

#include <sys/un.h>

namespace portway {
namespace {

constexpr std::string_view kUnixPrefix = "unix:";
constexpr std::size_t kPathMaxBytes = sizeof(sockaddr_un::sun_path) - 1;

Result<ListenAddress> parse_unix(std::string_view text, std::string_view path) {
  const auto wrong = [&](std::string_view why) {
    return Error{ErrorCode::kInvalidAddress, in_quotes(text) + std::string(why)};
  };
  if (path.starts_with('@') || path.starts_with('\0')) {
    return wrong(
        " is an abstract socket, which is not supported: it has no permissions; use a path, e.g. "
        "unix:/run/portway/api.sock");
  }
  if (!path.starts_with('/') || path.ends_with('/') || path.find('\0') != std::string_view::npos) {
    return wrong(" is no path of a socket; use an absolute one, e.g. unix:/run/portway/api.sock");
  }
  if (path.size() > kPathMaxBytes) {
    return wrong(" is too long; a socket's path has at most " + std::to_string(kPathMaxBytes) + " bytes");
  }
  return ListenAddress(UnixPath{std::string(path)});
}

}  // namespace

Result<ListenAddress> parse_listen_address(std::string_view text) {
  if (text.starts_with(kUnixPrefix)) return parse_unix(text, text.substr(kUnixPrefix.size()));
  const auto endpoint = parse_endpoint(text);
  if (!endpoint) return endpoint.error();
  return ListenAddress(*endpoint);
}

std::string to_string(const ListenAddress& address) {
  if (const auto* unix_path = std::get_if<UnixPath>(&address)) {
    return std::string(kUnixPrefix) + unix_path->path;
  }
  return to_string(std::get<Endpoint>(address));
}

}  // namespace portway
