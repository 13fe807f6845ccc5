// What an Etcd and its watches share: the endpoints and which of them works, the user's token, the cluster's
// id, idle connections. Not for use by others; see etcd.h.
//
// Runs on its executor, which is single-threaded. Kept alive by what is under way.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/forward.h"
#include "fleet/etcd_json.h"
#include "fleet/etcd_options.h"
#include "fleet/etcd_values.h"
#include "fleet/http_connection.h"

namespace portway {

/// A request with one answer.
struct EtcdCall {
  std::string_view path;
  std::string body;
  bool repeatable = false;  // carried out twice it is as good as once
  // etcd refuses the request, or ends its stream, while the member knows of no leader.
  bool needs_leader = true;
};

/// The request that it is over HTTP. `token`: empty: none is sent.
HttpRequest http_request_of(const EtcdCall& call, const std::string& token);

/// What an error of the connection is to a caller of etcd. A request that was sent may have been carried out.
EtcdError etcd_error_of(const HttpError& error);

class EtcdCore : public std::enable_shared_from_this<EtcdCore> {
 public:
  using Clock = std::chrono::steady_clock;
  template <class Value>
  using Awaitable = boost::asio::awaitable<EtcdResult<Value>>;

  EtcdCore(boost::asio::any_io_executor executor, EtcdOptions options, std::vector<HttpEndpoint> endpoints);

  /// The body of the answer with status 200. Carries out the rules of etcd.h about endpoints, deadlines and
  /// tokens.
  Awaitable<std::string> call(EtcdCall call);

  /// The user's token; empty if there is no user, or etcd has its users switched off.
  Awaitable<std::string> token(Clock::time_point deadline);
  /// If it is still that one, the next token() fetches another.
  void forget_token(std::string_view token);

  /// kWrongCluster if the answer is from another cluster than those before.
  EtcdResult<void> check_cluster(const EtcdHeader& header);

  /// What close() calls while the object lives.
  class Closing {
   public:
    Closing(EtcdCore& core, std::function<void()> close);
    ~Closing();
    Closing(const Closing&) = delete;
    Closing& operator=(const Closing&) = delete;

   private:
    const std::shared_ptr<EtcdCore> core_;
    const std::list<std::function<void()>>::iterator place_;
  };

  /// Etcd::time().
  std::optional<Timestamp> time() const;

  /// Ends what is under way with kClosed.
  void close();
  bool is_closed() const { return is_closed_; }

  const boost::asio::any_io_executor& executor() const { return executor_; }
  const EtcdOptions& options() const { return options_; }
  const HttpTls& tls() const { return tls_; }
  const std::vector<HttpEndpoint>& endpoints() const { return endpoints_; }
  std::uint64_t cluster_id() const { return cluster_id_; }

  /// The index of the endpoint to begin with, and what others should know of one.
  std::size_t preferred() const { return preferred_; }
  void note_success(std::size_t index) { preferred_ = index; }
  void note_failure(std::size_t index);

 private:
  using Connection = std::shared_ptr<HttpConnection>;
  using Attempt = EtcdAttempt<std::string>;
  struct Deadlines {
    Clock::time_point connect;
    Clock::time_point answer;
  };

  boost::asio::awaitable<Attempt> try_endpoints(const EtcdCall& call, std::string token,
                                                Clock::time_point deadline);
  boost::asio::awaitable<Attempt> try_endpoint(const EtcdCall& call, std::string token, std::size_t index,
                                               Deadlines deadlines);
  boost::asio::awaitable<Attempt> ask(const EtcdCall& call, std::string token, std::size_t index,
                                      Connection connection, Deadlines deadlines);
  Deadlines deadlines_for(const EtcdCall& call, int endpoints_left, Clock::time_point deadline) const;
  Connection take_idle(std::size_t index);
  void keep_idle(std::size_t index, Connection connection);
  void note_date(std::string_view date);
  EtcdError closed() const;

  const boost::asio::any_io_executor executor_;
  const EtcdOptions options_;
  const HttpTls tls_;
  const std::vector<HttpEndpoint> endpoints_;
  std::size_t preferred_ = 0;
  std::uint64_t cluster_id_;                              // 0: none is known yet
  std::optional<std::string> token_;                      // nullopt: to be fetched
  bool fetching_token_ = false;                           // somebody does
  boost::asio::steady_timer token_fetched_;               // cancelled when that has ended
  std::vector<std::pair<std::size_t, Connection>> idle_;  // with the endpoint's index; oldest first
  // By the last answer that had a date: it, and when it came.
  std::optional<std::pair<Timestamp, Clock::time_point>> date_;
  std::list<std::function<void()>> on_close_;
  bool is_closed_ = false;
};

}  // namespace portway
