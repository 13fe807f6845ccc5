#include "fleet/etcd_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <charconv>
#include <concepts>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace portway {
namespace {

namespace json = boost::json;

constexpr std::string_view kBase64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

constexpr auto kBase64Values = [] {
  std::array<std::int8_t, 256> values{};
  values.fill(-1);
  for (std::size_t i = 0; i < kBase64.size(); ++i) {
    values[static_cast<unsigned char>(kBase64[i])] = static_cast<std::int8_t>(i);
  }
  return values;
}();

// ---- Requests

template <std::integral Number>
std::string as_text(Number number) {
  return std::to_string(number);
}
std::string as_text(EtcdLease lease) {
  return std::to_string(static_cast<std::int64_t>(lease));
}

void add_keys(json::object& out, const EtcdKeys& keys) {
  out["key"] = to_base64(keys.key);
  if (!keys.range_end.empty()) out["range_end"] = to_base64(keys.range_end);
}

json::object object_of(const EtcdRange& range) {
  json::object out;
  add_keys(out, range.keys);
  if (range.limit != 0) out["limit"] = as_text(range.limit);
  if (range.revision != 0) out["revision"] = as_text(range.revision);
  if (range.content == EtcdContent::kKeysOnly) out["keys_only"] = true;
  if (range.content == EtcdContent::kCountOnly) out["count_only"] = true;
  return out;
}

json::object object_of(const EtcdPut& put) {
  json::object out;
  out["key"] = to_base64(put.key);
  out["value"] = to_base64(put.value);
  if (put.lease != EtcdLease::kNone) out["lease"] = as_text(put.lease);
  return out;
}

json::object object_of(const EtcdDelete& erase) {
  json::object out;
  add_keys(out, erase.keys);
  return out;
}

json::object object_of(const EtcdCompare& compare) {
  struct Target {
    std::string_view name;
    std::string_view operand;
  };
  static constexpr std::array<Target, 5> kTargets{{{"VERSION", "version"},
                                                   {"CREATE", "create_revision"},
                                                   {"MOD", "mod_revision"},
                                                   {"VALUE", "value"},
                                                   {"LEASE", "lease"}}};
  static constexpr std::array<std::string_view, 4> kRelations{"EQUAL", "GREATER", "LESS", "NOT_EQUAL"};
  const Target& target = kTargets[static_cast<std::size_t>(compare.target)];
  json::object out;
  out["key"] = to_base64(compare.key);
  out["target"] = target.name;
  out["result"] = kRelations[static_cast<std::size_t>(compare.relation)];
  // With its default value as well: without an operand etcd would compare with that of another target.
  out[target.operand] =
      compare.target == EtcdCompare::Target::kValue ? to_base64(compare.value) : as_text(compare.number);
  return out;
}

std::string_view request_name(const EtcdRange&) {
  return "request_range";
}
std::string_view request_name(const EtcdPut&) {
  return "request_put";
}
std::string_view request_name(const EtcdDelete&) {
  return "request_delete_range";
}

json::array array_of(const std::vector<EtcdOperation>& operations) {
  json::array out;
  for (const EtcdOperation& operation : operations) {
    json::object one;
    std::visit([&](const auto& request) { one[request_name(request)] = object_of(request); }, operation);
    out.push_back(std::move(one));
  }
  return out;
}

// ---- Answers

EtcdError bad_answer(std::string detail) {
  return {.kind = EtcdErrorKind::kBadAnswer, .detail = std::move(detail)};
}

/// Reads the fields of an object, and remembers the first one that does not fit. What is missing has its
/// default value.
class EtcdFields {
 public:
  EtcdFields(const json::object& object, std::string& wrong) : object_(object), wrong_(wrong) {}

  bool has(std::string_view name) const { return find(name) != nullptr; }

  template <std::integral Number>
  Number number(std::string_view name) const {
    const json::value* value = find(name);
    if (value == nullptr) return 0;
    Number out = 0;
    if (const json::string* text = value->if_string()) {
      const char* end = text->data() + text->size();
      const auto [stopped, error] = std::from_chars(text->data(), end, out);
      if (error == std::errc() && stopped == end) return out;
    } else if (value->is_int64() || value->is_uint64()) {
      // The mapping allows a bare number to be read.
      boost::system::error_code error;
      out = value->to_number<Number>(error);
      if (!error) return out;
    }
    fail(name);
    return 0;
  }

