// What a real etcd does not do on request: a server that is scripted.

#include <gtest/gtest.h>

#include <array>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <charconv>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/into.h"
#include "fleet/etcd.h"
#include "fleet/etcd_pages.h"
#include "tests/support/run.h"

namespace portway::test {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using std::chrono::milliseconds;
using std::chrono::seconds;
using Clock = std::chrono::steady_clock;

std::string http_answer(std::string_view body, std::string_view status = "200 OK") {
  return "HTTP/1.1 " + std::string(status) + "\r\nContent-Length: " + std::to_string(body.size()) +
         "\r\n\r\n" + std::string(body);
}

std::string header_of_cluster(int id, int revision = 7) {
  return R"("header":{"cluster_id":")" + std::to_string(id) + R"(","revision":")" + std::to_string(revision) +
         "\"}";
}

std::string answer_of_cluster(int id) {
  return http_answer("{" + header_of_cluster(id) + "}");
}

std::string chunk(const std::string& line) {
  std::array<char, 16> size{};
  const auto end = std::to_chars(size.begin(), size.end(), line.size() + 1, 16).ptr;
  return std::string(size.begin(), end) + "\r\n" + line + "\n\r\n";
}

/// A line of a watch's stream.
std::string message(const std::string& fields, int revision = 7) {
  return chunk(R"({"result":{)" + header_of_cluster(1, revision) + (fields.empty() ? "" : ",") + fields +
               "}}");
}

std::string put_event(int revision) {
  return R"({"kv":{"key":"YQ==","mod_revision":")" + std::to_string(revision) + "\"}}";
}

const std::string kStream = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const std::string kCreated = R"("created":true)";

/// What a server does with a connection.
class FakePeer {
 public:
  explicit FakePeer(tcp::socket socket) : socket_(std::move(socket)) {}

  /// The next request with its body, or its first chunk; empty at the end.
  asio::awaitable<std::string> request() {
    boost::system::error_code error;
    std::string head = co_await until("\r\n\r\n", error);
    constexpr std::string_view kLength = "Content-Length: ";
    const auto at = head.find(kLength);
    if (error) co_return "";
    if (at == std::string::npos) co_return head + co_await until("\r\n\r\n", error, "}\r\n");
    const std::size_t size = std::stoul(head.substr(at + kLength.size()));
    while (received_.size() < size && !error) co_await more(error);
    head += received_.substr(0, size);
    received_.erase(0, size);
    co_return error ? "" : head;
  }
  /// The next chunk of a request that stays open; empty at the end.
  asio::awaitable<std::string> chunk() {
    boost::system::error_code error;
    std::string text = co_await until("}\r\n", error);
    co_return error ? "" : text;
  }
  asio::awaitable<void> send(std::string bytes) {
    boost::system::error_code ignored;
    co_await asio::async_write(socket_, asio::buffer(bytes), into(ignored));
  }
  /// Until the client closes.
  asio::awaitable<void> wait_for_end() {
    boost::system::error_code error;
    while (!error) co_await more(error);
  }

 private:
  asio::awaitable<std::string> until(std::string_view end, boost::system::error_code& error,
                                     std::string_view other = {}) {
    for (;;) {
      auto at = received_.find(end);
      std::size_t size = end.size();
      if (at == std::string::npos && !other.empty()) {
        at = received_.find(other);
        size = other.size();
      }
      if (at != std::string::npos) {
        std::string out = received_.substr(0, at + size);
        received_.erase(0, at + size);
        co_return out;
      }
      if (error) co_return "";
      co_await more(error);
    }
  }
  asio::awaitable<void> more(boost::system::error_code& error) {
    std::array<char, 4096> buffer;
    const std::size_t size = co_await socket_.async_read_some(asio::buffer(buffer), into(error));
    received_.append(buffer.data(), size);
  }

  tcp::socket socket_;
  std::string received_;
};

/// Plays the script with each connection, until that returns.
class FakeEtcd {
 public:
  using Script = std::function<asio::awaitable<void>(FakePeer& peer)>;

  FakeEtcd(asio::io_context& context, Script script)
      : acceptor_(context, tcp::endpoint(asio::ip::address_v4::loopback(), 0)), script_(std::move(script)) {
    asio::co_spawn(context, accept(), asio::detached);
  }

