#include "api/http/gzip.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <utility>

namespace portway {
namespace {

// Lines that repeat each other are close together: zlib's defaults (256 KiB) would make them no smaller.
constexpr int kGzipWindow = 12 + 16;  // 4 KiB; + 16: a gzip header instead of zlib's
constexpr int kMemoryLevel = 5;
constexpr std::size_t kRoom = 4096;

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

struct Gzip::State {
  z_stream stream{};
  bool ended = false;
};

std::unique_ptr<Gzip> Gzip::start() {
  auto state = std::make_unique<State>();
  if (::deflateInit2(&state->stream, Z_BEST_SPEED, Z_DEFLATED, kGzipWindow, kMemoryLevel,
                     Z_DEFAULT_STRATEGY) != Z_OK) {
    return nullptr;
  }
  return std::unique_ptr<Gzip>(new Gzip(std::move(state)));
}

Gzip::Gzip(std::unique_ptr<State> state) : state_(std::move(state)) {}

Gzip::~Gzip() {
  ::deflateEnd(&state_->stream);
}

std::string Gzip::add(std::string_view piece) {
  std::string out;
  if (state_->ended) return out;
  z_stream& stream = state_->stream;
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(piece.data()));
  stream.avail_in = static_cast<uInt>(piece.size());
  const int flush = piece.empty() ? Z_FINISH : Z_NO_FLUSH;
  std::array<char, kRoom> room;
  do {
    stream.next_out = reinterpret_cast<Bytef*>(room.data());
    stream.avail_out = kRoom;
    state_->ended = ::deflate(&stream, flush) == Z_STREAM_END;
    out.append(room.data(), kRoom - stream.avail_out);
  } while (stream.avail_out == 0);
  return out;
}

}  // namespace portway
