#include "fleet/etcd_json.h"

#include <gtest/gtest.h>

#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <chrono>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace portway {
namespace {

namespace json = boost::json;
using std::chrono::seconds;

const std::string kHeader =
    R"("header":{"cluster_id":"14841639068965178418","member_id":"10276657743932975437","revision":"7","raft_term":"2"})";

/// An answer with a header and these fields.
std::string with_header(std::string_view fields) {
  return "{" + kHeader + (fields.empty() ? "" : ",") + std::string(fields) + "}";
}

std::string watch_message(std::string_view fields) {
  return R"({"result":)" + with_header(fields) + "}";
}

/// The text without blanks, as json::serialize() would write it.
std::string canonical(std::string_view text) {
  return json::serialize(json::parse(text));
}

TEST(EtcdBase64, WritesAndReadsEveryLengthAndEveryByte) {
  EXPECT_EQ(to_base64(""), "");
  EXPECT_EQ(to_base64("f"), "Zg==");
  EXPECT_EQ(to_base64("fo"), "Zm8=");
  EXPECT_EQ(to_base64("foo"), "Zm9v");
  EXPECT_EQ(to_base64("foob"), "Zm9vYg==");
  std::string all;
  for (int i = 0; i < 256; ++i) all += static_cast<char>(i);
  for (std::size_t size = 0; size <= all.size(); ++size) {
    EXPECT_EQ(from_base64(to_base64(all.substr(0, size))), all.substr(0, size));
  }
}

TEST(EtcdBase64, RefusesWhatIsNotExactlyThat) {
  for (const char* text : {"Z", "Zg", "Zg=", "Zm9", "Zg=a", "=g==", "====", "Zg==Zg==", "Zm9v\n", "Zm 9",
                           "Zm-_", "Zh==", "Zm9=", "Zg===", "Zm9v="}) {
    EXPECT_EQ(from_base64(text), std::nullopt) << text;
  }
  EXPECT_EQ(from_base64(std::string_view("Zm\0v", 4)), std::nullopt);
  EXPECT_EQ(from_base64("Zm\xc3\xa9"), std::nullopt);
}

TEST(EtcdKeys, APrefixEndsBeforeTheFirstKeyBehindIt) {
  EXPECT_EQ(EtcdKeys::with_prefix("/portway/"), (EtcdKeys{"/portway/", "/portway0"}));
  EXPECT_EQ(EtcdKeys::with_prefix("a\xff\xff"), (EtcdKeys{"a\xff\xff", "b"}));
  EXPECT_EQ(EtcdKeys::with_prefix("\xff"), (EtcdKeys{"\xff", std::string(1, '\0')}));
  EXPECT_EQ(EtcdKeys::with_prefix(""), (EtcdKeys{std::string(1, '\0'), std::string(1, '\0')}));
}

TEST(EtcdPages, GoOnBehindTheLastKeyAtTheFirstPagesRevision) {
  const EtcdRange asked{.keys = EtcdKeys::with_prefix("a"), .limit = 2};
  EtcdRangeAnswer answer{.header = {.revision = 9}, .kvs = {{.key = "a1"}, {.key = "a2"}}, .more = true};
  auto next = next_page(asked, answer);
  ASSERT_TRUE(next);
  EXPECT_EQ(next->keys, (EtcdKeys{std::string("a2\0", 3), "b"}));
  EXPECT_EQ(next->revision, 9);
  EXPECT_EQ(next->limit, 2);
  answer.header.revision = 12;
  next = next_page(*next, answer);
  ASSERT_TRUE(next);
  EXPECT_EQ(next->revision, 9);
  answer.more = false;
  EXPECT_FALSE(next_page(asked, answer));
  EXPECT_FALSE(next_page(asked, {.header = {}, .more = true}));
}

TEST(EtcdJson, WritesRequestsAsTheGatewayReadsThem) {
  EXPECT_EQ(etcd_json(EtcdRange{.keys = EtcdKeys::one("a")}), R"({"key":"YQ=="})");
  EXPECT_EQ(etcd_json(EtcdRange{.keys = {"a", "c"}, .limit = 10, .revision = 9007199254740993}),
            R"({"key":"YQ==","range_end":"Yw==","limit":"10","revision":"9007199254740993"})");
  EXPECT_EQ(etcd_json(EtcdRange{.keys = EtcdKeys::one("a"), .content = EtcdContent::kKeysOnly}),
            R"({"key":"YQ==","keys_only":true})");
  EXPECT_EQ(etcd_json(EtcdRange{.keys = EtcdKeys::one("a"), .content = EtcdContent::kCountOnly}),
            R"({"key":"YQ==","count_only":true})");
  EXPECT_EQ(etcd_json(EtcdPut{.key = "a"}), R"({"key":"YQ==","value":""})");
  EXPECT_EQ(etcd_json(EtcdPut{.key = "a", .value = "1", .lease = EtcdLease{77}}),
            R"({"key":"YQ==","value":"MQ==","lease":"77"})");
  EXPECT_EQ(etcd_json(EtcdDelete{.keys = {"a", "b"}}), R"({"key":"YQ==","range_end":"Yg=="})");
  EXPECT_EQ(etcd_grant_json(seconds(5)), R"({"TTL":"5"})");
  EXPECT_EQ(etcd_lease_json(EtcdLease{-3}), R"({"ID":"-3"})");
  EXPECT_EQ(etcd_authenticate_json("jo\"e", "p\nw"), R"({"name":"jo\"e","password":"p\nw"})");
  EXPECT_EQ(etcd_progress_json(), R"({"progress_request":{}})");
  EXPECT_EQ(etcd_watch_json({.keys = EtcdKeys::one("a")}),
            R"({"create_request":{"key":"YQ==","fragment":true}})");
  EXPECT_EQ(etcd_watch_json({.keys = {"a", "b"}, .start_revision = 5}),
            R"({"create_request":{"key":"YQ==","range_end":"Yg==","start_revision":"5","fragment":true}})");
}

