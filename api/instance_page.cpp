#include "api/instance_page.h"

#include <boost/json/array.hpp>
#include <cstddef>
#include <string_view>
#include <utility>

#include "api/selector.h"

namespace portway {

const Parameter<std::string> kInstanceCursor =
    cursor_parameter<std::string>([](std::string_view text) { return std::string(text); });

boost::json::object instance_page(const ApiContext& api, const Call& call, const std::string& name,
                                  const std::function<boost::json::object(const Instance&)>& entry) {
  const std::size_t limit = call.query[kPageLimit];
  const Selector selector = call.query[kMetadata];
  const auto admits = [&](const Instance& each) { return selector.admits(each.metadata); };
  const auto found = api.control.list_instances(call.caller, call.query[kInstanceCursor], limit + 1, admits);
  boost::json::array list;
  for (const Instance* instance : found) {
    if (list.size() < limit) list.push_back(entry(*instance));
  }
  boost::json::object page;
  if (found.size() > limit) page["next_cursor"] = found[limit - 1]->id;
  page[name] = std::move(list);
  return page;
}

}  // namespace portway
