// A client of etcd (3.4 or newer), by its gRPC gateway: JSON over HTTP, or HTTPS.
//
// **Calls.** Each is a coroutine that has an answer or an error by EtcdOptions::request_timeout. It begins
// with the endpoint that worked last. If that cannot be reached, is silent, has no leader or is overloaded,
// the next one is asked, each once:
//
// A call that changes nothing (range, status), and keep_alive, is repeated whatever went wrong with the
// endpoint. Any other is repeated only if it surely was not carried out. If it was sent and not answered, the
// error is kUnknownOutcome: read before you repeat it, or make it a transaction that can be repeated. A
// kBadAnswer, a kWrongCluster and a kTooLarge that is about the answer leave it open as well.
//
// **Users.** The token of the user is fetched with the first call, and again, once a call, if etcd does not
// accept it any more (it restarted, or the token is too old).
//
// **The cluster's id** is that of the options or else of the first answer. An answer from another one is an
// error, since its revisions mean something else. So an Etcd is for one cluster, ever.
//
// **Memory.** An answer has at most EtcdOptions::answer_max bytes of JSON, and a few times as much as values
// while it is read. Each call that is under way has an answer and a connection; the caller bounds their
// number. Up to four idle connections are kept.
//
// **GCC 12** destroys a braced temporary of a co_await expression wrongly. So inside of a coroutine give the
// request a name first, instead of `co_await etcd.put({.key = key})`.
//
// Everything runs on the executor given to create(), which is single-threaded, and is called from coroutines
// on it. An Etcd and its watches may be destroyed at any time, also by a coroutine that one of them has just
// resumed: the calls under way end with kClosed, later, in a turn of their own. Both must be destroyed before
// the executor's context.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/forward.h"
#include "fleet/etcd_options.h"
#include "fleet/etcd_values.h"

namespace portway {

class EtcdCore;
class EtcdWatch;

class Etcd {
 public:
  template <class Value>
  using Awaitable = boost::asio::awaitable<EtcdResult<Value>>;

  /// kInvalidConfig with the field and the remedy. Connects with the first call, and reads the files of TLS
  /// with each connection.
  static Result<std::unique_ptr<Etcd>> create(const boost::asio::any_io_executor& executor,
                                              EtcdOptions options);
  ~Etcd();
  Etcd(const Etcd&) = delete;
  Etcd& operator=(const Etcd&) = delete;

  // The arguments are used at once; only the answer has to be awaited.

  /// kCompacted if the revision is gone. See next_page() for more keys than fit into an answer.
  Awaitable<EtcdRangeAnswer> range(const EtcdRange& range);
  /// kLeaseNotFound, kNoSpace, kTooLarge (etcd's --max-request-bytes, 1.5 MiB).
  Awaitable<EtcdPutAnswer> put(const EtcdPut& put);
  Awaitable<EtcdDeleteAnswer> erase(const EtcdDelete& erase);
  /// Errors are those of its operations.
  Awaitable<EtcdTxnAnswer> txn(EtcdTxn txn);

  /// A new lease. `ttl`: from 1 s on; etcd may give more. It may exist after an error, and then expires.
  Awaitable<EtcdLeaseAnswer> grant(std::chrono::seconds ttl);
  /// The lease lasts for its whole TTL again. kLeaseNotFound if it is gone: its keys are, too.
  Awaitable<EtcdLeaseAnswer> keep_alive(EtcdLease lease);
  /// Deletes the keys of the lease. kLeaseNotFound.
  Awaitable<EtcdRevokeAnswer> revoke(EtcdLease lease);

  /// Of the first endpoint that answers, even if it has no leader.
  Awaitable<EtcdStatusAnswer> status();

  /// Nothing is asked before next() is called.
  std::unique_ptr<EtcdWatch> watch(EtcdWatchRequest request);

  /// etcd's clock now, to within about a second, by the date of its last answer; nullopt: there was none.
  std::optional<Timestamp> time() const;

  /// 0: there was no answer yet, and the options name none.
  std::uint64_t cluster_id() const;

 private:
  explicit Etcd(std::shared_ptr<EtcdCore> core) : core_(std::move(core)) {}

  const std::shared_ptr<EtcdCore> core_;  // shared with what is under way
};

/// The changes of some keys, each once, in order, whatever happens to connections and members in between.
///
/// It reads no further than it is asked to, so a slow consumer is waited for (by etcd, which then reads the
/// changes from its store). A connection on which nothing has come for EtcdOptions::silence_max is asked for
/// a sign of life; if none comes for request_timeout, the next endpoint is taken. A member that has lost its
/// leader ends the stream.
class EtcdWatch {
 public:
  ~EtcdWatch();
  EtcdWatch(const EtcdWatch&) = delete;
  EtcdWatch& operator=(const EtcdWatch&) = delete;

  /// The next batch, of at least one whole revision. One without events says that the stream has been opened,
  /// or opened again; with the first one the watch stands. It waits for as long as nothing changes. One call
  /// at a time.
  ///
  /// After an error call it again to go on, except after kCompacted (changes are lost: read all keys, and
  /// watch from the revision of that answer + 1) and kTooLarge (a batch does not fit into answer_max), which
  /// come again. An endpoint that fails is replaced without an error; if all have failed, each once, the
  /// error is that of the last one. Repeated tries are up to 5 s apart, and next() waits for that long.
  boost::asio::awaitable<EtcdResult<EtcdEvents>> next();

  /// Where a new watch would go on: behind what next() has returned. 0: not known yet (start_revision was 0,
  /// and the stream was never opened).
  ///
  /// Only events move it. Notices of progress do not: before etcd 3.4.25 and 3.5.8 such a notice may come
  /// before the events that it covers (etcd-io/etcd#15220). So a watch that was idle for long may be answered
  /// kCompacted when it is opened again, although nothing was lost.
  std::int64_t next_revision() const;

 private:
  friend Etcd;
  class State;
  explicit EtcdWatch(std::shared_ptr<State> state);
  static std::unique_ptr<EtcdWatch> make(std::shared_ptr<EtcdCore> core, EtcdWatchRequest request);

  const std::shared_ptr<State> state_;  // shared with a next() that is under way
};

}  // namespace portway