TEST(EtcdJson, WritesATransactionWithEveryCompareAndOperation) {
  using Target = EtcdCompare::Target;
  using Relation = EtcdCompare::Relation;
  const EtcdTxn txn{
      .compares =
          {{.key = "a", .target = Target::kVersion, .relation = Relation::kEqual, .number = 0},
           {.key = "a", .target = Target::kCreateRevision, .relation = Relation::kGreater, .number = 1},
           {.key = "a", .target = Target::kModRevision, .relation = Relation::kLess, .number = 2},
           {.key = "a", .target = Target::kValue, .relation = Relation::kNotEqual, .value = "v"},
           {.key = "a", .target = Target::kLease, .relation = Relation::kEqual, .number = 3}},
      .success = {EtcdPut{.key = "a"}, EtcdRange{.keys = EtcdKeys::one("b")}},
      .failure = {EtcdDelete{.keys = EtcdKeys::one("c")}}};
  EXPECT_EQ(etcd_json(txn), canonical(R"({
    "compare":[{"key":"YQ==","target":"VERSION","result":"EQUAL","version":"0"},
               {"key":"YQ==","target":"CREATE","result":"GREATER","create_revision":"1"},
               {"key":"YQ==","target":"MOD","result":"LESS","mod_revision":"2"},
               {"key":"YQ==","target":"VALUE","result":"NOT_EQUAL","value":"dg=="},
               {"key":"YQ==","target":"LEASE","result":"EQUAL","lease":"3"}],
    "success":[{"request_put":{"key":"YQ==","value":""}},{"request_range":{"key":"Yg=="}}],
    "failure":[{"request_delete_range":{"key":"Yw=="}}]})"));
}

TEST(EtcdJson, ReadsARange) {
  const auto answer = parse_etcd_range(with_header(
      R"("kvs":[{"key":"YQ==","create_revision":"2","mod_revision":"3","version":"1","value":"MQ==","lease":"77"},
                {"key":"Yg==","create_revision":"4","mod_revision":"4","version":"1"}],"more":true,"count":"5")"));
  ASSERT_TRUE(answer) << answer.error().detail;
  EXPECT_EQ(answer->header.cluster_id, 14841639068965178418U);
  EXPECT_EQ(answer->header.member_id, 10276657743932975437U);
  EXPECT_EQ(answer->header.revision, 7);
  EXPECT_EQ(answer->header.raft_term, 2U);
  EXPECT_TRUE(answer->more);
  EXPECT_EQ(answer->count, 5);
  const std::vector<EtcdKeyValue> expected{
      {.key = "a",
       .value = "1",
       .create_revision = 2,
       .mod_revision = 3,
       .version = 1,
       .lease = EtcdLease{77}},
      {.key = "b", .value = "", .create_revision = 4, .mod_revision = 4, .version = 1}};
  EXPECT_EQ(answer->kvs, expected);
}

