// Calls, with a real etcd.

#include "fleet/etcd.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "tests/fleet/etcd_world.h"
#include "tests/support/certificate.h"

namespace portway::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

EtcdRange range_of(const std::string& prefix) {
  return {.keys = EtcdKeys::with_prefix(prefix)};
}

TEST_F(EtcdTest, PutsReadsAndDeletesBytes) {
  start_one();
  const std::string key = std::string("a\0\xff", 3);
  const std::string value = "\x80\"\n";
  const std::int64_t first = put(key, value);
  EXPECT_EQ(put(key, value), first + 1);
  const auto read = done(etcd().range({.keys = EtcdKeys::one(key)}));
  ASSERT_EQ(read.kvs.size(), 1U);
  EXPECT_EQ(
      read.kvs[0],
      (EtcdKeyValue{
          .key = key, .value = value, .create_revision = first, .mod_revision = first + 1, .version = 2}));
  EXPECT_EQ(read.count, 1);
  EXPECT_EQ(read.header.revision, first + 1);
  EXPECT_EQ(done(etcd().range({.keys = EtcdKeys::one(key), .revision = first})).kvs.at(0).version, 1);
  EXPECT_EQ(
      done(etcd().range({.keys = EtcdKeys::one(key), .content = EtcdContent::kKeysOnly})).kvs.at(0).value,
      "");
  const auto counted = done(etcd().range({.keys = EtcdKeys::one(key), .content = EtcdContent::kCountOnly}));
  EXPECT_TRUE(counted.kvs.empty());
  EXPECT_EQ(counted.count, 1);
  EXPECT_EQ(done(etcd().erase({.keys = EtcdKeys::with_prefix("a")})).deleted, 1);
  EXPECT_EQ(done(etcd().erase({.keys = EtcdKeys::with_prefix("a")})).deleted, 0);
  EXPECT_TRUE(done(etcd().range(range_of(""))).kvs.empty());
}

TEST_F(EtcdTest, ReadsPagesAsTheyWereAtTheFirstOne) {
  start_one();
  for (int i = 0; i < 25; ++i) put("k/" + std::to_string(100 + i), std::to_string(i));
  put("l");
  std::optional<EtcdRange> page = range_of("k/");
  page->limit = 10;
  std::vector<std::string> keys;
  for (int pages = 1; page; ++pages) {
    ASSERT_LE(pages, 3);
    const auto answer = done(etcd().range(*page));
    EXPECT_LE(answer.kvs.size(), 10U);
    for (const EtcdKeyValue& kv : answer.kvs) keys.push_back(kv.key);
    page = next_page(*page, answer);
    if (pages == 1) {
      done(etcd().erase({.keys = EtcdKeys::one("k/120")}));
      put("k/1195");
    }
  }
  ASSERT_EQ(keys.size(), 25U);
  EXPECT_TRUE(std::is_sorted(keys.begin(), keys.end()));
  EXPECT_EQ(keys[20], "k/120");
}