  bool flag(std::string_view name) const {
    const json::value* value = find(name);
    if (value == nullptr) return false;
    if (!value->is_bool()) fail(name);
    return value->is_bool() && value->get_bool();
  }

  std::string text(std::string_view name) const {
    const json::value* value = find(name);
    if (value == nullptr) return {};
    if (!value->is_string()) fail(name);
    return value->is_string() ? std::string(value->get_string()) : std::string();
  }

  std::string bytes(std::string_view name) const {
    const json::value* value = find(name);
    if (value == nullptr) return {};
    auto decoded = value->is_string() ? from_base64(value->get_string()) : std::nullopt;
    if (!decoded) fail(name);
    return std::move(decoded).value_or("");
  }

  /// Calls `read` with the fields of the object, if there is one.
  template <class Read>
  void object(std::string_view name, const Read& read) const {
    const json::value* value = find(name);
    if (value == nullptr) return;
    if (!value->is_object()) return fail(name);
    read(EtcdFields(value->get_object(), wrong_));
  }

  /// The same for each object of an array.
  template <class Read>
  void objects(std::string_view name, const Read& read) const {
    const json::value* value = find(name);
    if (value == nullptr) return;
    if (!value->is_array()) return fail(name);
    for (const json::value& item : value->get_array()) {
      if (!item.is_object()) return fail(name);
      read(EtcdFields(item.get_object(), wrong_));
    }
  }

  void fail(std::string_view name) const {
    if (wrong_.empty()) wrong_ = name;
  }

 private:
  const json::value* find(std::string_view name) const {
    const json::value* value = object_.if_contains(name);
    return value == nullptr || value->is_null() ? nullptr : value;
  }

