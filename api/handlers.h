// The REST API: from a request to its answer. An endpoint is a line in the table of routes and a function.
//
// Belongs to the control thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/json/object.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "api/http/failure_log.h"
#include "api/http/message.h"
#include "api/router.h"
#include "control/api_stats.h"
#include "control/control.h"
#include "control/recent_closes.h"
#include "control/streams.h"
#include "metrics/exporter.h"

namespace portway {

class Api {
 public:
  /// The pieces of a scrape's text (Exporter::scrape).
  using Metrics = std::function<NextPiece(MetricsScope)>;

  /// What it answers from; all of it must outlive it.
  struct Parts {
    boost::asio::io_context& context;
    Control& control;
    Dataplane& dataplane;
    ApiStats& stats;
    const RecentCloses& closes;
  };
  Api(const Parts& parts, Metrics metrics);

  /// Never throws but for want of memory.
  Response handle(const Request& request);
  /// The same for the metrics' own listener, which asks for no key and has nothing else but /healthz.
  Response handle_open_metrics(const Request& request);

  const std::vector<Route>& routes() const { return router_.routes(); }

 private:
  std::vector<Route> make_routes();
  Response answer(const Request& request, std::string_view& pattern);
  Response fail(const Request& request, std::string_view pattern, const Error& error);
  Result<Principal> authenticate(const Request& request);
  Result<Response> dispatch(const Request& request, const Route& route, std::vector<std::string> path);

  Result<Response> create_forward(const Call& call);
  Result<Response> create_forwards(const Call& call);
  Result<Response> create(const Call& call, std::span<const ForwardSpec> specs,
                          const std::function<Response(std::span<const ForwardStatus>)>& answer);
  Result<std::optional<IdempotentAnswer>> idempotent_request(const Call& call) const;
  Result<void> check_answer(const IdempotentAnswer& answer, const Instance& instance) const;
  Result<Response> update_forward(const Call& call);
  Result<Response> list_forwards(const Call& call);
  Result<Response> get_forward(const Call& call);
  Result<Response> delete_forward(const Call& call);

  Result<Response> list_connections(const Call& call);
  Result<Response> delete_connections(const Call& call);
  Result<Response> delete_connection(const Call& call);

  Result<Response> put_instance(const Call& call);
  Result<Response> list_instances(const Call& call);
  Result<Response> get_instance(const Call& call);
  Result<Response> one_instance(const Call& call) const;
  Result<Response> stop_instance(const Call& call);
  Result<Response> delete_instance(const Call& call);

  Result<Response> create_key(const Call& call);
  Result<Response> list_keys(const Call& call);
  Result<Response> delete_key(const Call& call);

  Result<std::shared_ptr<BodyStream>> open_stream(
      const StreamTerms& terms, const std::function<Result<std::shared_ptr<BodyStream>>()>& make);
  Result<Response> recent_connections(const Call& call);
  Result<Response> check(const Call& call);
  Result<Response> capture(const Call& call);

  Result<Response> list_profiles(const Call& call);
  Result<Response> follow_events(const Call& call);
  Result<Response> info(const Call& call);
  Result<Response> ready(const Call& call);
  Result<Response> metrics(const Call& call);

  Response one_forward(unsigned status, const ForwardStatus& forward) const;
  boost::json::object instance_json(const Instance& instance) const;

  boost::asio::io_context& context_;
  Control& control_;
  Dataplane& dataplane_;
  ApiStats& stats_;
  const RecentCloses& closes_;
  const Metrics metrics_;
  FailureLog failures_;
  const Router router_;
};

}  // namespace portway