TEST_F(EtcdTest, TakesEitherBranchOfATransaction) {
  start_one();
  const EtcdTxn create{.compares = {{.key = "a", .target = EtcdCompare::Target::kCreateRevision}},
                       .success = {EtcdPut{.key = "a", .value = "1"}, EtcdRange{.keys = EtcdKeys::one("a")}},
                       .failure = {EtcdRange{.keys = EtcdKeys::one("a")}}};
  const auto created = done(etcd().txn(create));
  EXPECT_TRUE(created.succeeded);
  EXPECT_EQ(std::get<EtcdRangeAnswer>(created.answers.at(1)).kvs.at(0).value, "1");
  const auto again = done(etcd().txn(create));
  EXPECT_FALSE(again.succeeded);
  const EtcdKeyValue found = std::get<EtcdRangeAnswer>(again.answers.at(0)).kvs.at(0);
  EXPECT_EQ(found.create_revision, created.header.revision);

  using Target = EtcdCompare::Target;
  using Relation = EtcdCompare::Relation;
  const auto holds = [&](const EtcdCompare& compare) {
    return done(etcd().txn({.compares = {compare}})).succeeded;
  };
  EXPECT_TRUE(holds({.key = "a", .target = Target::kModRevision, .number = found.mod_revision}));
  EXPECT_FALSE(holds({.key = "a",
                      .target = Target::kModRevision,
                      .relation = Relation::kLess,
                      .number = found.mod_revision}));
  EXPECT_TRUE(holds({.key = "a", .target = Target::kVersion, .relation = Relation::kGreater, .number = 0}));
  EXPECT_FALSE(holds({.key = "a", .target = Target::kVersion, .relation = Relation::kNotEqual, .number = 1}));
  EXPECT_TRUE(holds({.key = "a", .target = Target::kValue, .value = "1"}));
  EXPECT_FALSE(holds({.key = "a", .target = Target::kValue, .value = "2"}));
  EXPECT_TRUE(holds({.key = "a", .target = Target::kLease, .number = 0}));

  const auto erased = done(etcd().txn({.success = {EtcdDelete{.keys = EtcdKeys::one("a")}}}));
  EXPECT_EQ(std::get<EtcdDeleteAnswer>(erased.answers.at(0)).deleted, 1);
  const EtcdError twice = failed(etcd().txn({.success = {EtcdPut{.key = "a"}, EtcdPut{.key = "a"}}}));
  EXPECT_EQ(twice.kind, EtcdErrorKind::kRefused);
  EXPECT_NE(twice.detail.find("duplicate key"), std::string::npos) << twice.detail;
}

TEST_F(EtcdTest, KnowsALeaseThatIsGone) {
  start_one();
  const auto granted = done(etcd().grant(seconds(100)));
  EXPECT_EQ(granted.ttl, seconds(100));
  put("a", "1", granted.lease);
  EXPECT_EQ(done(etcd().range({.keys = EtcdKeys::one("a")})).kvs.at(0).lease, granted.lease);
  const auto kept = done(etcd().keep_alive(granted.lease));
  EXPECT_EQ(kept.lease, granted.lease);
  EXPECT_EQ(kept.ttl, seconds(100));
  done(etcd().revoke(granted.lease));
  EXPECT_TRUE(done(etcd().range({.keys = EtcdKeys::one("a")})).kvs.empty());
  EXPECT_EQ(failed(etcd().keep_alive(granted.lease)).kind, EtcdErrorKind::kLeaseNotFound);
  EXPECT_EQ(failed(etcd().revoke(granted.lease)).kind, EtcdErrorKind::kLeaseNotFound);
  EXPECT_EQ(failed(etcd().put({.key = "a", .lease = granted.lease})).kind, EtcdErrorKind::kLeaseNotFound);
}

TEST_F(EtcdTest, SaysThatARevisionIsCompacted) {
  EtcdMember& member = start_one();
  const std::int64_t first = put("a", "1");
  const std::int64_t last = put("a", "2");
  member.control({"compact", std::to_string(last)});
  EXPECT_EQ(failed(etcd().range({.keys = EtcdKeys::one("a"), .revision = first})).kind,
            EtcdErrorKind::kCompacted);
  EXPECT_EQ(failed(etcd().range({.keys = EtcdKeys::one("a"), .revision = last + 100})).kind,
            EtcdErrorKind::kRefused);
}

