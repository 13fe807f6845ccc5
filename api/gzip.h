// gzip (RFC 1952) for answers that are large and repeat themselves. Any thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace portway {

/// Whether an Accept-Encoding header (RFC 9110, 12.5.3) takes gzip: named, or by "*", and not with q=0.
bool accepts_gzip(std::string_view accept_encoding);

/// At zlib's fastest level: the caller's thread waits for it. nullopt when memory runs out.
std::optional<std::string> gzip(std::string_view text);

}  // namespace portway
