// Where a server listens: a TCP address, or a Unix socket in the file system.
#pragma once

#include <string>
#include <string_view>
#include <variant>

#include "base/endpoint.h"
#include "base/error.h"

namespace portway {

/// The path of a Unix stream socket: absolute, of at most 107 bytes (unix(7): sun_path with its zero).
struct UnixPath {
  std::string path;

  friend bool operator==(const UnixPath&, const UnixPath&) = default;
};

using ListenAddress = std::variant<Endpoint, UnixPath>;

/// "127.0.0.1:8080", "[::1]:8080" or "unix:/run/portway/api.sock". kInvalidAddress or kInvalidPort with a
/// detail that quotes the text. Abstract sockets ("unix:@name") are refused: they have no owner and no
/// mode, so anybody in the network namespace could connect.
Result<ListenAddress> parse_listen_address(std::string_view text);

/// The text that parse_listen_address() takes.
std::string to_string(const ListenAddress& address);

}  // namespace portway