TEST_F(EtcdTest, RefusesAnAnswerThatIsTooLarge) {
  start_one();
  for (const char* key : {"a", "b", "c"}) put(key, std::string(40'000, 'x'));
  EtcdOptions small = options();
  small.answer_max = 64U << 10;
  const auto bounded = make(small);
  EXPECT_EQ(failed(bounded->range(range_of(""))).kind, EtcdErrorKind::kTooLarge);
  EtcdRange one = range_of("");
  one.limit = 1;
  EXPECT_EQ(done(bounded->range(one)).kvs.size(), 1U);
  // What etcd itself finds too large.
  EXPECT_EQ(failed(etcd().put({.key = "a", .value = std::string(2'000'000, 'x')})).kind,
            EtcdErrorKind::kTooLarge);
}

TEST_F(EtcdTest, SaysThatEtcdIsFull) {
  EtcdMember& member = start_one({.more = {"--quota-backend-bytes", "1000000"}});
  EtcdError error;
  for (int i = 0; i < 100 && error.kind != EtcdErrorKind::kNoSpace; ++i) {
    const auto put = wait(etcd().put({.key = std::to_string(i), .value = std::string(100'000, 'x')}));
    if (!put) error = put.error();
  }
  EXPECT_EQ(error.kind, EtcdErrorKind::kNoSpace) << error.detail;
  EXPECT_EQ(done(etcd().range({.keys = EtcdKeys::one("0")})).count, 1);
  EXPECT_NE(member.control({"alarm", "list"}).find("NOSPACE"), std::string::npos);
}

TEST_F(EtcdTest, FindsOutThatItIsAnotherCluster) {
  EtcdMember& one = start_one();
  const auto status = done(etcd().status());
  EXPECT_EQ(status.version.substr(0, 2), "3.");
  EXPECT_EQ(status.leader, status.header.member_id);
  EXPECT_EQ(etcd().cluster_id(), status.header.cluster_id);

  EtcdOptions named = options();
  named.cluster_id = status.header.cluster_id + 1;
  const auto other = make(named);
  EXPECT_EQ(failed(other->status()).kind, EtcdErrorKind::kWrongCluster);
  EXPECT_EQ(failed(other->watch({.keys = EtcdKeys::one("a")})->next()).kind, EtcdErrorKind::kWrongCluster);

  EtcdMember& two = start_one();
  const auto both = make(options());
  EXPECT_EQ(done(both->status()).header.cluster_id, status.header.cluster_id);
  one.kill();
  const EtcdError error = failed(both->range(range_of("")));
  EXPECT_EQ(error.kind, EtcdErrorKind::kWrongCluster);
  EXPECT_NE(error.detail.find("etcd.endpoints"), std::string::npos) << error.detail;
  two.kill();
}

TEST_F(EtcdTest, GoesOnWithTheMembersThatAreLeft) {
  start_cluster(3);
  const auto first_put = [&] { return etcd().put({.key = "a", .value = "0"}); };
  const std::int64_t first = done_once_led(first_put).header.revision;
  // It is asked first, so it is the one whose loss is noticed.
  members_[0]->kill();
  const auto read = [&] { return etcd().range({.keys = EtcdKeys::one("a")}); };
  EXPECT_EQ(done_once_led(read).kvs.at(0).mod_revision, first);
  for (int i = 0; i < 3; ++i) {
    done_once_led([&] { return etcd().put({.key = "a", .value = std::to_string(i)}); });
  }
  members_[1]->kill();
  // One of three has no leader, soon: nothing is carried out, and nobody waits for long.
  EtcdOptions impatient = options();
  impatient.request_timeout = seconds(5);
  const auto alone = make(impatient);
  EtcdError error;
  for (int tries = 0; tries < 20 && error.detail.find("no leader") == std::string::npos; ++tries) {
    error = failed(alone->put({.key = "a", .value = "lost"}));
    ASSERT_TRUE(error.kind == EtcdErrorKind::kUnreachable || error.kind == EtcdErrorKind::kUnknownOutcome)
        << error.detail;
  }
  EXPECT_EQ(error.kind, EtcdErrorKind::kUnreachable) << error.detail;
  EXPECT_NE(error.detail.find("no leader"), std::string::npos) << error.detail;
  EXPECT_EQ(done(alone->status()).leader, 0U);
}

// ---- Users

class EtcdUsersTest : public EtcdTest {
 protected:
  EtcdMember& start_with_users() {
    EtcdMember& member = start_one();
    member.control({"user", "add", "root:top secret"});
    member.control({"user", "add", "joe:secret"});
    member.control({"role", "add", "own"});
    member.control({"role", "grant-permission", "own", "--prefix=true", "readwrite", "a"});
    member.control({"user", "grant-role", "joe", "own"});
    member.control({"user", "grant-role", "root", "root"});
    return member;
  }
  EtcdOptions as_joe(const std::string& password = "secret") const {
    EtcdOptions out = options();
    out.user = "joe";
    out.password = password;
    return out;
  }
};

TEST_F(EtcdUsersTest, ATokenIsFetchedAgainOnceItIsRefused) {
  EtcdMember& member = start_with_users();
  const auto joe = make(as_joe());
  done(joe->put({.key = "a"}));  // no users are needed yet
  const auto watch = joe->watch({.keys = EtcdKeys::with_prefix("a")});
  done(watch->next());
  member.control({"auth", "enable"});
  const std::int64_t second = done(joe->put({.key = "a"})).header.revision;
  EXPECT_EQ(next_events(*watch).revision, second);
  // Its tokens do not outlive etcd.
  member.kill();
  member.restart();
  const std::int64_t third = done(joe->put({.key = "a"})).header.revision;
  EXPECT_EQ(next_events(*watch).revision, third);
  EXPECT_EQ(done(joe->grant(seconds(100))).ttl, seconds(100));

  EXPECT_EQ(failed(joe->put({.key = "b"})).kind, EtcdErrorKind::kPermissionDenied);
  EXPECT_EQ(failed(joe->range(range_of(""))).kind, EtcdErrorKind::kPermissionDenied);
  EXPECT_EQ(failed(joe->watch({.keys = EtcdKeys::one("b")})->next()).kind, EtcdErrorKind::kPermissionDenied);
}

TEST_F(EtcdUsersTest, AWrongPasswordIsNotRepeated) {
  start_with_users().control({"auth", "enable"});
  const auto wrong = make(as_joe("top secret"));
  const auto nobody = make(options());
  for (const EtcdError& error :
       {failed(wrong->range(range_of("a"))), failed(wrong->put({.key = "a"})),
        failed(wrong->watch({.keys = EtcdKeys::one("a")})->next()), failed(nobody->range(range_of("a"))),
        failed(nobody->put({.key = "a"})), failed(nobody->watch({.keys = EtcdKeys::one("a")})->next())}) {
    EXPECT_EQ(error.kind, EtcdErrorKind::kUnauthenticated) << error.detail;
    EXPECT_EQ(error.detail.find("secret"), std::string::npos) << error.detail;
  }
}

// ---- TLS

class EtcdTlsTest : public EtcdTest {
 protected:
  /// Makes a certificate and returns its file, without its key also as FILE.ca.
  std::string certificate(const std::string& name, const CertificateTimes& times = {}) {
    std::string file = directory_.path() / name;
    make_certificate(file, times);
    std::ifstream in(file);
    const std::string text(std::istreambuf_iterator<char>(in), {});
    const std::string_view last = "-----END CERTIFICATE-----\n";
    std::ofstream(file + ".ca") << text.substr(0, text.find(last) + last.size());
    return file;
  }
  /// On 127.0.0.1, the address in the certificates.
  void start_with_tls(const std::string& certificate, std::vector<std::string> more = {}) {
    more.insert(more.end(), {"--cert-file", certificate, "--key-file", certificate, "--listen-client-urls",
                             "https://127.0.0.1:2379"});
    start_one({.scheme = "https", .more = std::move(more)});
  }
  EtcdOptions trusting(const std::string& certificate, const std::string& host = "127.0.0.1") const {
    EtcdOptions out = options();
    out.endpoints = {"https://" + host + ":2379"};
    out.tls_ca = certificate + ".ca";
    return out;
  }
};

TEST_F(EtcdTlsTest, TrustsTheRightCertificateForTheRightHostOnly) {
  const std::string server = certificate("server.pem");
  const std::string other = certificate("other.pem");
  start_with_tls(server);
  const auto right = make(trusting(server));
  EXPECT_EQ(done(right->put({.key = "a"})).header.revision, 2);
  const auto watch = right->watch({.keys = EtcdKeys::one("a"), .start_revision = 2});
  EXPECT_EQ(next_events(*watch).revision, 2);

  const EtcdError host = failed(make(trusting(server, "localhost"))->put({.key = "a"}));
  EXPECT_EQ(host.kind, EtcdErrorKind::kUnreachable);
  EXPECT_NE(host.detail.find("ostname mismatch"), std::string::npos) << host.detail;
  const EtcdError untrusted = failed(make(trusting(other))->put({.key = "a"}));
  EXPECT_EQ(untrusted.kind, EtcdErrorKind::kUnreachable);
  EXPECT_NE(untrusted.detail.find("not trusted"), std::string::npos) << untrusted.detail;
  EtcdOptions missing = trusting(server);
  missing.tls_ca = directory_.path() / "missing.pem";
  EXPECT_NE(failed(make(missing)->status()).detail.find("etcd.tls_ca: " + missing.tls_ca), std::string::npos);
  EtcdOptions clear = trusting(server);
  clear.tls_ca = "";
  clear.endpoints = {"http://127.0.0.1:2379"};
  const EtcdError refused = failed(make(clear)->status());
  EXPECT_TRUE(refused.kind == EtcdErrorKind::kUnreachable || refused.kind == EtcdErrorKind::kBadAnswer)
      << refused.detail;
  EXPECT_EQ(done(right->range(range_of(""))).count, 1);
}

TEST_F(EtcdTlsTest, SaysThatTheServersCertificateHasExpired) {
  const std::string expired = certificate("server.pem", {.ends = seconds(-60)});
  start_with_tls(expired);
  const EtcdError error = failed(make(trusting(expired))->status());
  EXPECT_EQ(error.kind, EtcdErrorKind::kUnreachable);
  EXPECT_NE(error.detail.find("certificate has expired"), std::string::npos) << error.detail;
}

TEST_F(EtcdTlsTest, ShowsItsOwnCertificateAndTakesARenewedOne) {
  const std::string server = certificate("server.pem");
  const std::string renewed = certificate("renewed.pem");
  const std::string own = certificate("own.pem", {.ends = seconds(-60)});
  const std::string all = directory_.path() / "all.pem";
  for (const std::string& file : {server, renewed}) {
    std::ofstream(all, std::ios::app) << std::ifstream(file + ".ca").rdbuf();
  }
  start_with_tls(server, {"--client-cert-auth", "--trusted-ca-file", all});

  const EtcdError without = failed(make(trusting(server))->put({.key = "a"}));
  EXPECT_EQ(without.kind, EtcdErrorKind::kUnreachable) << without.detail;
  EXPECT_NE(without.detail.find("refuses this client's certificate"), std::string::npos) << without.detail;

  EtcdOptions with = trusting(server);
  with.tls_certificate = with.tls_private_key = own;
  const auto etcd = make(with);
  const EtcdError expired = failed(etcd->put({.key = "a"}));
  EXPECT_EQ(expired.kind, EtcdErrorKind::kUnreachable);
  EXPECT_NE(expired.detail.find("etcd.tls_certificate: " + own + ": it has expired"), std::string::npos)
      << expired.detail;
  std::filesystem::rename(renewed, own);
  EXPECT_EQ(done(etcd->put({.key = "a"})).header.revision, 2);
}

}  // namespace
}  // namespace portway::test