  const json::object& object_;
  std::string& wrong_;
};

/// Parses one JSON object, which may be followed by white space only.
EtcdResult<json::value> parse_object(std::string_view text) {
  boost::system::error_code error;
  json::value value = json::parse(text, error);
  if (error) return bad_answer("the answer is not JSON: " + error.message());
  if (!value.is_object()) return bad_answer("the answer is not a JSON object");
  return value;
}

/// `read` fills `out` from the object of the body.
template <class Answer, class Read>
EtcdResult<Answer> parse_with(std::string_view body, const Read& read) {
  const auto value = parse_object(body);
  if (!value) return value.error();
  std::string wrong;
  Answer out;
  read(EtcdFields(value->get_object(), wrong), out);
  if (!wrong.empty()) return bad_answer(fmt::format("the answer has a wrong or no {}", in_quotes(wrong)));
  return out;
}

/// A header as all answers have it; those inside of a transaction's have only the revision.
enum class HeaderOf : std::uint8_t { kAnswer, kOperation };

EtcdHeader header_of(const EtcdFields& fields, HeaderOf of = HeaderOf::kAnswer) {
  EtcdHeader out;
  fields.object("header", [&](const EtcdFields& header) {
    out.cluster_id = header.number<std::uint64_t>("cluster_id");
    out.member_id = header.number<std::uint64_t>("member_id");
    out.revision = header.number<std::int64_t>("revision");
    out.raft_term = header.number<std::uint64_t>("raft_term");
  });
  if (of == HeaderOf::kAnswer && out.cluster_id == 0) fields.fail("header");
  if (out.revision < 0) fields.fail("revision");
  return out;
}

EtcdKeyValue key_value_of(const EtcdFields& fields) {
  EtcdKeyValue out{.key = fields.bytes("key"),
                   .value = fields.bytes("value"),
                   .create_revision = fields.number<std::int64_t>("create_revision"),
                   .mod_revision = fields.number<std::int64_t>("mod_revision"),
                   .version = fields.number<std::int64_t>("version"),
                   .lease = EtcdLease{fields.number<std::int64_t>("lease")}};
  if (out.key.empty()) fields.fail("key");
  if (out.mod_revision <= 0) fields.fail("mod_revision");
  return out;
}

void read_range(const EtcdFields& fields, EtcdRangeAnswer& out) {
  fields.objects("kvs", [&](const EtcdFields& kv) { out.kvs.push_back(key_value_of(kv)); });
  out.more = fields.flag("more");
  out.count = fields.number<std::int64_t>("count");
}

void read_delete(const EtcdFields& fields, EtcdDeleteAnswer& out) {
  out.deleted = fields.number<std::int64_t>("deleted");
}

EtcdOperationAnswer answer_of(const EtcdOperation& asked, const EtcdFields& fields) {
  static constexpr std::array<std::string_view, 3> kNames{"response_range", "response_put",
                                                          "response_delete_range"};
  const std::string_view name = kNames[asked.index()];
  EtcdOperationAnswer out;
  if (!fields.has(name)) fields.fail(name);
  fields.object(name, [&](const EtcdFields& answer) {
    const EtcdHeader header = header_of(answer, HeaderOf::kOperation);
    if (std::holds_alternative<EtcdRange>(asked)) {
      read_range(answer, out.emplace<EtcdRangeAnswer>(EtcdRangeAnswer{.header = header}));
    } else if (std::holds_alternative<EtcdPut>(asked)) {
      out = EtcdPutAnswer{.header = header};
    } else {
      read_delete(answer, out.emplace<EtcdDeleteAnswer>(EtcdDeleteAnswer{.header = header}));
    }
  });
  return out;
}

EtcdEvent event_of(const EtcdFields& fields) {
  EtcdEvent out;
  const std::string type = fields.text("type");
  if (type == "DELETE") {
    out.type = EtcdEvent::Type::kDelete;
  } else if (!type.empty() && type != "PUT") {
    fields.fail("type");
  }
  if (!fields.has("kv")) fields.fail("kv");
  fields.object("kv", [&](const EtcdFields& kv) { out.kv = key_value_of(kv); });
  return out;
}

// ---- Failures

// Codes of gRPC (grpc/codes).
constexpr int kGrpcPermissionDenied = 7;
constexpr int kGrpcUnavailable = 14;
constexpr int kGrpcUnauthenticated = 16;

struct KnownMessage {
  std::string_view part;  // of what etcd says
  EtcdErrorKind kind;
  EtcdRemedy remedy = EtcdRemedy::kNone;
};

// etcd has many errors, and few codes for them: its words are what its own clients compare, too
// (api/v3rpc/rpctypes/error.go).
constexpr auto kKnownMessages = std::to_array<KnownMessage>({
    {"invalid auth token", EtcdErrorKind::kUnauthenticated, EtcdRemedy::kRenewToken},
    {"revision of auth store is old", EtcdErrorKind::kUnauthenticated, EtcdRemedy::kRenewToken},
    // No token was sent: etcd had no users when one was to be fetched.
    {"user name is empty", EtcdErrorKind::kUnauthenticated, EtcdRemedy::kRenewToken},
    {"authentication failed", EtcdErrorKind::kUnauthenticated},
    {"permission denied", EtcdErrorKind::kPermissionDenied},
    {"requested lease not found", EtcdErrorKind::kLeaseNotFound},
    {"required revision has been compacted", EtcdErrorKind::kCompacted},
    {"database space exceeded", EtcdErrorKind::kNoSpace},
    {"request is too large", EtcdErrorKind::kTooLarge},
    {"message larger than max", EtcdErrorKind::kTooLarge},
    // Each is found out before the request is proposed to the other members.
    {"too many requests", EtcdErrorKind::kUnreachable, EtcdRemedy::kTryNext},
    {"no leader", EtcdErrorKind::kUnreachable, EtcdRemedy::kTryNext},
    {"Error while dialing", EtcdErrorKind::kUnreachable, EtcdRemedy::kTryNext},
});

EtcdFailure failure_of(unsigned status, int code, std::string_view message) {
  EtcdFailure out{.error = {.detail = "etcd says: " + in_quotes(message)}};
  out.no_users = message.find("authentication is not enabled") != std::string_view::npos;
  const auto known = std::find_if(kKnownMessages.begin(), kKnownMessages.end(), [&](const KnownMessage& one) {
    return message.find(one.part) != std::string_view::npos;
  });
  if (known != kKnownMessages.end()) {
    out.error.kind = known->kind;
    out.remedy = known->remedy;
  } else if (code == kGrpcUnavailable || status >= 500) {
    out.error.kind = EtcdErrorKind::kUnreachable;
    out.remedy = EtcdRemedy::kMaybeNext;
  } else if (code == kGrpcUnauthenticated) {
    out.error.kind = EtcdErrorKind::kUnauthenticated;
  } else if (code == kGrpcPermissionDenied) {
    out.error.kind = EtcdErrorKind::kPermissionDenied;
  } else {
    out.error.kind = EtcdErrorKind::kRefused;
  }
  return out;
}

/// grpc-gateway 1 has "error" (text) beside "code", and in a stream "error" (an object) with "grpc_code";
/// grpc-gateway 2 has "message" and "code" in both.
std::optional<EtcdFailure> failure_in(unsigned status, const json::object& object) {
  std::string ignored;
  const EtcdFields fields(object, ignored);
  const int code = fields.has("grpc_code") ? fields.number<int>("grpc_code") : fields.number<int>("code");
  std::string message = fields.text("message");
  if (message.empty()) message = fields.text("error");
  if (message.empty() || !ignored.empty()) return std::nullopt;
  const auto http_code = fields.number<int>("http_code");
  return failure_of(http_code > 0 ? static_cast<unsigned>(http_code) : status, code, message);
}

/// The object that the message of a stream is about.
EtcdAttempt<json::value> parse_streamed(std::string_view line) {
  auto value = parse_object(line);
  if (!value) return EtcdFailure{.error = value.error()};
  json::object& object = value->get_object();
  if (const json::value* error = object.if_contains("error"); error != nullptr && error->is_object()) {
    constexpr unsigned kOk = 200;
    if (auto failure = failure_in(kOk, error->get_object())) return std::move(*failure);
  }
  json::value* result = object.if_contains("result");
  if (result == nullptr || !result->is_object()) {
    return EtcdFailure{.error = bad_answer("a message of the stream has neither a result nor an error")};
  }
  return std::move(*result);
}

EtcdFailure wrong_field(const std::string& name) {
  return {.error = bad_answer(fmt::format("a message of the stream has a wrong or no {}", in_quotes(name)))};
}

EtcdFailure cancellation(std::string_view reason) {
  // "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
  constexpr std::string_view kBeforeMessage = "desc = ";
  if (const auto at = reason.find(kBeforeMessage); at != std::string_view::npos) {
    reason.remove_prefix(at + kBeforeMessage.size());
  }
  constexpr unsigned kOk = 200;
  EtcdFailure out = failure_of(kOk, 0, reason.empty() ? "the watch is canceled" : reason);
  // An unknown reason may be this member's own.
  if (out.error.kind == EtcdErrorKind::kRefused) out.remedy = EtcdRemedy::kMaybeNext;
  return out;
}

}  // namespace

