#include "gateway/node_client.h"

#include <filesystem>
#include <stdexcept>

#include "tests/gateway/node_client_world.h"
#include "tests/support/certificate.h"
#include "tests/support/temporary_directory.h"

namespace portway::test {
namespace {

namespace asio = boost::asio;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST_F(NodeClientTest, AsksANodeAndGivesItsWholeAnswer) {
  std::string accept;
  std::string host;
  const std::string url = serve_at_once([&](const Request& request) {
    accept = request.header("accept");
    host = request.header("host");
    return Response{.status = 201,
                    .body = request.method + " " + request.target + " " + request.body,
                    .content_type = "text/plain",
                    .headers = {{"ETag", "\"1\""}, {"Link", "a"}, {"Link", "b"}}};
  });
  client();
  const NodeAnswer answer = answer_of(
      url + "/", {.method = "POST",
                  .target = "/v1/forwards?a=%20",
                  .headers = {{"Accept", "x\r\nInjected: y"}, {"host", "other"}, {"Content-Length", "99"}},
                  .body = "{}"});
  EXPECT_EQ(answer.status, 201U);
  EXPECT_EQ(answer.body, "POST /v1/forwards?a=%20 {}");
  EXPECT_EQ(answer.stream, nullptr);
  EXPECT_EQ(answer.header("etag"), "\"1\"");
  EXPECT_EQ(answer.header("X-Missing"), "");
  std::vector<std::string> links;
  for (const auto& [name, value] : answer.headers) {
    if (name == "Link") links.push_back(value);
  }
  EXPECT_EQ(links, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(accept, "x  Injected: y");
  EXPECT_EQ("http://" + host, url);
}

TEST_F(NodeClientTest, KeepsTheConnectionForTheNextRequest) {
  const std::string url = serve_at_once([](const Request& request) {
    Response response;
    response.status = request.method == "DELETE" ? 204 : 200;
    response.body = "12345";
    return response;
  });
  client();
  EXPECT_EQ(answer_of(url).body, "12345");
  const NodeAnswer head = answer_of(url, {.method = "HEAD", .whole_max = 1});
  EXPECT_EQ(head.header("Content-Length"), "5");
  EXPECT_EQ(head.body, "");
  EXPECT_EQ(answer_of(url, {.method = "DELETE"}).status, 204U);
  EXPECT_EQ(answer_of(url).body, "12345");
  const NodeClientStats stats = client_->stats();
  EXPECT_EQ(stats.requests, 4U);
  EXPECT_EQ(stats.connections_opened, 1U);
  EXPECT_EQ(stats.connections_open, 1U);
  EXPECT_EQ(stats.connections_idle, 1U);
}

TEST_F(NodeClientTest, GivesJsonOfUnknownLengthWholeUpToABound) {
  const std::string url = serve_at_once([](const Request&) {
    Response response;
    response.pieces = [left = 200]() mutable {
      return left-- > 0 ? std::string(1000, static_cast<char>('a' + left % 26)) : std::string();
    };
    return response;
  });
  client();
  const NodeAnswer whole = answer_of(url);
  EXPECT_EQ(whole.body.size(), 200'000U);
  const NodeAnswer larger = answer_of(url, {.whole_max = 100'000});
  ASSERT_NE(larger.stream, nullptr);
  EXPECT_EQ(larger.stream_bytes, std::nullopt);
  EXPECT_EQ(rest_of(*larger.stream), whole.body);
  EXPECT_LE(largest_piece_, 64U << 10);
  EXPECT_EQ(client_->stats().connections_opened, 1U);
  EXPECT_EQ(client_->stats().connections_idle, 1U);
}

TEST_F(NodeClientTest, StreamsALongBody) {
  const std::string body(3'000'000, 'x');
  const std::string url = always(sized_answer(body));
  client();
  const NodeAnswer answer = answer_of(url);
  EXPECT_EQ(answer.stream_bytes, body.size());
  EXPECT_EQ(answer.body, "");
  EXPECT_EQ(rest_of(*answer.stream), body);
  EXPECT_LE(largest_piece_, 64U << 10);
}

TEST_F(NodeClientTest, ReadsNoFurtherThanItsReaderTakes) {
  std::size_t sent = 0;
  const RawNode& node = raw([&sent](RawPeer& peer) -> asio::awaitable<void> {
    co_await peer.request();
    co_await peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
    const std::string piece(100'000, 'x');
    while (sent < 100'000'000 && co_await peer.send(piece)) sent += piece.size();
  });
  client();
  NodeAnswer answer = answer_of(node.url());
  context_.restart();
  // The node writes until the sockets' buffers are full.
  while (context_.poll() > 0) context_.restart();
  const std::size_t full = sent;
  EXPECT_LT(full, 90'000'000U);
  context_.restart();
  context_.poll();
  EXPECT_EQ(sent, full);
  EXPECT_EQ(client_->stats().connections_open, 1U);
  // Its end closes the connection.
  answer.stream.reset();
  EXPECT_EQ(client_->stats().connections_open, 0U);
  run_until([&] { return node.ended() == 1; });
}

TEST_F(NodeClientTest, ASlowNodeTakesOnlyItsShareOfTheConnections) {
  NodeClientOptions options = patient();
  options.connections_per_node_max = 2;
  options.connections_max = 3;
  client(options);
  const std::string slow = silent();
  const std::string quick = always(sized_answer("ok"));
  std::vector<NodeResult<NodeAnswer>> answers;
  begin(slow, answers);
  begin(slow, answers);
  run_until([&] { return raw_[0]->connections() == 2; });
  EXPECT_EQ(error_of(slow, true), NodeErrorKind::kBusy);
  EXPECT_EQ(answer_of(quick).body, "ok");
  const std::string other = silent();
  begin(other, answers);
  run_until([&] { return raw_[2]->connections() == 1; });
  EXPECT_EQ(error_of(quick, false), NodeErrorKind::kBusy);
  EXPECT_TRUE(answers.empty());
  EXPECT_EQ(raw_[0]->connections(), 2);
  client_->close();
  run_until([&] { return answers.size() == 3; });
}

TEST_F(NodeClientTest, AnythingButHttpIsABadAnswer) {
  client();
  for (const std::string& answer :
       {std::string("SSH-2.0-OpenSSH_9.2\r\n\r\n"), std::string("\0\1\2\3\r\n\r\n", 8),
        std::string("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"),
        std::string("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        std::string("HTTP/1.1 100 Continue\r\n\r\n"), chunked_head("application/json") + "zz\r\n",
        "HTTP/1.1 200 OK\r\nX: " + std::string(100'000, 'x')}) {
    for (const bool repeatable : {false, true}) {
      EXPECT_EQ(error_of(always(answer), repeatable), NodeErrorKind::kBadAnswer) << answer.substr(0, 80);
    }
  }
  EXPECT_EQ(client_->stats().connections_open, 0U);
}

TEST_F(NodeClientTest, ALengthThatIsWrongIsNoWholeAnswer) {
  client();
  const std::string cut = once("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc");
  EXPECT_EQ(error_of(cut, true), NodeErrorKind::kUnreachable);
  EXPECT_EQ(error_of(cut, false), NodeErrorKind::kUnknownOutcome);
  // What is behind the answer is not taken for the next one.
  const std::string longer = always("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabHTTP/1.1 500 No\r\n\r\n");
  EXPECT_EQ(answer_of(longer).body, "ab");
  EXPECT_EQ(answer_of(longer).body, "ab");
  EXPECT_EQ(client_->stats().connections_idle, 0U);
}

TEST_F(NodeClientTest, SaysWhetherARequestWasCarriedOut) {
  NodeClientOptions options = patient();
  options.answer_timeout = 50ms;
  client(options);
  const std::string nobody = dead();
  EXPECT_EQ(error_of(nobody, false), NodeErrorKind::kUnreachable);
  EXPECT_EQ(error_of(nobody, true), NodeErrorKind::kUnreachable);
  const std::string slow = silent();
  EXPECT_EQ(error_of(slow, true), NodeErrorKind::kTimeout);
  EXPECT_EQ(error_of(slow, false), NodeErrorKind::kUnknownOutcome);
  EXPECT_EQ(raw_[0]->connections(), 2);
  options.answer_timeout = 60s;
  client(options);
  const auto late = ask(slow, {.repeatable = true, .answer_timeout = 20ms});
  EXPECT_EQ(late.error().kind, NodeErrorKind::kTimeout);
  // A new connection that breaks is not tried again.
  const std::string gone = once("");
  EXPECT_EQ(error_of(gone, true), NodeErrorKind::kUnreachable);
  EXPECT_EQ(error_of(gone, false), NodeErrorKind::kUnknownOutcome);
  EXPECT_EQ(raw_[1]->connections(), 2);
}

TEST_F(NodeClientTest, AKeptConnectionThatBreaksIsReplacedOnlyIfThatIsSafe) {
  struct Case {
    std::string second;  // what the connection brings after the first answer
    bool repeatable;
    bool succeeds;
  };
  for (const Case& one :
       {Case{"", true, true}, Case{"", false, false}, Case{"HTTP/1.1 200 OK\r\n", true, false}}) {
    RawNode& node = raw([&one](RawPeer& peer) -> asio::awaitable<void> {
      co_await peer.request();
      co_await peer.send(sized_answer("ok"));
      co_await peer.request();
      co_await peer.send(one.second);
    });
    client();
    EXPECT_EQ(answer_of(node.url()).body, "ok");
    EXPECT_EQ(client_->stats().connections_idle, 1U);
    const auto again = ask(node.url(), {.repeatable = one.repeatable});
    EXPECT_EQ(again.has_value(), one.succeeds);
    EXPECT_EQ(node.connections(), one.succeeds ? 2 : 1);
    if (!again) {
      EXPECT_EQ(again.error().kind,
                one.repeatable ? NodeErrorKind::kUnreachable : NodeErrorKind::kUnknownOutcome);
    }
    client_.reset();
    run_until([&] { return node.ended() == node.connections(); });
  }
}

TEST_F(NodeClientTest, AKeptConnectionThatTheNodeHasClosedIsNotAskedOn) {
  RawNode& node = raw([](RawPeer& peer) -> asio::awaitable<void> {
    co_await peer.request();
    co_await peer.send(sized_answer("ok"));
  });
  client();
  for (int i = 1; i <= 3; ++i) {
    EXPECT_EQ(answer_of(node.url()).body, "ok");
    run_until([&] { return node.ended() == i; });
  }
  EXPECT_EQ(node.connections(), 3);
}

TEST_F(NodeClientTest, KeepsFewIdleConnectionsAndNotForLong) {
  NodeClientOptions options = patient();
  options.idle_per_node_max = 1;
  options.idle_max = 2;
  options.idle_timeout = 50ms;
  client(options);
  const std::string first = always(sized_answer("ok"));
  std::vector<NodeResult<NodeAnswer>> answers;
  for (int i = 0; i < 3; ++i) begin(first, answers);
  run_until([&] { return answers.size() == 3; });
  EXPECT_EQ(client_->stats().connections_opened, 3U);
  EXPECT_LE(client_->stats().connections_idle, 1U);
  answer_of(always(sized_answer("ok")));
  answer_of(always(sized_answer("ok")));
  EXPECT_LE(client_->stats().connections_idle, 2U);
  run_until([&] { return client_->stats().connections_idle == 0; });
  EXPECT_EQ(client_->stats().connections_open, 0U);
}

TEST_F(NodeClientTest, AStreamOfEventsEndsCleanlyOrIsBroken) {
  client();
  const std::string begun = chunked_head("text/event-stream") + "3\r\n:a\n\r\n";
  const NodeAnswer whole = answer_of(always(begun + "0\r\n\r\n"));
  EXPECT_EQ(rest_of(*whole.stream), ":a\n");
  const NodeAnswer cut = answer_of(once(begun));
  EXPECT_THROW(rest_of(*cut.stream), std::runtime_error);
  const NodeAnswer short_body = answer_of(once("HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\nabc"));
  EXPECT_THROW(rest_of(*short_body.stream), std::runtime_error);
  EXPECT_EQ(client_->stats().streams_broken, 2U);
  EXPECT_EQ(client_->stats().connections_open, client_->stats().connections_idle);
}

TEST_F(NodeClientTest, AStreamThatIsSilentForTooLongIsBroken) {
  NodeClientOptions options = patient();
  options.events_silence_max = 30ms;
  client(options);
  const NodeAnswer events = answer_of(always(chunked_head("text/event-stream")));
  const NodeAnswer capture = answer_of(always(chunked_head("application/vnd.tcpdump.pcap")));
  EXPECT_THROW(rest_of(*events.stream), std::runtime_error);
  EXPECT_EQ(capture.stream->read(), "");  // it may be silent for longer
  EXPECT_EQ(client_->stats().connections_open, 1U);
}

TEST_F(NodeClientTest, AServerCutsAnAnswerThatItsNodeDidNotFinish) {
  client();
  const std::string node = once(chunked_head("text/event-stream") + "3\r\n:a\n\r\n");
  const std::string gateway = serve([&](const Request&) -> asio::awaitable<Response> {
    NodeRequest request;
    const auto answer = co_await client_->send(node, std::move(request));
    Response response;
    response.content_type = answer.value().header("Content-Type");
    response.stream = answer.value().stream;
    co_return response;
  });
  const auto caller = NodeClient::create(context_.get_executor(), patient()).value();
  const auto answer = wait(caller->send(gateway, {}));
  ASSERT_TRUE(answer);
  EXPECT_THROW(rest_of(*answer->stream), std::runtime_error);
  EXPECT_EQ(caller->stats().streams_broken, 1U);
}

TEST_F(NodeClientTest, EverythingEndsWithTheClient) {
  client();
  const std::string slow = silent();
  NodeAnswer streaming = answer_of(always(chunked_head("text/event-stream")));
  std::vector<NodeResult<NodeAnswer>> answers;
  begin(slow, answers);
  run_until([&] { return raw_[0]->connections() == 1; });
  auto never_begun = client_->send(slow, {});
  client_.reset();
  EXPECT_TRUE(answers.empty());
  run_until([&] { return answers.size() == 1; });
  EXPECT_EQ(answers[0].error().kind, NodeErrorKind::kClosed);
  EXPECT_EQ(wait(std::move(never_begun)).error().kind, NodeErrorKind::kClosed);
  EXPECT_THROW(rest_of(*streaming.stream), std::runtime_error);
  run_until([&] { return raw_[0]->ended() == 1 && raw_[1]->ended() == 1; });
}

TEST_F(NodeClientTest, AStreamMayBeDestroyedByWhomItWakesOrBeforeItBegins) {
  NodeClientOptions options = patient();
  options.events_silence_max = 30ms;
  client(options);
  const std::string url = always(chunked_head("text/event-stream"));
  answer_of(url).stream.reset();
  NodeAnswer answer = answer_of(url);
  answer.stream->on_ready([&] { answer.stream.reset(); });
  run_until([&] { return answer.stream == nullptr; });
  run_until([&] { return raw_[0]->ended() == 2; });
  EXPECT_EQ(client_->stats().connections_open, 0U);
  EXPECT_EQ(client_->stats().streams_broken, 1U);
}

TEST_F(NodeClientTest, RefusesWhatIsNoUrlOfANodeOrNoRequest) {
  client();
  for (const char* url : {"", "node-1", "ftp://node-1", "http://a/v1", "http://joe:secret@a:1"}) {
    const auto answer = ask(url);
    ASSERT_FALSE(answer) << url;
    EXPECT_EQ(answer.error().kind, NodeErrorKind::kUnreachable);
    EXPECT_THAT(answer.error().detail, Not(HasSubstr("secret")));
  }
  const std::string node = always(sized_answer("ok"));
  EXPECT_EQ(ask(node, {.target = "/a b"}).error().kind, NodeErrorKind::kUnreachable);
  EXPECT_EQ(ask(node, {.target = "/\r\nX: y"}).error().kind, NodeErrorKind::kUnreachable);
  EXPECT_EQ(ask(node, {.method = ""}).error().kind, NodeErrorKind::kUnreachable);
  EXPECT_EQ(client_->stats().connections_opened, 0U);
}

class NodeClientTlsTest : public NodeClientTest {
 protected:
  std::string certificate(const std::string& name) {
    const std::string file = directory_.path() / name;
    make_certificate(file);
    return file;
  }
  NodeClientOptions trusting(const std::string& ca, const std::string& own = "") {
    NodeClientOptions options = patient();
    options.tls = {.ca = ca,
                   .certificate = own,
                   .private_key = own,
                   .key_prefix = "nodes.",
                   .untrusted_remedy = "see nodes.tls_ca",
                   .refused_remedy = "give it one of the nodes' authority"};
    return options;
  }
  std::string detail_of(const std::string& url, bool repeatable = false) {
    const auto answer = ask(url, {.repeatable = repeatable});
    if (answer) return "it has answered";
    EXPECT_EQ(answer.error().kind, NodeErrorKind::kUnreachable) << answer.error().detail;
    return answer.error().detail;
  }

  TemporaryDirectory directory_;
};

TEST_F(NodeClientTlsTest, ProvesWhoItIsAndChecksTheNode) {
  const std::string node = certificate("node.pem");
  const std::string own = certificate("own.pem");
  const std::string other = certificate("other.pem");
  const std::string url =
      serve_at_once([](const Request&) { return Response{.body = "ok", .headers = {}}; },
                    {.tls = {.certificate = node, .private_key = node, .client_ca = own}});
  client(trusting(node, own));
  EXPECT_EQ(answer_of(url).body, "ok");
  EXPECT_EQ(answer_of(url).body, "ok");
  EXPECT_EQ(client_->stats().connections_opened, 1U);
  const std::string by_name = "https://localhost" + url.substr(url.rfind(':'));
  EXPECT_THAT(detail_of(by_name), AllOf(HasSubstr(by_name), HasSubstr("see nodes.tls_ca")));
  client(trusting(other, own));
  EXPECT_THAT(detail_of(url), HasSubstr("see nodes.tls_ca"));
  for (const std::string& wrong : {std::string(), other}) {
    client(trusting(node, wrong));
    for (const bool repeatable : {false, true}) {
      EXPECT_THAT(detail_of(url, repeatable), AllOf(HasSubstr(url), HasSubstr("of the nodes' authority")));
    }
  }
}

TEST_F(NodeClientTlsTest, UsesRenewedFiles) {
  const std::string node = certificate("node.pem");
  const std::string ca = certificate("ca.pem");
  const std::string url = serve_at_once([](const Request&) { return Response{.body = "ok", .headers = {}}; },
                                        {.tls = {.certificate = node, .private_key = node}});
  client(trusting(ca));
  EXPECT_THAT(detail_of(url), HasSubstr("not trusted"));
  std::filesystem::copy_file(node, ca, std::filesystem::copy_options::overwrite_existing);
  EXPECT_EQ(answer_of(url).body, "ok");
}

TEST_F(NodeClientTlsTest, IsNotMadeWithFilesThatDoNotFit) {
  const std::string own = certificate("own.pem");
  const auto refusal = [&](NodeClientOptions options) {
    const auto made = NodeClient::create(context_.get_executor(), std::move(options));
    return made ? std::string("it was made") : made.error().detail;
  };
  EXPECT_THAT(refusal(trusting("/none")), HasSubstr("nodes.tls_ca: /none: "));
  NodeClientOptions half = trusting(own, own);
  half.tls.private_key = "";
  EXPECT_THAT(refusal(half), HasSubstr("nodes.tls_private_key: is missing"));
  EXPECT_THAT(refusal(trusting(own, "/none")), HasSubstr("nodes.tls_certificate: /none: "));
}

}  // namespace
}  // namespace portway::test
