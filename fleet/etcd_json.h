// etcd's messages as its JSON gateway reads and writes them: bytes are base64, 64-bit integers are strings,
// and what has its default value is left out (protobuf's JSON mapping, as of grpc-gateway).
//
// Nothing in an answer is trusted: what does not fit is kBadAnswer with the name of the field.
#pragma once

#include <boost/system/result.hpp>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fleet/etcd_values.h"

namespace portway {

/// RFC 4648, 4, with padding.
std::string to_base64(std::string_view bytes);
/// nullopt if it is anything else, be it by one bit.
std::optional<std::string> from_base64(std::string_view text);

/// Bodies of requests.
std::string etcd_json(const EtcdRange& range);
std::string etcd_json(const EtcdPut& put);
std::string etcd_json(const EtcdDelete& erase);
std::string etcd_json(const EtcdTxn& txn);
std::string etcd_grant_json(std::chrono::seconds ttl);
/// For keep-alive and revoke.
std::string etcd_lease_json(EtcdLease lease);
std::string etcd_authenticate_json(std::string_view user, std::string_view password);
std::string etcd_watch_json(const EtcdWatchRequest& request);
/// Asks on a watch's stream for a message.
std::string etcd_progress_json();

/// Bodies of answers with status 200.
EtcdResult<EtcdRangeAnswer> parse_etcd_range(std::string_view body);
EtcdResult<EtcdPutAnswer> parse_etcd_put(std::string_view body);
EtcdResult<EtcdDeleteAnswer> parse_etcd_delete(std::string_view body);
/// It must answer one of the branches of `asked`, operation by operation.
EtcdResult<EtcdTxnAnswer> parse_etcd_txn(const EtcdTxn& asked, std::string_view body);
EtcdResult<EtcdLeaseAnswer> parse_etcd_grant(std::string_view body);
EtcdResult<EtcdRevokeAnswer> parse_etcd_revoke(std::string_view body);
EtcdResult<EtcdStatusAnswer> parse_etcd_status(std::string_view body);

struct EtcdToken {
  EtcdHeader header;
  std::string token;  // printable ASCII: fit for a header
};
EtcdResult<EtcdToken> parse_etcd_token(std::string_view body);

/// What to do about a failed request.
enum class EtcdRemedy : std::uint8_t {
  kNone,        // the same would come again
  kTryNext,     // another endpoint may carry it out; this one has not
  kMaybeNext,   // the same, but this one may have carried it out, or be about to
  kRenewToken,  // get another token and repeat it; it was not carried out
};

struct EtcdFailure {
  EtcdError error;
  EtcdRemedy remedy = EtcdRemedy::kNone;
  bool no_users = false;  // etcd has its user management switched off
};

inline EtcdFailure as_failure(EtcdError error, EtcdRemedy remedy = EtcdRemedy::kNone) {
  return {.error = std::move(error), .remedy = remedy};
}

template <class T>
using EtcdAttempt = boost::system::result<T, EtcdFailure>;

/// The failure that an answer with a status other than 200 tells of.
EtcdFailure etcd_failure_of(unsigned status, std::string_view body);

/// A keep-alive's answer, which is the first message of a stream. kLeaseNotFound if the lease is gone.
EtcdAttempt<EtcdLeaseAnswer> parse_etcd_keep_alive(std::string_view body);

/// A message of a watch's stream.
struct EtcdWatchMessage {
  EtcdHeader header;
  bool created = false;
  bool canceled = false;
  std::int64_t compact_revision = 0;
  bool fragment = false;  // more of the same batch follows
  std::vector<EtcdEvent> events = {};
  std::optional<EtcdFailure> failure = std::nullopt;  // why it was canceled
};
/// A failure if the line is no such message, or says that the stream ends.
EtcdAttempt<EtcdWatchMessage> parse_etcd_watch(std::string_view line);

}  // namespace portway