std::string to_base64(std::string_view bytes) {
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t at = 0; at < bytes.size(); at += 3) {
    const std::size_t have = std::min<std::size_t>(3, bytes.size() - at);
    std::uint32_t group = 0;
    for (std::size_t i = 0; i < 3; ++i) {
      group = group << 8 | (i < have ? static_cast<unsigned char>(bytes[at + i]) : 0U);
    }
    for (std::size_t i = 0; i < 4; ++i) out += i <= have ? kBase64[group >> (18 - 6 * i) & 63] : '=';
  }
  return out;
}

std::optional<std::string> from_base64(std::string_view text) {
  if (text.size() % 4 != 0) return std::nullopt;
  std::string out;
  out.reserve(text.size() / 4 * 3);
  for (std::size_t at = 0; at < text.size(); at += 4) {
    std::string_view digits = text.substr(at, 4);
    if (at + 4 == text.size()) {  // only the last ones may be padded
      if (digits.ends_with('=')) digits.remove_suffix(1);
      if (digits.ends_with('=')) digits.remove_suffix(1);
    }
    std::uint32_t group = 0;
    for (const char digit : digits) {
      const std::int8_t value = kBase64Values[static_cast<unsigned char>(digit)];
      if (value < 0) return std::nullopt;
      group = group << 6 | static_cast<std::uint32_t>(value);
    }
    group <<= 6 * (4 - digits.size());
    const std::size_t bytes = digits.size() - 1;
    // The bits behind the last byte are zero, so that a text has one meaning, and bytes have one text.
    if ((group & (0xffffffU >> 8 * bytes)) != 0) return std::nullopt;
    for (std::size_t i = 0; i < bytes; ++i) out += static_cast<char>(group >> (16 - 8 * i) & 0xff);
  }
  return out;
}