TEST(EtcdJson, ReadsWhatHasDefaultValuesAsThose) {
  const auto range = parse_etcd_range(with_header(""));
  ASSERT_TRUE(range);
  EXPECT_TRUE(range->kvs.empty());
  EXPECT_EQ(range->count, 0);
  EXPECT_FALSE(range->more);
  const auto erased = parse_etcd_delete(with_header(R"("deleted":null)"));
  ASSERT_TRUE(erased);
  EXPECT_EQ(erased->deleted, 0);
  // The mapping lets a number be a number, and fields be added.
  const auto more = parse_etcd_delete(with_header(R"("deleted":3,"new_field":[{}])"));
  ASSERT_TRUE(more);
  EXPECT_EQ(more->deleted, 3);
}

TEST(EtcdJson, ReadsTheBranchOfATransactionThatWasTaken) {
  const EtcdTxn txn{
      .success = {EtcdPut{.key = "a"}},
      .failure = {EtcdRange{.keys = EtcdKeys::one("a")}, EtcdDelete{.keys = EtcdKeys::one("b")}}};
  const auto done = parse_etcd_txn(
      txn, with_header(R"("succeeded":true,"responses":[{"response_put":{"header":{"revision":"7"}}}])"));
  ASSERT_TRUE(done) << done.error().detail;
  EXPECT_TRUE(done->succeeded);
  ASSERT_EQ(done->answers.size(), 1U);
  EXPECT_EQ(std::get<EtcdPutAnswer>(done->answers[0]).header.revision, 7);

  const auto other = parse_etcd_txn(txn, with_header(R"("responses":[
      {"response_range":{"header":{"revision":"7"},"kvs":[{"key":"YQ==","mod_revision":"2"}],"count":"1"}},
      {"response_delete_range":{"header":{"revision":"7"},"deleted":"1"}}])"));
  ASSERT_TRUE(other) << other.error().detail;
  EXPECT_FALSE(other->succeeded);
  EXPECT_EQ(std::get<EtcdRangeAnswer>(other->answers.at(0)).kvs.at(0).key, "a");
  EXPECT_EQ(std::get<EtcdDeleteAnswer>(other->answers.at(1)).deleted, 1);

  for (const char* responses :
       {R"("succeeded":true)", R"("succeeded":true,"responses":[])", R"("succeeded":true,"responses":{})",
        R"("succeeded":true,"responses":[{}])", R"("succeeded":true,"responses":[{"response_range":{}}])",
        R"("succeeded":true,"responses":[{"response_put":[]}])",
        R"("succeeded":true,"responses":[{"response_put":{}},{"response_put":{}}])",
        R"("responses":[{"response_put":{}}])", R"("succeeded":"true")"}) {
    const auto wrong = parse_etcd_txn(txn, with_header(responses));
    ASSERT_FALSE(wrong) << responses;
    EXPECT_EQ(wrong.error().kind, EtcdErrorKind::kBadAnswer) << responses;
  }
}

