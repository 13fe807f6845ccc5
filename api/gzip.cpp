#include "api/gzip.h"

#include <zlib.h>

#include <algorithm>
#include <cctype>

namespace portway {
namespace {

constexpr int kGzipWindow = 15 + 16;  // 32 KiB, the most there is; + 16: a gzip header instead of zlib's
constexpr int kMemoryLevel = 8;       // zlib's default: 256 KiB in all

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

/// What stands before the next `separator`; `text` becomes what stands behind it.
std::string_view take(std::string_view& text, char separator) {
  const std::size_t end = std::min(text.find(separator), text.size());
  const std::string_view part = trimmed(text.substr(0, end));
  text.remove_prefix(std::min(end + 1, text.size()));
  return part;
}

bool same(std::string_view text, std::string_view lower_case) {
  return std::ranges::equal(text, lower_case,
                            [](unsigned char a, unsigned char b) { return std::tolower(a) == b; });
}

/// "q=0", "q=0.0", ...: not acceptable.
bool is_refusal(std::string_view parameters) {
  while (!parameters.empty()) {
    std::string_view parameter = take(parameters, ';');
    if (!same(take(parameter, '='), "q")) continue;
    return parameter.find_first_not_of("0. \t") == std::string_view::npos;
  }
  return false;
}

}  // namespace

bool accepts_gzip(std::string_view accept_encoding) {
  bool any = false;
  while (!accept_encoding.empty()) {
    std::string_view parameters = take(accept_encoding, ',');
    const std::string_view coding = take(parameters, ';');
    if (same(coding, "gzip") || same(coding, "x-gzip")) return !is_refusal(parameters);
    if (coding == "*") any = !is_refusal(parameters);
  }
  return any;
}

std::optional<std::string> gzip(std::string_view text) {
  z_stream stream{};
  if (::deflateInit2(&stream, Z_BEST_SPEED, Z_DEFLATED, kGzipWindow, kMemoryLevel, Z_DEFAULT_STRATEGY) !=
      Z_OK)
    return std::nullopt;
  // Metrics shrink to a seventh or less: what deflateBound() wants would be as large as the text.
  std::string out(text.size() / 6 + 4096, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  int result = Z_OK;
  for (std::size_t written = 0; result == Z_OK; written = stream.total_out) {
    if (written == out.size()) out.resize(2 * out.size());
    stream.next_out = reinterpret_cast<Bytef*>(out.data() + written);
    stream.avail_out = static_cast<uInt>(out.size() - written);
    result = ::deflate(&stream, Z_FINISH);
  }
  out.resize(stream.total_out);
  ::deflateEnd(&stream);
  if (result != Z_STREAM_END) return std::nullopt;
  return out;
}

}  // namespace portway
