#include "api/selector.h"

#include <algorithm>

namespace portway {

std::optional<Selector> Selector::parse(std::string_view text) {
  Selector selector;
  for (bool last = false; !last;) {
    const std::size_t comma = text.find(',');
    last = comma == std::string_view::npos;
    const std::string_view entry = text.substr(0, comma);
    text.remove_prefix(last ? text.size() : comma + 1);
    const std::size_t equals = entry.find('=');
    const std::string_view key = entry.substr(0, equals);
    if (key.empty()) return std::nullopt;
    auto& [name, value] = selector.entries_.emplace_back(key, std::nullopt);
    if (equals != std::string_view::npos) value = entry.substr(equals + 1);
  }
  return selector;
}

bool Selector::admits(const Metadata& metadata) const {
  return std::ranges::all_of(entries_, [&](const auto& entry) {
    const auto found = metadata.find(entry.first);
    return found != metadata.end() && (!entry.second || *entry.second == found->second);
  });
}

const Parameter<Selector> kMetadata{.name = "metadata",
                                    .fallback = {},
                                    .parse = Selector::parse,
                                    .rule = "must be KEY=VALUE or KEY, several with commas between them."};
const Parameter<std::optional<std::string>> kLabel = text_parameter("label");

std::function<bool(const Forward&)> selected_by(const Query& query) {
  return [label = query[kLabel], selector = query[kMetadata]](const Forward& forward) {
    return (!label || *label == forward.label) && selector.admits(forward.metadata);
  };
}

}  // namespace portway
