// A page of the instances of the view that a caller sees, by id.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "api/router.h"
#include "fleet/fleet_view.h"

namespace portway {

struct ViewPage {
  std::vector<const FleetViewInstance*> instances = {};  // until the view changes
  std::optional<std::string> next_cursor = std::nullopt;
};

/// As the query's kMetadata, kPageLimit and kInstanceCursor ask for it; only those that `admits`, if given,
/// is true of.
ViewPage page_of_view(const FleetView& view, const Call& call,
                      const std::function<bool(const FleetViewInstance&)>& admits = nullptr);

}  // namespace portway
