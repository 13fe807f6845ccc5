#include "fleet/etcd.h"

#include <utility>

#include "fleet/etcd_core.h"
#include "fleet/etcd_json.h"

namespace portway {
namespace {

namespace asio = boost::asio;

/// The error of a parser's result, whichever kind of parser.
const EtcdError& error_in(const EtcdError& error) {
  return error;
}
const EtcdError& error_in(const EtcdFailure& failure) {
  return failure.error;
}

/// A call and its answer. A function of its own, not a member of Etcd: it outlives that.
template <class Answer, class Parse>
asio::awaitable<EtcdResult<Answer>> ask_etcd(std::shared_ptr<EtcdCore> core, EtcdCall call, Parse parse) {
  const auto body = co_await core->call(std::move(call));
  if (!body) co_return body.error();
  auto answer = parse(*body);
  if (!answer) co_return error_in(answer.error());
  if (const auto same = core->check_cluster(answer->header); !same) co_return same.error();
  co_return std::move(*answer);
}

}  // namespace

Result<std::unique_ptr<Etcd>> Etcd::create(const asio::any_io_executor& executor, EtcdOptions options) {
  auto endpoints = check_etcd_options(options);
  if (!endpoints) return endpoints.error();
  return std::unique_ptr<Etcd>(
      new Etcd(std::make_shared<EtcdCore>(executor, std::move(options), std::move(*endpoints))));
}

Etcd::~Etcd() {
  core_->close();
}

std::optional<Timestamp> Etcd::time() const {
  return core_->time();
}

std::uint64_t Etcd::cluster_id() const {
  return core_->cluster_id();
}

Etcd::Awaitable<EtcdRangeAnswer> Etcd::range(const EtcdRange& range) {
  return ask_etcd<EtcdRangeAnswer>(
      core_, {.path = "/v3/kv/range", .body = etcd_json(range), .repeatable = true}, parse_etcd_range);
}

Etcd::Awaitable<EtcdPutAnswer> Etcd::put(const EtcdPut& put) {
  return ask_etcd<EtcdPutAnswer>(core_, {.path = "/v3/kv/put", .body = etcd_json(put)}, parse_etcd_put);
}

Etcd::Awaitable<EtcdDeleteAnswer> Etcd::erase(const EtcdDelete& erase) {
  return ask_etcd<EtcdDeleteAnswer>(core_, {.path = "/v3/kv/deleterange", .body = etcd_json(erase)},
                                    parse_etcd_delete);
}

Etcd::Awaitable<EtcdTxnAnswer> Etcd::txn(EtcdTxn txn) {
  EtcdCall call{.path = "/v3/kv/txn", .body = etcd_json(txn)};
  return ask_etcd<EtcdTxnAnswer>(core_, std::move(call), [txn = std::move(txn)](std::string_view body) {
    return parse_etcd_txn(txn, body);
  });
}

Etcd::Awaitable<EtcdLeaseAnswer> Etcd::grant(std::chrono::seconds ttl) {
  return ask_etcd<EtcdLeaseAnswer>(core_, {.path = "/v3/lease/grant", .body = etcd_grant_json(ttl)},
                                   parse_etcd_grant);
}

Etcd::Awaitable<EtcdLeaseAnswer> Etcd::keep_alive(EtcdLease lease) {
  return ask_etcd<EtcdLeaseAnswer>(
      core_, {.path = "/v3/lease/keepalive", .body = etcd_lease_json(lease), .repeatable = true},
      parse_etcd_keep_alive);
}

Etcd::Awaitable<EtcdRevokeAnswer> Etcd::revoke(EtcdLease lease) {
  return ask_etcd<EtcdRevokeAnswer>(core_, {.path = "/v3/lease/revoke", .body = etcd_lease_json(lease)},
                                    parse_etcd_revoke);
}

Etcd::Awaitable<EtcdStatusAnswer> Etcd::status() {
  return ask_etcd<EtcdStatusAnswer>(
      core_, {.path = "/v3/maintenance/status", .body = "{}", .repeatable = true, .needs_leader = false},
      parse_etcd_status);
}

std::unique_ptr<EtcdWatch> Etcd::watch(EtcdWatchRequest request) {
  return EtcdWatch::make(core_, std::move(request));
}

}  // namespace portway
