// Words that a caller attaches to an instance or a forward, for itself: the node keeps them and shows them,
// and they do nothing else.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string>

namespace portway {

/// Keys and values; control/policy.h checks them (check_metadata).
using Metadata = std::map<std::string, std::string, std::less<>>;

/// What a merge patch (RFC 7396) does to it: an absent value removes the key.
using MetadataChange = std::map<std::string, std::optional<std::string>, std::less<>>;

inline constexpr std::size_t kMetadataMax = 32;        // entries
inline constexpr std::size_t kMetadataKeyMax = 63;     // bytes
inline constexpr std::size_t kMetadataValueMax = 256;  // bytes

inline void patch(Metadata& metadata, const MetadataChange& change) {
  for (const auto& [key, value] : change) {
    if (value) {
      metadata.insert_or_assign(key, *value);
    } else {
      metadata.erase(key);
    }
  }
}

/// What makes `wanted` of it.
inline MetadataChange difference(const Metadata& metadata, const Metadata& wanted) {
  MetadataChange change;
  for (const auto& [key, value] : metadata) {
    if (!wanted.contains(key)) change.emplace(key, std::nullopt);
  }
  for (const auto& [key, value] : wanted) {
    const auto known = metadata.find(key);
    if (known == metadata.end() || known->second != value) change.emplace(key, value);
  }
  return change;
}

}  // namespace portway
