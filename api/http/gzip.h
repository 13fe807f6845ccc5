// gzip (RFC 1952) for answers that are large and repeat themselves. Any thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace portway {

/// Whether an Accept-Encoding header (RFC 9110, 12.5.3) takes gzip: named, or by "*", and not with q=0.
bool accepts_gzip(std::string_view accept_encoding);

/// A text that comes piece by piece. At zlib's fastest level, in 32 KiB of memory: many readers may each have
/// one for as long as they take to read.
class Gzip {
 public:
  /// nullptr when memory runs out.
  static std::unique_ptr<Gzip> start();
  ~Gzip();
  Gzip(const Gzip&) = delete;
  Gzip& operator=(const Gzip&) = delete;

  /// What there is to send for the next piece; it may be nothing. An empty piece is the end.
  std::string add(std::string_view piece);

 private:
  struct State;
  explicit Gzip(std::unique_ptr<State> state);
  const std::unique_ptr<State> state_;
};

}  // namespace portway
