// GET /usage: what the fleet's instances have carried. Only nodes know that: those are asked that have the
// instances of the page.

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/json.hpp>
#include <chrono>
#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/answers.h"
#include "api/instance_page.h"
#include "api/selector.h"
#include "base/into.h"
#include "fleet/fleet_keys.h"
#include "gateway/relay.h"
#include "gateway/resources.h"
#include "gateway/view_page.h"

namespace portway {
namespace {

using boost::asio::awaitable;

constexpr std::size_t kAskedAtOnce = 32;
constexpr std::size_t kAnswerMax = std::size_t{4} << 20;
constexpr std::chrono::seconds kAnswerWithin(5);  // one node that hangs does not hold up the page for longer
constexpr std::chrono::seconds kAllWithin(5);     // no further node is asked then

/// All questions of one call. Shared with the coroutines that ask.
struct UsageRound {
  UsageRound(const GatewayContext& of, const boost::asio::any_io_executor& executor)
      : gateway(of), done(executor, boost::asio::steady_timer::time_point::max()) {}

  const GatewayContext& gateway;
  NodeRequest request = {};
  std::size_t limit = 0;  // entries that a node is asked for
  std::vector<std::string> nodes = {};
  std::size_t next = 0;  // of `nodes`
  std::size_t asking = 0;
  const std::chrono::steady_clock::time_point until = std::chrono::steady_clock::now() + kAllWithin;
  std::map<std::string, boost::json::object> entries = {};  // by the instance
  boost::json::array unreachable = {};
  boost::asio::steady_timer done;  // cancelled when all have been asked
};

/// False: it is no page of usage.
bool take_usage(UsageRound& round, const std::string& node, const NodeAnswer& answer) {
  if (answer.status != 200 || answer.stream != nullptr) return false;
  boost::system::error_code error;
  auto body = boost::json::parse(answer.body, error);
  if (error || !body.is_object()) return false;
  auto* list = body.get_object().if_contains("usage");
  if (list == nullptr || !list->is_array() || list->get_array().size() > round.limit) return false;
  for (boost::json::value& each : list->get_array()) {
    const auto* id = each.is_object() ? each.get_object().if_contains("instance_id") : nullptr;
    if (id == nullptr || !id->is_string() || !is_fleet_id(id->get_string())) return false;
    std::string name(id->get_string());
    // A node that had it before may still know of it.
    const FleetViewInstance* instance = round.gateway.fleet.view().find_instance(name);
    if (instance != nullptr && instance->node != node) continue;
    each.get_object()["node"] = node;
    round.entries[std::move(name)] = std::move(each.get_object());
  }
  return true;
}

awaitable<void> ask_for_usage(std::shared_ptr<UsageRound> round) {
  while (round->next < round->nodes.size()) {
    const std::string node = round->nodes[round->next++];
    bool taken = false;
    const auto url = url_of_node(round->gateway, node);
    if (url && std::chrono::steady_clock::now() < round->until) {
      const auto answer = co_await round->gateway.nodes.send(*url, round->request);
      taken = answer && take_usage(*round, node, *answer);
    }
    if (!taken) round->unreachable.emplace_back(node);
  }
  if (--round->asking == 0) round->done.cancel();
}

awaitable<void> ask_all_for_usage(std::shared_ptr<UsageRound> round) {
  const auto executor = round->done.get_executor();
  round->asking = std::min(kAskedAtOnce, round->nodes.size());
  for (std::size_t i = 0, count = round->asking; i < count; ++i)
    boost::asio::co_spawn(executor, ask_for_usage(round), boost::asio::detached);
  while (round->asking > 0) {
    boost::system::error_code ignored;
    co_await round->done.async_wait(into(ignored));
  }
}

/// `last`: the page's last id, if there are more.
boost::json::object merged_usage(UsageRound& round, const std::optional<std::string>& last) {
  boost::json::object body;
  boost::json::array list;
  for (auto& [id, entry] : round.entries) {
    if (last && id > *last) break;
    if (list.size() == round.limit) {
      body["next_cursor"] = list.back().at("instance_id");
      break;
    }
    list.emplace_back(std::move(entry));
  }
  if (last && !body.contains("next_cursor")) body["next_cursor"] = *last;
  body["usage"] = std::move(list);
  if (!round.unreachable.empty()) {
    std::ranges::sort(round.unreachable, {},
                      [](const auto& each) { return std::string_view(each.get_string()); });
    body["unreachable_nodes"] = std::move(round.unreachable);
  }
  return body;
}

awaitable<Result<Response>> list_fleet_usage(const GatewayContext& gateway, const Call& call) {
  if (auto warm = check_warm(gateway); !warm) co_return warm.error();
  ViewPage page = page_of_view(gateway.fleet.view(), call);
  std::set<std::string> nodes;
  for (const FleetViewInstance* instance : page.instances) nodes.insert(instance->node);
  page.instances.clear();  // the view changes from here on
  const auto round = std::make_shared<UsageRound>(gateway, co_await boost::asio::this_coro::executor);
  round->nodes.assign(nodes.begin(), nodes.end());
  round->request = request_for_node(call, path_and_query(call.request.target));
  round->limit = call.query[kPageLimit];
  round->request.whole_max = kAnswerMax;
  round->request.answer_timeout = kAnswerWithin;
  co_await ask_all_for_usage(round);
  boost::json::object body = merged_usage(*round, page.next_cursor);
  mark_stale(gateway, body);
  co_return json_response(200, body);
}

}  // namespace

std::vector<GatewayRoute> fleet_usage_routes() {
  return {{"GET",
           "/usage",
           Access::kTenant,
           {kMetadata, kPageLimit, kInstanceCursor},
           list_fleet_usage,
           kHighCost}};
}

}  // namespace portway