TEST(EtcdJson, RefusesAnswersThatAreMalformedInAnyWay) {
  std::vector<std::string> bodies{"",
                                  "{",
                                  "}",
                                  "null",
                                  "[]",
                                  "\"\"",
                                  "7",
                                  "{}",
                                  "{}{}",
                                  "not JSON",
                                  R"({"header":)",
                                  R"({"header":{}})",
                                  R"({"header":[]})",
                                  R"({"header":"7"})",
                                  R"({"header":{"cluster_id":"0"}})",
                                  R"({"header":{"cluster_id":"-1"}})",
                                  R"({"header":{"cluster_id":"18446744073709551616"}})",
                                  R"({"header":{"cluster_id":"1 "}})",
                                  R"({"header":{"cluster_id":""}})",
                                  R"({"header":{"cluster_id":true}})",
                                  R"({"header":{"cluster_id":1.5}})",
                                  R"({"header":{"cluster_id":"1","revision":"9223372036854775808"}})",
                                  R"({"header":{"cluster_id":"1","revision":"-1"}})",
                                  R"({"header":{"cluster_id":"1","revision":{}}})",
                                  with_header("") + "x",
                                  std::string(1000, '[')};
  for (const char* fields :
       {R"("kvs":{})", R"("kvs":[7])", R"("kvs":[{}])", R"("kvs":[{"key":"YQ=="}])",
        R"("kvs":[{"mod_revision":"1"}])", R"("kvs":[{"key":"Y","mod_revision":"1"}])",
        R"("kvs":[{"key":7,"mod_revision":"1"}])", R"("kvs":[{"key":"YQ==","mod_revision":"1","value":"?"}])",
        R"("kvs":[{"key":"YQ==","mod_revision":"1","version":"x"}])",
        R"("kvs":[{"key":"YQ==","mod_revision":"1","lease":"9223372036854775808"}])", R"("more":"true")",
        R"("more":1)", R"("count":"1.0")", R"("count":1e300)"}) {
    bodies.push_back(with_header(fields));
  }
  for (const std::string& body : bodies) {
    const auto answer = parse_etcd_range(body);
    ASSERT_FALSE(answer) << body;
    EXPECT_EQ(answer.error().kind, EtcdErrorKind::kBadAnswer) << body;
    EXPECT_FALSE(answer.error().detail.empty()) << body;
  }
  EXPECT_FALSE(parse_etcd_put("{}"));
  EXPECT_FALSE(parse_etcd_delete(with_header(R"("deleted":"x")")));
  EXPECT_FALSE(parse_etcd_revoke("[]"));
  EXPECT_FALSE(parse_etcd_grant(with_header("")));
  EXPECT_FALSE(parse_etcd_grant(with_header(R"("ID":"5")")));
  EXPECT_FALSE(parse_etcd_grant(with_header(R"("ID":"5","TTL":"-1")")));
  EXPECT_FALSE(parse_etcd_status(with_header("")));
  EXPECT_FALSE(parse_etcd_status(with_header(R"("version":7)")));
}

TEST(EtcdJson, ReadsLeasesAndTheStatus) {
  const auto granted = parse_etcd_grant(with_header(R"("ID":"7587899253605046542","TTL":"5")"));
  ASSERT_TRUE(granted);
  EXPECT_EQ(granted->lease, EtcdLease{7587899253605046542});
  EXPECT_EQ(granted->ttl, seconds(5));
  const auto kept = parse_etcd_keep_alive(watch_message(R"("ID":"77","TTL":"5")") + "\n");
  ASSERT_TRUE(kept);
  EXPECT_EQ(kept->ttl, seconds(5));
  const auto status = parse_etcd_status(with_header(R"("version":"3.4.23","dbSize":"20480","leader":"5")"));
  ASSERT_TRUE(status);
  EXPECT_EQ(status->version, "3.4.23");
  EXPECT_EQ(status->db_bytes, 20480);
  EXPECT_EQ(status->leader, 5U);
}

TEST(EtcdJson, AKeepAliveWithoutATtlMeansThatTheLeaseIsGone) {
  const auto gone = parse_etcd_keep_alive(watch_message(R"("ID":"77")"));
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().error.kind, EtcdErrorKind::kLeaseNotFound);
  for (const std::string& body :
       {std::string(), std::string("{}"), std::string(R"({"result":7})"),
        watch_message(R"("ID":"77","TTL":"-1")"), std::string(R"({"result":{"ID":"77","TTL":"5"}})")}) {
    const auto wrong = parse_etcd_keep_alive(body);
    ASSERT_FALSE(wrong) << body;
    EXPECT_EQ(wrong.error().error.kind, EtcdErrorKind::kBadAnswer) << body;
  }
}

TEST(EtcdJson, ATokenThatWouldBreakAHeaderIsRefused) {
  const auto token = parse_etcd_token(with_header(R"("token":"wlgjriFfeOoEVkjG.14")"));
  ASSERT_TRUE(token);
  EXPECT_EQ(token->token, "wlgjriFfeOoEVkjG.14");
  for (const char* field : {"", R"("token":"")", R"("token":7)", R"("token":"a b")", R"("token":"a\r\nX: y")",
                            R"("token":"\u00e9")"}) {
    EXPECT_FALSE(parse_etcd_token(with_header(field))) << field;
  }
}

