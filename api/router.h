// Which handler answers a request: a table of methods and path patterns.
//
// Belongs to the control thread.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "api/http/message.h"
#include "base/error.h"
#include "control/auth.h"

namespace portway {

/// Whose key a route asks for.
enum class Access : std::uint8_t {
  kPublic,  // none
  kTenant,  // any
  kAdmin,
};

/// What a handler gets.
struct Call {
  const Request& request;
  Principal caller;                                       // meaningless where the access is kPublic
  std::vector<std::string> path;                          // what stood for each {} of the pattern, decoded
  std::map<std::string, std::string, std::less<>> query;  // decoded; a name given twice is refused before
};

struct Route {
  std::string_view method;
  std::string_view pattern;  // "/instances/{id}"; {} stands for one segment
  Access access;
  std::function<Result<Response>(const Call&)> handle;
};

class Router {
 public:
  /// Patterns of the same length that match the same path must be the same: there is no order between them.
  explicit Router(std::vector<Route> routes);

  struct Match {
    const Route* route =
        nullptr;  // null: no route for this path, or (`allowed` not empty) not with this method
    std::vector<std::string> path;       // the decoded {} segments
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
