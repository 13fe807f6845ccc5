// Which handler answers a request: a table of methods and path patterns.
//
// Belongs to the control thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "api/http/message.h"
#include "api/query.h"
#include "base/error.h"
#include "control/auth.h"

namespace portway {

struct ApiContext;

/// Whose key a route requires.
enum class Access : std::uint8_t {
  kPublic,  // none
  kTenant,  // anybody's
  kAdmin,
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

using Handler = Result<Response> (*)(const ApiContext& api, const Call& call);

struct Route {
  std::string_view method;
  std::string_view pattern;  // "/instances/{id}"; {} stands for one segment
  Access access;
  QueryParameters query;
  Handler handle;
};

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
  /// GET routes answer HEAD as well. `segments` are the decoded segments of the path.
  Match find(std::string_view method, const std::vector<std::string>& segments) const;

  const std::vector<Route>& routes() const { return routes_; }

 private:
  const std::vector<Route> routes_;
  std::vector<std::vector<std::string>> patterns_;  // routes_[i].pattern in segments
};

}  // namespace portway