TEST(EtcdJson, ReadsAWatchsMessages) {
  const auto created = parse_etcd_watch(watch_message(R"("created":true)"));
  ASSERT_TRUE(created);
  EXPECT_TRUE(created->created);
  EXPECT_TRUE(created->events.empty());

  const auto progress = parse_etcd_watch(watch_message(R"("watch_id":"-1")"));
  ASSERT_TRUE(progress);
  EXPECT_FALSE(progress->created || progress->canceled);

  const auto changed = parse_etcd_watch(watch_message(
      R"("fragment":true,"events":[{"kv":{"key":"YQ==","create_revision":"7","mod_revision":"7","version":"1","value":"MQ=="}},
         {"type":"DELETE","kv":{"key":"Yg==","mod_revision":"8"}}])"));
  ASSERT_TRUE(changed) << changed.error().error.detail;
  EXPECT_TRUE(changed->fragment);
  ASSERT_EQ(changed->events.size(), 2U);
  EXPECT_EQ(changed->events[0].type, EtcdEvent::Type::kPut);
  EXPECT_EQ(changed->events[0].kv.value, "1");
  EXPECT_EQ(changed->events[1].type, EtcdEvent::Type::kDelete);
  EXPECT_EQ(changed->events[1].kv.mod_revision, 8);
}

TEST(EtcdJson, ReadsWhyAWatchIsCanceled) {
  const auto failure = [](std::string_view fields) {
    const auto message = parse_etcd_watch(watch_message(fields));
    return message && message->failure ? *message->failure : EtcdFailure{};
  };
  const EtcdFailure compacted = failure(R"("canceled":true,"compact_revision":"40")");
  EXPECT_EQ(compacted.error.kind, EtcdErrorKind::kCompacted);
  EXPECT_EQ(compacted.error.compact_revision, 40);
  const EtcdFailure denied = failure(
      R"("created":true,"canceled":true,"cancel_reason":"rpc error: code = PermissionDenied desc = etcdserver: permission denied")");
  EXPECT_EQ(denied.error.kind, EtcdErrorKind::kPermissionDenied);
  EXPECT_EQ(denied.error.detail, R"(etcd says: "etcdserver: permission denied")");
  EXPECT_EQ(
      failure(
          R"("canceled":true,"cancel_reason":"rpc error: code = Unauthenticated desc = etcdserver: invalid auth token")")
          .remedy,
      EtcdRemedy::kRenewToken);
  EXPECT_EQ(failure(R"("canceled":true)").error.kind, EtcdErrorKind::kRefused);
  EXPECT_EQ(failure(R"("canceled":true)").remedy, EtcdRemedy::kMaybeNext);

  const auto ended = parse_etcd_watch(
      R"({"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader","http_status":"Service Unavailable"}})");
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().error.kind, EtcdErrorKind::kUnreachable);
  EXPECT_EQ(ended.error().remedy, EtcdRemedy::kTryNext);
}

TEST(EtcdJson, RefusesWatchMessagesThatAreMalformedInAnyWay) {
  for (const std::string& line :
       {std::string(), std::string("{}"), std::string(R"({"result":[]})"), std::string(R"({"error":"x"})"),
        std::string(R"({"result":{}})"), watch_message("") + "{}", watch_message(R"("events":{})"),
        watch_message(R"("events":[7])"), watch_message(R"("events":[{}])"),
        watch_message(R"("events":[{"kv":7}])"), watch_message(R"("events":[{"kv":{"key":"YQ=="}}])"),
        watch_message(R"("events":[{"type":"MOVE","kv":{"key":"YQ==","mod_revision":"1"}}])"),
        watch_message(R"("events":[{"type":1,"kv":{"key":"YQ==","mod_revision":"1"}}])"),
        watch_message(R"("canceled":"yes")"), watch_message(R"("compact_revision":"x")"),
        watch_message(R"("canceled":true,"cancel_reason":7)")}) {
    const auto message = parse_etcd_watch(line);
    ASSERT_FALSE(message) << line;
    EXPECT_EQ(message.error().error.kind, EtcdErrorKind::kBadAnswer) << line;
  }
}