  std::string url() const { return "http://127.0.0.1:" + std::to_string(acceptor_.local_endpoint().port()); }
  int connections() const { return connections_; }

 private:
  asio::awaitable<void> accept() {
    for (;;) {
      boost::system::error_code error;
      tcp::socket socket = co_await acceptor_.async_accept(into(error));
      if (error) co_return;
      ++connections_;
      asio::co_spawn(acceptor_.get_executor(), play(script_, std::move(socket)), asio::detached);
    }
  }
  static asio::awaitable<void> play(Script script, tcp::socket socket) {
    FakePeer peer(std::move(socket));
    co_await script(peer);
  }

  tcp::acceptor acceptor_;
  const Script script_;
  int connections_ = 0;
};

FakeEtcd::Script always(const std::string& answer) {
  return [answer](FakePeer& peer) -> asio::awaitable<void> {
    while (!(co_await peer.request()).empty()) co_await peer.send(answer);
  };
}
/// Reads a request and closes.
FakeEtcd::Script hangs_up() {
  return [](FakePeer& peer) -> asio::awaitable<void> { co_await peer.request(); };
}
FakeEtcd::Script silent() {
  return [](FakePeer& peer) -> asio::awaitable<void> { co_await peer.wait_for_end(); };
}

class EtcdFaultsTest : public testing::Test {
 protected:
  std::string fake(FakeEtcd::Script script) {
    servers_.push_back(std::make_unique<FakeEtcd>(context_, std::move(script)));
    return servers_.back()->url();
  }
  /// Where nobody listens.
  std::string dead() {
    const tcp::acceptor bound(context_, tcp::endpoint(asio::ip::address_v4::loopback(), 0));
    return "http://127.0.0.1:" + std::to_string(bound.local_endpoint().port());
  }
  Etcd& connect(std::vector<std::string> endpoints, milliseconds timeout = seconds(20)) {
    EtcdOptions options;
    options.endpoints = std::move(endpoints);
    options.request_timeout = timeout;
    options.connect_timeout = timeout;
    options.silence_max = milliseconds(50);
    options.answer_max = 64U << 10;
    etcd_ = Etcd::create(context_.get_executor(), std::move(options)).value();
    return *etcd_;
  }
  template <class Value>
  Value wait(asio::awaitable<Value> what) {
    return run(context_, std::move(what));
  }
  EtcdErrorKind range_fails() {
    const auto answer = wait(etcd_->range({.keys = EtcdKeys::one("a")}));
    EXPECT_FALSE(answer);
    return answer ? EtcdErrorKind::kClosed : answer.error().kind;
  }
  EtcdErrorKind put_fails() {
    const auto answer = wait(etcd_->put({.key = "a"}));
    EXPECT_FALSE(answer);
    return answer ? EtcdErrorKind::kClosed : answer.error().kind;
  }
  int connections(std::size_t server) const { return servers_[server]->connections(); }

  asio::io_context context_{1};
  std::vector<std::unique_ptr<FakeEtcd>> servers_;
  std::unique_ptr<Etcd> etcd_;
};

