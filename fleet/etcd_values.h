// What is asked of etcd, what it answers, and what can go wrong. Plain values; the meaning of each is that of
// etcd's API (etcdserver/etcdserverpb/rpc.proto).
//
// Keys and values are bytes. Revisions are positive and grow by one with each change of the cluster; 0 stands
// for "none" or "the newest".
#pragma once

#include <boost/system/result.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace portway {

enum class EtcdErrorKind : std::uint8_t {
  kUnreachable,       // no endpoint took the request: it was not carried out
  kTimeout,           // a request that changes nothing was not answered in time
  kUnknownOutcome,    // one that changes something was sent and not answered: perhaps it was carried out
  kUnauthenticated,   // etcd does not know the user or the password, or wants one
  kPermissionDenied,  // the user may not do that
  kLeaseNotFound,     // it has expired or was revoked
  kCompacted,         // the revision is not there any more; read everything again
  kTooLarge,          // an answer of more than EtcdOptions::answer_max bytes, or a request too large for etcd
  kNoSpace,           // etcd's database is full (alarm NOSPACE): it takes no writes
  kWrongCluster,      // the answer is from another cluster than those before
  kBadAnswer,         // not the answer of an etcd
  kRefused,           // any other error of etcd; `detail` has its words
  kClosed,            // the Etcd or the EtcdWatch was destroyed meanwhile
};
inline constexpr std::size_t kEtcdErrorKinds = static_cast<std::size_t>(EtcdErrorKind::kClosed) + 1;

/// For logs: "unreachable", "unknown_outcome".
std::string_view to_string(EtcdErrorKind kind);

struct EtcdError {
  EtcdErrorKind kind = EtcdErrorKind::kRefused;
  std::string detail = {};  // with the endpoint and, where there is one, the remedy; never a password
  std::int64_t compact_revision =
      0;  // of a watch's kCompacted: the first revision that can be watched; else 0
};

template <class T>
using EtcdResult = boost::system::result<T, EtcdError>;

/// EtcdResult::value() calls it if nobody checked for an error first: a mistake of ours.
[[noreturn]] void throw_exception_from_error(const EtcdError& error, const boost::source_location& where);

/// kNone: the key belongs to no lease.
enum class EtcdLease : std::int64_t { kNone = 0 };

/// One key, or those from `key` up to and without `range_end`, as bytes compare.
struct EtcdKeys {
  std::string key;
  std::string range_end = {};  // empty: the one key; one zero byte: all keys from `key` on

  static EtcdKeys one(std::string key) { return {.key = std::move(key)}; }
  /// All keys that begin so; with an empty prefix, all keys.
  static EtcdKeys with_prefix(std::string_view prefix);

  friend bool operator==(const EtcdKeys&, const EtcdKeys&) = default;
};

struct EtcdKeyValue {
  std::string key;
  std::string value = {};            // empty if only keys were asked for, and of a deletion
  std::int64_t create_revision = 0;  // of a deletion: 0
  std::int64_t mod_revision = 0;     // of a deletion: that of the deletion
  std::int64_t version = 0;          // 1 for a new key
  EtcdLease lease = EtcdLease::kNone;

  friend bool operator==(const EtcdKeyValue&, const EtcdKeyValue&) = default;
};

struct EtcdHeader {
  std::uint64_t cluster_id = 0;
  std::uint64_t member_id = 0;
  std::int64_t revision = 0;  // of the store as the request was carried out
  std::uint64_t raft_term = 0;
};

enum class EtcdContent : std::uint8_t { kValues, kKeysOnly, kCountOnly };

struct EtcdRange {
  EtcdKeys keys;
  std::int64_t limit = 0;     // of keys; 0: no limit
  std::int64_t revision = 0;  // as it was then; 0: now
  EtcdContent content = EtcdContent::kValues;
};

/// Ordered by key.
struct EtcdRangeAnswer {
  EtcdHeader header;
  std::vector<EtcdKeyValue> kvs = {};
  bool more = false;       // than `limit`
  std::int64_t count = 0;  // of the keys in the range, whatever the limit
};

/// What to ask for the page after `answer`: the rest of the keys, as they were when the first page was read.
/// nullopt: there are no more.
std::optional<EtcdRange> next_page(const EtcdRange& asked, const EtcdRangeAnswer& answer);

struct EtcdPut {
  std::string key;
  std::string value = {};
  EtcdLease lease = EtcdLease::kNone;
};

struct EtcdPutAnswer {
  EtcdHeader header;
};

struct EtcdDelete {
  EtcdKeys keys;
};

struct EtcdDeleteAnswer {
  EtcdHeader header;
  std::int64_t deleted = 0;  // keys
};

/// "`target` of `key` is `relation` to `number`", or to `value` if the target is kValue. A key that does not
/// exist has 0 for all numbers; no comparison with its value holds.
struct EtcdCompare {
  enum class Target : std::uint8_t { kVersion, kCreateRevision, kModRevision, kValue, kLease };
  enum class Relation : std::uint8_t { kEqual, kGreater, kLess, kNotEqual };

  std::string key;
  Target target = Target::kModRevision;
  Relation relation = Relation::kEqual;
  std::int64_t number = 0;
  std::string value = {};
};

using EtcdOperation = std::variant<EtcdRange, EtcdPut, EtcdDelete>;
/// Their headers have only the revision.
using EtcdOperationAnswer = std::variant<EtcdRangeAnswer, EtcdPutAnswer, EtcdDeleteAnswer>;

/// Carried out as a whole, at one revision: `success` if all of `compares` hold, else `failure`. etcd takes
/// 128 operations unless it is told otherwise (--max-txn-ops), and no two puts of one key.
struct EtcdTxn {
  std::vector<EtcdCompare> compares = {};
  std::vector<EtcdOperation> success = {};
  std::vector<EtcdOperation> failure = {};
};

struct EtcdTxnAnswer {
  EtcdHeader header;
  bool succeeded = false;                         // all compares held
  std::vector<EtcdOperationAnswer> answers = {};  // one for each operation that was carried out
};

struct EtcdLeaseAnswer {
  EtcdHeader header;
  EtcdLease lease = EtcdLease::kNone;
  std::chrono::seconds ttl{0};  // from now
};

struct EtcdRevokeAnswer {
  EtcdHeader header;
};

struct EtcdStatusAnswer {
  EtcdHeader header;          // says which cluster and which member
  std::string version;        // "3.4.23"
  std::int64_t db_bytes = 0;  // of its file
  std::uint64_t leader = 0;   // member id; 0: the member knows of none
};

struct EtcdWatchRequest {
  EtcdKeys keys;
  std::int64_t start_revision = 0;  // the first one of interest; 0: what changes from now on
};

struct EtcdEvent {
  enum class Type : std::uint8_t { kPut, kDelete };

  Type type = Type::kPut;
  EtcdKeyValue kv;
};

/// In the order of their revisions, each revision whole.
struct EtcdEvents {
  std::int64_t revision = 0;  // of the last one
  std::vector<EtcdEvent> events = {};
};

}  // namespace portway
