// The REST API: from a request to its answer. An endpoint is a line in the table of routes and a function.
//
// Belongs to the control thread.
#pragma once

#include <functional>
#include <string>

#include "api/control.h"
#include "api/message.h"
#include "api/router.h"
#include "metrics/api_stats.h"

namespace portway {

class Api {
 public:
  /// All must outlive it. `metrics` gives the text of a scrape.
  Api(Control& control, Dataplane& dataplane, ApiStats& stats, std::function<Response()> metrics);

  /// Never throws but for want of memory.
  Response handle(const Request& request);
  /// The same for the metrics' own listener, which asks for no key and has nothing else but /healthz.
  Response handle_open_metrics(const Request& request);

  const std::vector<Route>& routes() const { return router_.routes(); }

 private:
  std::vector<Route> make_routes();
  Response answer(const Request& request, std::string_view& pattern);
  Result<Response> dispatch(const Request& request, const Route& route, std::vector<std::string> path);

  Result<Response> create_forward(const Call& call);
  Result<Response> list_forwards(const Call& call);
  Result<Response> get_forward(const Call& call);
  Result<Response> delete_forward(const Call& call);

  Result<Response> put_instance(const Call& call);
  Result<Response> list_instances(const Call& call);
  Result<Response> get_instance(const Call& call);
  Result<Response> stop_instance(const Call& call);
  Result<Response> delete_instance(const Call& call);

  Result<Response> create_key(const Call& call);
  Result<Response> list_keys(const Call& call);
  Result<Response> delete_key(const Call& call);

  Result<Response> list_profiles(const Call& call);
  Result<Response> info(const Call& call);
  Result<Response> ready(const Call& call);

  Response one_forward(unsigned status, const ForwardStatus& forward) const;
  boost::json::object instance_json(const Instance& instance) const;

  Control& control_;
  Dataplane& dataplane_;
  ApiStats& stats_;
  const std::function<Response()> metrics_;
  const Router router_;
};

}  // namespace portway