std::string etcd_json(const EtcdRange& range) {
  return json::serialize(object_of(range));
}
std::string etcd_json(const EtcdPut& put) {
  return json::serialize(object_of(put));
}
std::string etcd_json(const EtcdDelete& erase) {
  return json::serialize(object_of(erase));
}

std::string etcd_json(const EtcdTxn& txn) {
  json::object out;
  json::array compares;
  for (const EtcdCompare& compare : txn.compares) compares.push_back(object_of(compare));
  out["compare"] = std::move(compares);
  out["success"] = array_of(txn.success);
  out["failure"] = array_of(txn.failure);
  return json::serialize(out);
}

std::string etcd_grant_json(std::chrono::seconds ttl) {
  json::object out;
  out["TTL"] = as_text(ttl.count());
  return json::serialize(out);
}

std::string etcd_lease_json(EtcdLease lease) {
  json::object out;
  out["ID"] = as_text(lease);
  return json::serialize(out);
}

std::string etcd_authenticate_json(std::string_view user, std::string_view password) {
  json::object out;
  out["name"] = user;
  out["password"] = password;
  return json::serialize(out);
}

std::string etcd_watch_json(const EtcdWatchRequest& request) {
  json::object create;
  add_keys(create, request.keys);
  if (request.start_revision != 0) create["start_revision"] = as_text(request.start_revision);
  // Without it a batch could have a thousand revisions, however large they are.
  create["fragment"] = true;
  json::object out;
  out["create_request"] = std::move(create);
  return json::serialize(out);
}

std::string etcd_progress_json() {
  return R"({"progress_request":{}})";
}

EtcdResult<EtcdRangeAnswer> parse_etcd_range(std::string_view body) {
  return parse_with<EtcdRangeAnswer>(body, [](const EtcdFields& fields, EtcdRangeAnswer& out) {
    out.header = header_of(fields);
    read_range(fields, out);
  });
}

EtcdResult<EtcdPutAnswer> parse_etcd_put(std::string_view body) {
  return parse_with<EtcdPutAnswer>(
      body, [](const EtcdFields& fields, EtcdPutAnswer& out) { out.header = header_of(fields); });
}

EtcdResult<EtcdDeleteAnswer> parse_etcd_delete(std::string_view body) {
  return parse_with<EtcdDeleteAnswer>(body, [](const EtcdFields& fields, EtcdDeleteAnswer& out) {
    out.header = header_of(fields);
    read_delete(fields, out);
  });
}

EtcdResult<EtcdTxnAnswer> parse_etcd_txn(const EtcdTxn& asked, std::string_view body) {
  return parse_with<EtcdTxnAnswer>(body, [&](const EtcdFields& fields, EtcdTxnAnswer& out) {
    out.header = header_of(fields);
    out.succeeded = fields.flag("succeeded");
    const std::vector<EtcdOperation>& operations = out.succeeded ? asked.success : asked.failure;
    fields.objects("responses", [&](const EtcdFields& answer) {
      if (out.answers.size() == operations.size()) return fields.fail("responses");
      out.answers.push_back(answer_of(operations[out.answers.size()], answer));
    });
    if (out.answers.size() != operations.size()) fields.fail("responses");
  });
}

EtcdResult<EtcdLeaseAnswer> parse_etcd_grant(std::string_view body) {
  return parse_with<EtcdLeaseAnswer>(body, [](const EtcdFields& fields, EtcdLeaseAnswer& out) {
    out.header = header_of(fields);
    out.lease = EtcdLease{fields.number<std::int64_t>("ID")};
    out.ttl = std::chrono::seconds(fields.number<std::int64_t>("TTL"));
    if (out.lease == EtcdLease::kNone) fields.fail("ID");
    if (out.ttl.count() <= 0) fields.fail("TTL");
  });
}

EtcdResult<EtcdRevokeAnswer> parse_etcd_revoke(std::string_view body) {
  return parse_with<EtcdRevokeAnswer>(
      body, [](const EtcdFields& fields, EtcdRevokeAnswer& out) { out.header = header_of(fields); });
}

