#include "gateway/view_page.h"

#include <cstddef>
#include <string_view>

#include "api/instance_page.h"
#include "api/selector.h"

namespace portway {

ViewPage page_of_view(const FleetView& view, const Call& call,
                      const std::function<bool(const FleetViewInstance&)>& admits) {
  constexpr std::size_t kLookedAt = 256;  // at a time
  const std::size_t limit = call.query[kPageLimit];
  const Selector selector = call.query[kMetadata];
  const auto owner =
      call.caller.role == Role::kAdmin ? std::nullopt : std::optional<std::string_view>(call.caller.owner);
  std::string after = call.query[kInstanceCursor];
  ViewPage page;
  for (bool more = true; more;) {
    const auto found = view.instances(owner, after, kLookedAt);
    more = found.size() == kLookedAt;
    for (const FleetViewInstance* instance : found) {
      after = instance->id;
      if (!call.caller.sees(instance->owner, instance->id) || !selector.admits(instance->metadata)) continue;
      if (admits && !admits(*instance)) continue;
      if (page.instances.size() == limit) {
        page.next_cursor = page.instances.back()->id;
        return page;
      }
      page.instances.push_back(instance);
    }
  }
  return page;
}

}  // namespace portway
