#include "control/wal_damage.h"

#include <endian.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "base/fd.h"

namespace portway {
namespace {

constexpr std::uint32_t kMagic = 0x377f0682;  // its last bit: checksums are of big-endian words
constexpr std::uint32_t kWalVersion = 3'007'000;
constexpr std::size_t kHeaderSize = 32;
constexpr std::size_t kFrameHeaderSize = 24;
constexpr std::uint32_t kPageMin = 512;
constexpr std::uint32_t kPageMax = 65'536;

using Pair = std::array<std::uint32_t, 2>;
using Bytes = std::span<const std::uint8_t>;

std::uint32_t big_endian(Bytes bytes, std::size_t at) {
  std::uint32_t value = 0;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return be32toh(value);
}

std::uint32_t native(Bytes bytes, std::size_t at) {
  std::uint32_t value = 0;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

enum class Words : bool { kLittleEndian, kBigEndian };
constexpr Words kNative = __BYTE_ORDER == __BIG_ENDIAN ? Words::kBigEndian : Words::kLittleEndian;

/// Continues a checksum by a multiple of eight bytes.
Pair checksum(Words words, Bytes bytes, Pair sum) {
  const auto word = [&](std::size_t at) {
    const std::uint32_t value = native(bytes, at);
    return words == Words::kBigEndian ? be32toh(value) : le32toh(value);
  };
  for (std::size_t at = 0; at + 8 <= bytes.size(); at += 8) {
    sum[0] += word(at) + sum[1];
    sum[1] += word(at + 4) + sum[0];
  }
  return sum;
}

/// Fewer at the file's end.
Bytes read_at(const Fd& file, std::uint64_t offset, std::span<std::uint8_t> buffer) {
  std::size_t have = 0;
  while (have < buffer.size()) {
    const ssize_t got =
        ::pread(file.get(), buffer.data() + have, buffer.size() - have, static_cast<off_t>(offset + have));
    if (got <= 0) break;
    have += static_cast<std::size_t>(got);
  }
  return buffer.first(have);
}

/// What the index says, as the last process left it.
struct Index {
  std::uint32_t frames = 0;      // committed
  std::uint32_t backfilled = 0;  // of which so many are in the database too
  Pair salts{};
};

std::optional<Index> read_index(const std::string& path) {
  const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::array<std::uint8_t, 100> buffer{};  // the header twice, and the number of frames that were copied back
  const Bytes bytes = read_at(file, 0, buffer);
  if (bytes.size() < buffer.size()) return std::nullopt;
  const Bytes header = bytes.first(48);
  if (std::memcmp(header.data(), bytes.data() + 48, 48) != 0) return std::nullopt;
  if (native(header, 0) != kWalVersion || header[12] == 0) return std::nullopt;
  if (checksum(kNative, header.first(40), {}) != Pair{native(header, 40), native(header, 44)})
    return std::nullopt;
  return Index{.frames = native(header, 16),
               .backfilled = native(bytes, 96),
               .salts = {big_endian(header, 32), big_endian(header, 36)}};
}

struct Header {
  std::uint32_t page_size = 0;
  Words words = kNative;
  Pair salts{};
  Pair sum{};
};

std::optional<Header> read_header(Bytes bytes) {
  if (bytes.size() < kHeaderSize) return std::nullopt;
  const std::uint32_t magic = big_endian(bytes, 0);
  const Header header{.page_size = big_endian(bytes, 8),
                      .words = (magic & 1) != 0 ? Words::kBigEndian : Words::kLittleEndian,
                      .salts = {big_endian(bytes, 16), big_endian(bytes, 20)},
                      .sum = {big_endian(bytes, 24), big_endian(bytes, 28)}};
  if ((magic & ~1U) != kMagic || big_endian(bytes, 4) != kWalVersion) return std::nullopt;
  if (header.page_size < kPageMin || header.page_size > kPageMax) return std::nullopt;
  if (checksum(header.words, bytes.first(24), {}) != header.sum) return std::nullopt;
  return header;
}

/// What a look through all frames has found.
struct Frames {
  std::uint32_t good = 0;          // that recovery takes: up to the last commit before the first bad one
  bool goes_on_after_bad = false;  // a transaction follows a complete one, and recovery finds neither
};

Frames read_frames(const Fd& file, const Header& header) {
  std::vector<std::uint8_t> buffer(kFrameHeaderSize + header.page_size);
  Frames frames;
  bool all_good = true;
  bool before_commits = false;  // the frame before this one ends a transaction of this log, after a bad frame
  Pair before = header.sum;
  for (std::uint32_t number = 1;; ++number) {
    const Bytes frame = read_at(file, kHeaderSize + std::uint64_t{number - 1} * buffer.size(), buffer);
    if (frame.size() < buffer.size()) return frames;
    const bool of_this_log = Pair{big_endian(frame, 8), big_endian(frame, 12)} == header.salts;
    const bool commits = big_endian(frame, 4) != 0;
    const Pair sum = {big_endian(frame, 16), big_endian(frame, 20)};
    Pair expected = checksum(header.words, frame.first(8), before);
    expected = checksum(header.words, frame.subspan(kFrameHeaderSize), expected);
    const bool continues = of_this_log && sum == expected;
    all_good = all_good && continues;
    if (all_good && commits) frames.good = number;
    if (continues && before_commits) frames.goes_on_after_bad = true;
    before_commits = !all_good && of_this_log && commits;
    before = sum;
  }
}

std::string lost(const std::string& what) {
  return fmt::format(
      "{} What was acknowledged since is lost: instances, port forwards and keys may be missing or be back. "
      "Look at the "
      "disk, and compare with what the orchestrator knows, or restore a backup",
      what);
}

}  // namespace

std::string wal_damage(const std::string& path) {
  const std::optional<Index> index = read_index(path + "-shm");
  const bool all_copied = index && index->frames <= index->backfilled;
  if (all_copied) return "";  // into the database
  const std::string name = path + "-wal";
  const Fd file(::open(name.c_str(), O_RDONLY | O_CLOEXEC));
  std::vector<std::uint8_t> first(kHeaderSize + kFrameHeaderSize + kPageMin);
  const Bytes bytes = read_at(file, 0, first);
  if (bytes.size() < kHeaderSize) {  // none, or one that nothing was written to
    return index
               ? lost(fmt::format("{} is missing or empty, and {} of its pages were not in the database yet.",
                                  name, index->frames - index->backfilled))
               : "";
  }
  const std::optional<Header> header = read_header(bytes);
  if (!header) {
    // It is on disk before the first frame.
    return bytes.size() < first.size() ? "" : lost(fmt::format("The header of {} is damaged.", name));
  }
  const Frames frames = read_frames(file, *header);
  const bool of_this_log = index && index->salts == header->salts;
  if (of_this_log && index->frames > frames.good && index->frames > index->backfilled) {
    return lost(fmt::format("{} is damaged: it had {} pages, and is good up to page {}.", name, index->frames,
                            frames.good));
  }
  if (frames.goes_on_after_bad) {
    return lost(
        fmt::format("{} is damaged: it is good up to page {}, and continues after that.", name, frames.good));
  }
  return "";
}

}  // namespace portway
