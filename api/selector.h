// What lists and bulk deletions select by. "metadata" of a query: "env=dev,team" admits what has the entry
// env with the value dev, and an entry team with any value. A value with a comma cannot be named.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/query.h"
#include "base/forward.h"
#include "base/metadata.h"

namespace portway {

class Selector {
 public:
  /// nullopt if it is empty, or an entry has no key.
  static std::optional<Selector> parse(std::string_view text);

  /// Everything, if it was not given.
  bool admits(const Metadata& metadata) const;

 private:
  std::vector<std::pair<std::string, std::optional<std::string>>> entries_;
};

extern const Parameter<Selector> kMetadata;
extern const Parameter<std::optional<std::string>> kLabel;

/// Which forwards a query selects by kLabel and kMetadata.
std::function<bool(const Forward&)> selected_by(const Query& query);

}  // namespace portway