TEST(EtcdFailures, AreToldApartByWhatEtcdSays) {
  struct Case {
    unsigned status;
    int code;
    const char* message;
    EtcdErrorKind kind;
    EtcdRemedy remedy;
  };
  for (const Case& one : std::vector<Case>{
           {404, 5, "etcdserver: requested lease not found", EtcdErrorKind::kLeaseNotFound,
            EtcdRemedy::kNone},
           {400, 11, "etcdserver: mvcc: required revision has been compacted", EtcdErrorKind::kCompacted,
            EtcdRemedy::kNone},
           {400, 11, "etcdserver: mvcc: required revision is a future revision", EtcdErrorKind::kRefused,
            EtcdRemedy::kNone},
           {429, 8, "etcdserver: mvcc: database space exceeded", EtcdErrorKind::kNoSpace, EtcdRemedy::kNone},
           {429, 8, "etcdserver: too many requests", EtcdErrorKind::kUnreachable, EtcdRemedy::kTryNext},
           {400, 3, "etcdserver: request is too large", EtcdErrorKind::kTooLarge, EtcdRemedy::kNone},
           {401, 16, "etcdserver: invalid auth token", EtcdErrorKind::kUnauthenticated,
            EtcdRemedy::kRenewToken},
           {400, 3, "etcdserver: authentication failed, invalid user ID or password",
            EtcdErrorKind::kUnauthenticated, EtcdRemedy::kNone},
           {400, 3, "etcdserver: user name is empty", EtcdErrorKind::kUnauthenticated,
            EtcdRemedy::kRenewToken},
           {403, 7, "etcdserver: permission denied", EtcdErrorKind::kPermissionDenied, EtcdRemedy::kNone},
           {503, 14, "etcdserver: no leader", EtcdErrorKind::kUnreachable, EtcdRemedy::kTryNext},
           {503, 14, "etcdserver: request timed out", EtcdErrorKind::kUnreachable, EtcdRemedy::kMaybeNext},
           {503, 14, "transport: Error while dialing dial tcp", EtcdErrorKind::kUnreachable,
            EtcdRemedy::kTryNext},
           {500, 2, "something new", EtcdErrorKind::kUnreachable, EtcdRemedy::kMaybeNext},
           {400, 3, "etcdserver: duplicate key given in txn request", EtcdErrorKind::kRefused,
            EtcdRemedy::kNone}}) {
    json::object body;
    body["error"] = one.message;
    body["message"] = one.message;
    body["code"] = one.code;
    json::object newer;
    newer["code"] = one.code;
    newer["message"] = one.message;
    newer["details"] = json::array();
    for (const json::object& object : {body, newer}) {
      const EtcdFailure failure = etcd_failure_of(one.status, json::serialize(object));
      EXPECT_EQ(failure.error.kind, one.kind) << one.message;
      EXPECT_EQ(failure.remedy, one.remedy) << one.message;
      EXPECT_NE(failure.error.detail.find("etcd says: "), std::string::npos);
      EXPECT_FALSE(failure.no_users);
    }
  }
  EXPECT_TRUE(
      etcd_failure_of(412, R"({"error":"etcdserver: authentication is not enabled","code":9})").no_users);
  EXPECT_EQ(
      etcd_failure_of(503, R"({"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader"}})")
          .remedy,
      EtcdRemedy::kTryNext);
}

TEST(EtcdFailures, ThatAreNotEtcdsOwnGoByTheStatus) {
  for (const char* body : {"", "Not Found\n", "<html>", "{}", "[]", R"({"error":7})", R"({"code":5})",
                           R"({"message":"x","code":"y"})"}) {
    const EtcdFailure refused = etcd_failure_of(404, body);
    EXPECT_EQ(refused.error.kind, EtcdErrorKind::kBadAnswer) << body;
    EXPECT_EQ(refused.remedy, EtcdRemedy::kNone) << body;
    const EtcdFailure busy = etcd_failure_of(502, body);
    EXPECT_EQ(busy.error.kind, EtcdErrorKind::kUnreachable) << body;
    EXPECT_EQ(busy.remedy, EtcdRemedy::kMaybeNext) << body;
  }
}

}  // namespace
}  // namespace portway
