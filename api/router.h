// Which handler answers a request: a table of methods and path patterns.
//
// Belongs to the control thread.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "api/http/message.h"
#include "api/query.h"
#include "base/error.h"
#include "control/auth.h"

namespace portway {

/// Whose key a route requires. Of any but the last two, a key of scope read may call those of method GET, and
/// one of scope metrics none.
enum class Access : std::uint8_t {
  kPublic,   // none
  kTenant,   // anybody's
  kAdmin,    // an admin's
  kMetrics,  // an admin's, of any scope
  kAnyKey,   // anybody's, of any scope
};

/// What a handler gets.
struct Call {
  const Request& request;
  Principal caller;               // meaningless if the access is kPublic
  std::vector<std::string> path;  // the segment for each {} of the pattern, decoded
  Query query;                    // what the route's parameters accept
};

/// All keys of one role and owner as one name: they share idempotency keys and memory for answers.
std::string account_of(const Principal& caller);

/// Answers from memory, at once.
using ReadHandler = std::function<Result<Response>(const Call& call)>;
/// Waits for something (the disk, control/change.h). `call` lives until it is done.
using ChangeHandler = std::function<boost::asio::awaitable<Result<Response>>(const Call& call)>;

struct Route {
  std::string method;
  std::string pattern;  // "/instances/{id}"; {} stands for one segment
  Access access;
  QueryParameters query;
  std::variant<ReadHandler, ChangeHandler> handle;
  std::uint32_t cost = 0;  // 0: as its kind, see cost_of()
};

/// A line of a resource's table: a route whose handler is a function that also gets what it answers from.
template <class Context>
struct RouteOf {
  using Read = Result<Response> (*)(Context& context, const Call& call);
  using Change = boost::asio::awaitable<Result<Response>> (*)(Context& context, const Call& call);

  std::string_view method;
  std::string_view pattern;
  Access access;
  QueryParameters query;
  std::variant<Read, Change> handle;
  std::uint32_t cost = 0;
};

/// Adds the routes of a table. `context` outlives them.
template <class Context>
void add_routes(std::vector<Route>& routes, Context& context, const std::vector<RouteOf<Context>>& table) {
  for (const RouteOf<Context>& line : table) {
    Route route{std::string(line.method), std::string(line.pattern), line.access, line.query, {}, line.cost};
    std::visit(
        [&](auto handle) {
          route.handle = [&context, handle](const Call& call) { return handle(context, call); };
        },
        line.handle);
    routes.push_back(std::move(route));
  }
}

/// A route without its handler.
struct RouteLine {
  std::string_view method;
  std::string_view pattern;
  Access access;
  QueryParameters query;
  std::uint32_t cost = 0;
};
template <class Context>
void add_lines(std::vector<RouteLine>& lines, const std::vector<RouteOf<Context>>& table) {
  for (const RouteOf<Context>& line : table)
    lines.push_back({line.method, line.pattern, line.access, line.query, line.cost});
}

/// Of a route that is much work for one request: it probes the guest, is a stream, or creates many things.
inline constexpr std::uint32_t kHighCost = 20;
/// What a request costs its caller (api/fair_use.h): the route's own cost, or 1 for reading one thing, 5 for
/// a list and for a change.
std::uint32_t cost_of(const Route& route);

/// kForbidden if the caller's role or the scope of its key does not permit the call. `route` is not public.
Result<void> check_access(const Route& route, const Principal& caller);

class Router {
 public:
  /// Patterns of the same length that match the same path must be the same: there is no order between them.
  explicit Router(std::vector<Route> routes);

  struct Match {
    /// Null: no route for this path, or (if `allowed` is not empty) not with this method.
    const Route* route = nullptr;
    std::vector<std::string> path;       // the segments for {}
    std::string allowed;                 // the path's methods, for Allow
    std::string_view pattern = "other";  // of the path, whatever the method: the label of its metrics
  };
  /// GET routes answer HEAD as well. `segments` are the decoded segments of the path. Every path may begin
  /// with the version of the API, "v1", although a pattern does not have it.
  Match find(std::string_view method, const std::vector<std::string>& segments) const;

  const std::vector<Route>& routes() const { return routes_; }

 private:
  Match find_exactly(std::string_view method, const std::vector<std::string>& segments) const;

  const std::vector<Route> routes_;
  std::vector<std::vector<std::string>> patterns_;  // routes_[i].pattern in segments
};

}  // namespace portway