EtcdResult<EtcdStatusAnswer> parse_etcd_status(std::string_view body) {
  return parse_with<EtcdStatusAnswer>(body, [](const EtcdFields& fields, EtcdStatusAnswer& out) {
    out.header = header_of(fields);
    out.version = fields.text("version");
    out.db_bytes = fields.number<std::int64_t>("dbSize");
    out.leader = fields.number<std::uint64_t>("leader");
    if (out.version.empty()) fields.fail("version");
  });
}

EtcdResult<EtcdToken> parse_etcd_token(std::string_view body) {
  return parse_with<EtcdToken>(body, [](const EtcdFields& fields, EtcdToken& out) {
    out.header = header_of(fields);
    out.token = fields.text("token");
    const bool printable =
        std::all_of(out.token.begin(), out.token.end(), [](char c) { return c > ' ' && c <= '~'; });
    if (out.token.empty() || !printable) fields.fail("token");
  });
}

EtcdFailure etcd_failure_of(unsigned status, std::string_view body) {
  if (const auto value = parse_object(body.substr(0, body.find('\n')))) {
    const json::object& object = value->get_object();
    const json::value* streamed = object.if_contains("error");
    const bool is_streamed = streamed != nullptr && streamed->is_object();
    if (auto failure = failure_in(status, is_streamed ? streamed->get_object() : object)) {
      return std::move(*failure);
    }
  }
  EtcdFailure out{.error = bad_answer(fmt::format("it answered with HTTP status {}", status))};
  constexpr unsigned kTooManyRequests = 429;
  if (status >= 500 || status == kTooManyRequests) {  // of a proxy in front of etcd
    out.error.kind = EtcdErrorKind::kUnreachable;
    out.remedy = EtcdRemedy::kMaybeNext;
  } else if (body.starts_with("CommonName of client")) {  // embed/serve.go
    out.error = {.kind = EtcdErrorKind::kUnauthenticated,
                 .detail =
                     "etcd takes no user from a client whose certificate has a common name (CN); use a "
                     "certificate without one"};
  } else {
    out.error.detail += ", not as etcd's JSON gateway (/v3/, etcd 3.4 or newer) does";
  }
  return out;
}

EtcdAttempt<EtcdLeaseAnswer> parse_etcd_keep_alive(std::string_view body) {
  const auto value = parse_streamed(body.substr(0, body.find('\n')));
  if (!value) return value.error();
  std::string wrong;
  const EtcdFields fields(value->get_object(), wrong);
  const EtcdLeaseAnswer out{.header = header_of(fields),
                            .lease = EtcdLease{fields.number<std::int64_t>("ID")},
                            .ttl = std::chrono::seconds(fields.number<std::int64_t>("TTL"))};
  if (out.ttl.count() < 0) fields.fail("TTL");
  if (!wrong.empty()) return wrong_field(wrong);
  if (out.ttl.count() == 0) {
    return EtcdFailure{.error = {.kind = EtcdErrorKind::kLeaseNotFound,
                                 .detail = "the lease has expired or was revoked; ask for another one"}};
  }
  return out;
}

EtcdAttempt<EtcdWatchMessage> parse_etcd_watch(std::string_view line) {
  const auto value = parse_streamed(line);
  if (!value) return value.error();
  std::string wrong;
  const EtcdFields fields(value->get_object(), wrong);
  EtcdWatchMessage out{.header = header_of(fields),
                       .created = fields.flag("created"),
                       .canceled = fields.flag("canceled"),
                       .compact_revision = fields.number<std::int64_t>("compact_revision"),
                       .fragment = fields.flag("fragment")};
  fields.objects("events", [&](const EtcdFields& event) { out.events.push_back(event_of(event)); });
  const std::string reason = fields.text("cancel_reason");
  if (!wrong.empty()) return wrong_field(wrong);
  if (!out.canceled) return out;
  out.failure = cancellation(reason);
  if (out.compact_revision > 0) {
    out.failure =
        EtcdFailure{.error = {.kind = EtcdErrorKind::kCompacted,
                              .detail = fmt::format("the changes before revision {} are compacted; read "
                                                    "all keys again and watch from there",
                                                    out.compact_revision),
                              .compact_revision = out.compact_revision}};
  }
  return out;
}

}  // namespace portway
