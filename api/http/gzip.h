// gzip (RFC 1952) for large, repetitive answers. Any thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace portway {

/// Whether an Accept-Encoding header (RFC 9110, 12.5.3) accepts gzip: by name or by "*", and not with q=0.
bool accepts_gzip(std::string_view accept_encoding);

/// Compresses a text piece by piece, at zlib's fastest level and in 32 KiB of memory: many slow readers may
/// each hold one.
class Gzip {
 public:
  /// Null if there is no memory.
  static std::unique_ptr<Gzip> start();
  ~Gzip();
  Gzip(const Gzip&) = delete;
  Gzip& operator=(const Gzip&) = delete;

  /// The bytes to send after the next piece; may be none. An empty piece ends the text.
  std::string add(std::string_view piece);

 private:
  struct State;
  explicit Gzip(std::unique_ptr<State> state);
  const std::unique_ptr<State> state_;
};

}  // namespace portway