TEST_F(EtcdFaultsTest, AnythingButAnAnswerOfEtcdIsABadAnswer) {
  for (const std::string& answer :
       {http_answer("{\"header\":"), http_answer("[]"), http_answer(""),
        http_answer("<html>", "404 Not Found"), std::string("SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        std::string("\0\1\2\3\r\n\r\n", 8), std::string("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"),
        std::string("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        "HTTP/1.1 200 OK\r\nX: " + std::string(100'000, 'x'),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + std::string(200'000, 'x')}) {
    connect({fake(always(answer))});
    EXPECT_EQ(range_fails(), EtcdErrorKind::kBadAnswer) << answer.substr(0, 80);
    EXPECT_EQ(put_fails(), EtcdErrorKind::kBadAnswer) << answer.substr(0, 80);
  }
}

TEST_F(EtcdFaultsTest, ALargeAnswerIsNotReadToItsEnd) {
  connect(
      {fake(always("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n" + std::string(100'000, 'x')))});
  EXPECT_EQ(range_fails(), EtcdErrorKind::kTooLarge);
  connect({fake(always("HTTP/1.1 200 OK\r\n\r\n" + std::string(100'000, 'x')))});
  EXPECT_EQ(range_fails(), EtcdErrorKind::kTooLarge);
}

TEST_F(EtcdFaultsTest, APageThatIsTooLargeMakesOnlyTheNextOnesSmall) {
  std::vector<std::string> limits;
  const auto script = [&](FakePeer& peer) -> asio::awaitable<void> {
    for (std::string request = co_await peer.request(); !request.empty(); request = co_await peer.request()) {
      const std::string_view name = R"("limit":")";
      const auto begin = request.find(name) + name.size();
      limits.push_back(request.substr(begin, request.find('"', begin) - begin));
      if (limits.size() <= 2) {
        co_await peer.send("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n" +
                           std::string(100'000, 'x'));
        continue;
      }
      const std::string more = limits.size() < 6 ? R"(,"more":true)" : "";
      co_await peer.send(
          http_answer("{" + header_of_cluster(1) + more + R"(,"kvs":[{"key":"YQ==","mod_revision":"1"}]})"));
    }
  };
  connect({fake(script)});
  int keys = 0;
  const auto count = [&](EtcdKeyValue&&) {
    ++keys;
    return true;
  };
  EXPECT_TRUE(wait(read_all(*etcd_, EtcdKeys::with_prefix("a"), 400, count)));
  EXPECT_EQ(limits, (std::vector<std::string>{"400", "200", "100", "200", "400", "400"}));
  EXPECT_EQ(keys, 4);
}

TEST_F(EtcdFaultsTest, WhatChangesNothingIsAskedOfEachEndpointOnce) {
  const std::string busy = http_answer(R"({"error":"x","message":"etcdserver: request timed out","code":14})",
                                       "503 Service Unavailable");
  const std::string a = fake(hangs_up());
  const std::string b = fake(always(busy));
  const std::string c = fake(always(answer_of_cluster(1)));
  const std::string nobody = dead();
  connect({nobody, a, b, c});
  EXPECT_TRUE(wait(etcd_->range({.keys = EtcdKeys::one("a")})));
  EXPECT_EQ(connections(0), 1);
  EXPECT_EQ(connections(1), 1);
  // It stays with the one that works, on the same connection.
  EXPECT_TRUE(wait(etcd_->range({.keys = EtcdKeys::one("a")})));
  EXPECT_TRUE(wait(etcd_->put({.key = "a"})));
  EXPECT_EQ(connections(0), 1);
  EXPECT_EQ(connections(2), 1);

  connect({nobody, a, b});
  const auto answer = wait(etcd_->range({.keys = EtcdKeys::one("a")}));
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().kind, EtcdErrorKind::kUnreachable);
  for (const std::string& url : {nobody, a, b}) {
    EXPECT_NE(answer.error().detail.find(url), std::string::npos) << answer.error().detail;
  }
  EXPECT_EQ(connections(0), 2);
  EXPECT_EQ(connections(1), 2);
}

TEST_F(EtcdFaultsTest, AWriteIsRepeatedOnlyIfItWasNotCarriedOut) {
  const std::string works = fake(always(answer_of_cluster(1)));
  const std::string no_leader =
      fake(always(http_answer(R"({"error":"etcdserver: no leader","code":14})", "503 Service Unavailable")));
  connect({dead(), no_leader, works});
  EXPECT_TRUE(wait(etcd_->put({.key = "a"})));

  const std::string gone = fake(hangs_up());
  const std::string slow = fake(always(
      http_answer(R"({"error":"etcdserver: request timed out","code":14})", "503 Service Unavailable")));
  for (const std::string& url : {gone, slow}) {
    connect({url, works});
    const auto answer = wait(etcd_->put({.key = "a"}));
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().kind, EtcdErrorKind::kUnknownOutcome) << answer.error().detail;
    EXPECT_NE(answer.error().detail.find("unknown"), std::string::npos) << answer.error().detail;
    EXPECT_TRUE(wait(etcd_->put({.key = "a"})));  // at the next one
  }
  EXPECT_EQ(connections(2), 1);
  connect({dead(), no_leader});
  EXPECT_EQ(put_fails(), EtcdErrorKind::kUnreachable);
}

TEST_F(EtcdFaultsTest, AnIdleConnectionThatEtcdHasClosedIsNotAskedOn) {
  // It answers once, and closes without saying so.
  const std::string once = fake([](FakePeer& peer) -> asio::awaitable<void> {
    co_await peer.request();
    co_await peer.send(answer_of_cluster(1));
  });
  connect({once});
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(wait(etcd_->put({.key = "a"})));
    context_.poll();
  }
  EXPECT_EQ(connections(0), 3);
}

TEST_F(EtcdFaultsTest, SilenceEndsInTime) {
  const auto begun = Clock::now();
  connect({fake(silent()), fake(silent())}, milliseconds(100));
  EXPECT_EQ(range_fails(), EtcdErrorKind::kTimeout);
  EXPECT_GE(Clock::now() - begun, milliseconds(90));
  EXPECT_EQ(put_fails(), EtcdErrorKind::kUnknownOutcome);
  EXPECT_EQ(connections(0), 2);
  EXPECT_EQ(connections(1), 1);
  EXPECT_LT(Clock::now() - begun, seconds(10));
  // The first one leaves some of the time to the next one.
  connect({fake(silent()), fake(always(answer_of_cluster(1)))}, seconds(2));
  EXPECT_TRUE(wait(etcd_->range({.keys = EtcdKeys::one("a")})));
}

TEST_F(EtcdFaultsTest, AnotherClusterIsAnError) {
  connect({fake(always(answer_of_cluster(1))), fake(always(answer_of_cluster(2)))});
  EXPECT_TRUE(wait(etcd_->put({.key = "a"})));
  EXPECT_EQ(etcd_->cluster_id(), 1U);
  connect({fake([](FakePeer& peer) -> asio::awaitable<void> {
    for (int id = 1; !(co_await peer.request()).empty(); ++id) co_await peer.send(answer_of_cluster(id));
  })});
  EXPECT_TRUE(wait(etcd_->put({.key = "a"})));
  EXPECT_EQ(put_fails(), EtcdErrorKind::kWrongCluster);
}

// ---- Watches

TEST_F(EtcdFaultsTest, AWatchGoesOnBehindItsLastEvent) {
  std::vector<std::string> requests;
  int opened = 0;
  const std::string url = fake([&](FakePeer& peer) -> asio::awaitable<void> {
    requests.push_back(co_await peer.request());
    ++opened;
    co_await peer.send(kStream + message(kCreated));
    if (opened == 1) co_await peer.send(message(R"("events":[)" + put_event(8) + "]") + "7f\r\n{\"resu");
    // Some of it is known already.
    if (opened == 2) {
      co_await peer.send(message(R"("events":[)" + put_event(8) + "," + put_event(9) + "]", 12));
      // A notice that runs ahead of its events.
      co_await peer.send(message(R"("watch_id":"-1")", 20));
    }
    if (opened == 3) {
      co_await peer.send(
          message(R"("fragment":true,"events":[)" + put_event(10) + "," + put_event(11) + "]"));
    }
    if (opened == 4) {
      co_await peer.send(message(R"("fragment":true,"events":[)" + put_event(11) + "]"));
      co_await peer.send(message(R"("watch_id":"-1")", 20));
      co_await peer.send(message(R"("events":[)" + put_event(11) + "," + put_event(12) + "]"));
      co_await peer.wait_for_end();
    }
  });
  connect({url});
  const auto watch = etcd_->watch({.keys = EtcdKeys::one("a")});
  std::vector<std::vector<std::int64_t>> batches;
  while (batches.size() < 4) {
    const auto batch = wait(watch->next());
    if (!batch || batch->events.empty()) continue;
    auto& revisions = batches.emplace_back();
    for (const EtcdEvent& event : batch->events) revisions.push_back(event.kv.mod_revision);
    EXPECT_EQ(batch->revision, revisions.back());
    EXPECT_EQ(watch->next_revision(), revisions.back() + 1);
  }
  EXPECT_EQ(batches, (std::vector<std::vector<std::int64_t>>{{8}, {9}, {10}, {11, 11, 12}}));
  ASSERT_EQ(requests.size(), 4U);
  EXPECT_EQ(requests[0].find("start_revision"), std::string::npos) << requests[0];
  EXPECT_NE(requests[0].find("Connection: close\r\n"), std::string::npos) << requests[0];
  EXPECT_NE(requests[1].find(R"("start_revision":"9")"), std::string::npos) << requests[1];
  EXPECT_NE(requests[2].find(R"("start_revision":"10")"), std::string::npos) << requests[2];
  EXPECT_NE(requests[3].find(R"("start_revision":"11")"), std::string::npos) << requests[3];
}

TEST_F(EtcdFaultsTest, AWatchAsksForASignOfLifeAndThenLeaves) {
  std::vector<std::string> asked;
  const std::string deaf = fake([&](FakePeer& peer) -> asio::awaitable<void> {
    co_await peer.request();
    co_await peer.send(kStream + message(kCreated));
    // It answers twice, and then no more.
    for (int i = 0; i < 3; ++i) {
      asked.push_back(co_await peer.chunk());
      if (i < 2) co_await peer.send(message(R"("watch_id":"-1")"));
    }
    co_await peer.wait_for_end();
  });
  const std::string alive = fake([&](FakePeer& peer) -> asio::awaitable<void> {
    co_await peer.request();
    co_await peer.send(kStream + message(kCreated) + message(R"("events":[)" + put_event(8) + "]"));
    co_await peer.wait_for_end();
  });
  connect({deaf, alive}, seconds(2));
  const auto watch = etcd_->watch({.keys = EtcdKeys::one("a")});
  ASSERT_TRUE(wait(watch->next()));
  const auto reopened = wait(watch->next());
  ASSERT_TRUE(reopened) << reopened.error().detail;
  EXPECT_TRUE(reopened->events.empty());
  ASSERT_EQ(asked.size(), 3U);
  EXPECT_NE(asked[0].find(R"({"progress_request":{}})"), std::string::npos) << asked[0];
  EXPECT_EQ(wait(watch->next())->revision, 8);
  EXPECT_EQ(connections(0), 1);
}

TEST_F(EtcdFaultsTest, AWatchThatNobodyAnswersSaysSoAndGoesOn) {
  bool answers = false;
  const std::string url = fake([&](FakePeer& peer) -> asio::awaitable<void> {
    co_await peer.request();
    if (answers) co_await peer.send(kStream + message(kCreated));
    co_await peer.wait_for_end();
  });
  connect({url, dead()}, milliseconds(200));
  const auto watch = etcd_->watch({.keys = EtcdKeys::one("a")});
  const auto begun = Clock::now();
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(wait(watch->next()));
  // Nothing before the first two tries, 0.1 s before the third one.
  EXPECT_GE(Clock::now() - begun, milliseconds(100));
  answers = true;
  auto batch = wait(watch->next());
  for (int i = 0; i < 10 && !batch; ++i) batch = wait(watch->next());
  EXPECT_TRUE(batch);
}

TEST_F(EtcdFaultsTest, AWatchsMessagesAreCheckedAsAnswersAre) {
  const auto first_error = [&](const std::string& sent) {
    connect({fake([sent](FakePeer& peer) -> asio::awaitable<void> {
      co_await peer.request();
      co_await peer.send(sent);
      co_await peer.wait_for_end();
    })});
    const auto watch = etcd_->watch({.keys = EtcdKeys::one("a")});
    auto batch = wait(watch->next());
    if (batch) batch = wait(watch->next());
    return batch ? EtcdErrorKind::kClosed : batch.error().kind;
  };
  EXPECT_EQ(first_error(kStream + message("")), EtcdErrorKind::kBadAnswer);
  EXPECT_EQ(first_error(kStream + chunk("not JSON")), EtcdErrorKind::kBadAnswer);
  EXPECT_EQ(first_error("SSH-2.0\r\n\r\n"), EtcdErrorKind::kBadAnswer);
  EXPECT_EQ(first_error(http_answer("Not Found", "404 Not Found")), EtcdErrorKind::kBadAnswer);
  EXPECT_EQ(first_error(kStream + chunk(std::string(70'000, ' '))), EtcdErrorKind::kTooLarge);
  const std::string created = kStream + message(kCreated);
  EXPECT_EQ(first_error(created + chunk(std::string(70'000, ' '))), EtcdErrorKind::kTooLarge);
  EXPECT_EQ(first_error(created + chunk(R"({"result":{"header":{"cluster_id":"2"}}})")),
            EtcdErrorKind::kWrongCluster);
  EXPECT_EQ(first_error(created + message(R"("canceled":true,"compact_revision":"9")")),
            EtcdErrorKind::kCompacted);
  const std::string many = message(R"("fragment":true,"events":[)" + put_event(8) + "," + put_event(8) + "]");
  std::string endless = created;
  for (int i = 0; i < 1000; ++i) endless += many;
  EXPECT_EQ(first_error(endless), EtcdErrorKind::kTooLarge);
}

TEST_F(EtcdFaultsTest, NothingIsReadAheadOfASlowConsumer) {
  std::size_t sent = 0;
  const std::string event = message(R"("events":[)" + put_event(8) + "]");
  const std::string padding =
      event + chunk(R"({"result":{)" + header_of_cluster(1) + "}" + std::string(30'000, ' ') + "}");
  const std::string url = fake([&](FakePeer& peer) -> asio::awaitable<void> {
    co_await peer.request();
    co_await peer.send(kStream + message(kCreated));
    for (int i = 0; i < 2000; ++i) {
      co_await peer.send(padding);
      sent += padding.size();
    }
  });
  connect({url});
  const auto watch = etcd_->watch({.keys = EtcdKeys::one("a")});
  ASSERT_TRUE(wait(watch->next()));
  context_.restart();
  // The server writes until the sockets' buffers are full.
  while (context_.poll() > 0) context_.restart();
  const std::size_t full = sent;
  EXPECT_GT(full, 0U);
  EXPECT_LT(full, 2000 * padding.size());
  context_.restart();
  context_.poll();
  EXPECT_EQ(sent, full);
  EXPECT_EQ(wait(watch->next())->revision, 8);
}

TEST_F(EtcdFaultsTest, CallsUnderWayEndWhenTheClientIsDestroyed) {
  connect({fake(silent())});
  std::vector<EtcdErrorKind> ends;
  const EtcdRange asked{.keys = EtcdKeys::one("a")};
  const auto waiting = [&]() -> asio::awaitable<void> {
    const auto answer = co_await etcd_->range(asked);
    ends.push_back(answer ? EtcdErrorKind::kRefused : answer.error().kind);
  };
  const auto watching = [&](std::unique_ptr<EtcdWatch> watch) -> asio::awaitable<void> {
    const auto batch = co_await watch->next();
    ends.push_back(batch ? EtcdErrorKind::kRefused : batch.error().kind);
  };
  asio::co_spawn(context_, waiting, asio::detached);
  asio::co_spawn(context_, watching(etcd_->watch({.keys = EtcdKeys::one("a")})), asio::detached);
  while (connections(0) < 2) context_.run_one();
  // A call that has not begun holds what it needs.
  auto never_begun = etcd_->range({.keys = EtcdKeys::one("a")});
  etcd_.reset();
  EXPECT_TRUE(ends.empty());
  while (ends.size() < 2) context_.run_one();
  EXPECT_EQ(ends, (std::vector{EtcdErrorKind::kClosed, EtcdErrorKind::kClosed}));
  const auto late = wait(std::move(never_begun));
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().kind, EtcdErrorKind::kClosed);
}

TEST_F(EtcdFaultsTest, AWatchEndsWithItsObjectWhileItPauses) {
  connect({dead()});
  auto watch = etcd_->watch({.keys = EtcdKeys::one("a")});
  for (int i = 0; i < 4; ++i) EXPECT_FALSE(wait(watch->next()));
  std::vector<EtcdErrorKind> ends;
  const auto watching = [&]() -> asio::awaitable<void> {
    const auto batch = co_await watch->next();
    ends.push_back(batch ? EtcdErrorKind::kRefused : batch.error().kind);
  };
  asio::co_spawn(context_, watching, asio::detached);
  context_.restart();
  context_.poll();
  EXPECT_TRUE(ends.empty());
  watch.reset();
  while (ends.empty()) context_.run_one();
  EXPECT_EQ(ends, std::vector{EtcdErrorKind::kClosed});
}

}  // namespace
}  // namespace portway::test
