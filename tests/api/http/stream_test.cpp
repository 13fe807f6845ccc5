// Answers without an end: sent as they come, and ended by either side, the server's stop or a slow client.
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "tests/api/http/running_server.h"

namespace portway {
namespace {

using namespace test;
using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

/// What the test pushes; touched on the server's thread only.
class Pieces : public BodyStream {
 public:
  void on_ready(std::function<void()> wake) override { wake_ = std::move(wake); }
  std::optional<std::string> read() override {
    ++reads;
    if (fails) throw std::runtime_error("secret");
    if (!pieces.empty()) {
      std::string piece = std::move(pieces.front());
      pieces.pop_front();
      return piece;
    }
    if (ended) return std::nullopt;
    return "";
  }
  bool is_broken() const override { return broken; }
  std::string heartbeat() override {
    ++heartbeats;
    return sign_of_life;
  }
  void push(std::string piece) {
    pieces.push_back(std::move(piece));
    wake();
  }
  void wake() {
    if (wake_) wake_();
  }
  const std::function<void()>& waker() const { return wake_; }

  std::deque<std::string> pieces;
  bool ended = false;
  bool broken = false;
  bool fails = false;
  std::optional<std::uint64_t> bytes;
  int reads = 0;
  int heartbeats = 0;
  std::string sign_of_life;

 private:
  std::function<void()> wake_;
};

/// A server whose every GET /stream is answered with a new stream.
class Streaming : public Running {
 public:
  explicit Streaming(const ServerOptions& options = {}, std::function<void(Pieces&)> prepare = {})
      : Running(options, [this, prepare](const Request& request) {
          if (request.target != "/stream") return echo(request);
          const auto stream = std::make_shared<Pieces>();
          if (prepare) prepare(*stream);
          last_ = stream;
          return Response{.status = 200,
                          .body = {},
                          .content_type = "text/event-stream",
                          .headers = {{"Cache-Control", "no-cache"}},
                          .stream = stream,
                          .stream_bytes = stream->bytes};
        }) {}

  void push(const std::string& piece) {
    with_last([&](Pieces& stream) { stream.push(piece); });
  }
  void with_last(const std::function<void(Pieces&)>& act) {
    on_its_thread([&] {
      const auto stream = last_.lock();
      EXPECT_NE(stream, nullptr) << "the stream has gone";
      if (stream) act(*stream);
      return 0;
    });
  }
  bool last_is_gone() {
    return on_its_thread([this] { return last_.expired(); });
  }

 private:
  std::weak_ptr<Pieces> last_;
};

const std::string kStream = "GET /stream HTTP/1.1\r\nHost: a\r\n\r\n";

std::string received(Client& client, std::size_t size) {
  std::string text;
  while (text.size() < size) text += client.receive_some(size - text.size());
  return text;
}

TEST(Stream, IsSentPieceByPieceUntilItsEnd) {
  Streaming server;
  Client client(server.endpoint());
  Answer head = client.call(kStream);
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.headers["Transfer-Encoding"], "chunked");
  EXPECT_EQ(head.headers["Content-Type"], "text/event-stream");
  EXPECT_EQ(head.headers["Cache-Control"], "no-cache");
  EXPECT_EQ(head.headers["Connection"], "close");
  EXPECT_EQ(head.headers.count("Content-Length"), 0U);
  server.push("data: 1\n\n");
  EXPECT_EQ(received(client, 14), "9\r\ndata: 1\n\n\r\n");
  server.push(std::string(17, 'x'));
  EXPECT_EQ(received(client, 23), "11\r\n" + std::string(17, 'x') + "\r\n");
  EXPECT_EQ(server.stats().streams, 1U);
  server.with_last([](Pieces& stream) {
    stream.ended = true;
    stream.wake();
  });
  EXPECT_EQ(client.receive_to_end(), "0\r\n\r\n");
  EXPECT_EQ(server.stats().streams, 0U);
  EXPECT_TRUE(server.last_is_gone());
}

TEST(Stream, HasWhatWasThereBeforeItsHeadWasSent) {
  Streaming server({}, [](Pieces& stream) {
    stream.pieces = {"a", "b"};
    stream.ended = true;
  });
  Client client(server.endpoint());
  client.call(kStream);
  EXPECT_EQ(client.receive_to_end(), "1\r\na\r\n1\r\nb\r\n0\r\n\r\n");
}

TEST(Stream, OfAKnownLengthThatEndsEarlyEndsTheConnection) {
  for (const std::uint64_t bytes : {2U, 3U}) {
    Streaming server({}, [bytes](Pieces& stream) {
      stream.bytes = bytes;
      stream.pieces = {"a", "b"};
      stream.ended = true;
    });
    Client client(server.endpoint());
    client.send(kStream);
    EXPECT_THAT(client.receive_to_end(), AllOf(HasSubstr("Content-Length: " + std::to_string(bytes) + "\r\n"),
                                               EndsWith("\r\n\r\nab")));
  }
}

TEST(Stream, IsAskedForASignOfLifeWhenItIsSilent) {
  Streaming server({.stream_heartbeat = 20ms}, [](Pieces& stream) { stream.sign_of_life = ":\n"; });
  Client client(server.endpoint());
  client.call(kStream);
  EXPECT_THAT(received(client, 7), "2\r\n:\n\r\n");
}

TEST(Stream, ThatHasNoSignOfLifeStaysSilent) {
  Streaming server({.stream_heartbeat = 5ms});
  Client client(server.endpoint());
  client.call(kStream);
  for (int heartbeats = 0; heartbeats < 3;) {
    server.with_last([&](Pieces& stream) { heartbeats = stream.heartbeats; });
  }
  server.push("x");
  EXPECT_EQ(received(client, 6), "1\r\nx\r\n");
}

TEST(Stream, EndsAtOnceWhenTheClientGoes) {
  Streaming server;
  std::function<void()> late;
  {
    Client client(server.endpoint());
    client.call(kStream);
    server.with_last([&late](Pieces& stream) { late = stream.waker(); });
  }
  server.wait_until([](const ServerStats& stats) { return stats.connections == 0; });
  EXPECT_EQ(server.stats().streams, 0U);
  EXPECT_TRUE(server.last_is_gone());
  server.on_its_thread([&late] {
    late();  // nobody is left
    return 0;
  });
}

TEST(Stream, ThrowsAwayWhatTheClientSendsMeanwhileButNotWithoutEnd) {
  Streaming server;
  Client client(server.endpoint());
  client.call(kStream + kGet);
  client.send(kGet);
  server.push("x");
  EXPECT_EQ(received(client, 6), "1\r\nx\r\n");
  client.send(std::string(8 << 20, 'x'));
  server.wait_until([](const ServerStats& stats) { return stats.connections == 0; });
}

TEST(Stream, IsCutWhenTheClientDoesNotTakeIt) {
  Streaming server({.write_timeout = 50ms},
                   [](Pieces& stream) { stream.pieces = {std::string(64 << 20, 'x')}; });
  Client client(server.endpoint());
  client.send(kStream);
  server.wait_until(
      [](const ServerStats& stats) { return stats.connections_total == 1 && stats.connections == 0; });
  EXPECT_TRUE(server.last_is_gone());
}

// The deadline of a piece that was sent must not end the wait for the next one.
TEST(Stream, MayBeSilentForLongerThanAWriteMayTake) {
  Streaming server({.write_timeout = 20ms, .stream_heartbeat = 100ms}, [](Pieces& stream) {
    stream.pieces = {"a"};
    stream.sign_of_life = ":";
  });
  Client client(server.endpoint());
  client.call(kStream);
  EXPECT_EQ(received(client, 12), "1\r\na\r\n1\r\n:\r\n");
}

TEST(Stream, HasNoBodyForHead) {
  Streaming server;
  Client client(server.endpoint());
  client.send("HEAD /stream HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_EQ(client.receive(true).headers["Content-Type"], "text/event-stream");
  EXPECT_EQ(client.call(kGet).body, "GET /ping ");
  EXPECT_EQ(server.stats().streams, 0U);
}

TEST(Stream, EndsWithTheConnectionInHttp10) {
  Streaming server({}, [](Pieces& stream) {
    stream.pieces = {"a", "b"};
    stream.ended = true;
  });
  Client client(server.endpoint());
  client.send("GET /stream HTTP/1.0\r\n\r\n");
  const std::string answer = client.receive_to_end();
  EXPECT_THAT(answer, StartsWith("HTTP/1.0 200 OK\r\n"));
  EXPECT_THAT(answer, EndsWith("\r\n\r\nab"));
  EXPECT_THAT(answer, Not(HasSubstr("chunked")));
}

TEST(Stream, BeyondTheLimitIsAnswered503) {
  Streaming server({.streams_max = 1});
  Client first(server.endpoint());
  first.call(kStream);
  Client second(server.endpoint());
  Answer answer = second.call(kStream);
  EXPECT_EQ(answer.status, 503);
  EXPECT_THAT(answer.body, HasSubstr("\"connection_limit\""));
  EXPECT_EQ(second.call(kGet).status, 200);
  EXPECT_EQ(server.stats().streams_refused, 1U);
}

TEST(Stream, IsCutIfTheMemoryOfItsReadersAnswersIsUsedUp) {
  AnswerBudget budget(8192);  // half of it is for clients without a key
  Streaming server({.answers = &budget}, [](Pieces& pieces) { pieces.pieces.emplace_back(16384, 'x'); });
  Client client(server.endpoint());
  client.send(kStream);
  EXPECT_THAT(client.receive_to_end(), ::testing::Not(HasSubstr("xxx")));
  EXPECT_EQ(server.on_its_thread([&] { return budget.stats().refused; }), 1u);
}

TEST(Stream, IsNotEvictedForANewcomer) {
  Streaming server({.connections_max = 1});
  Client streaming(server.endpoint());
  streaming.call(kStream);
  Client newcomer(server.endpoint());
  expect_refusal(newcomer, 503, "connection_limit");
  server.push("x");
  EXPECT_EQ(received(streaming, 6), "1\r\nx\r\n");
}

TEST(Stream, IsEndedInFullWhenTheServerStops) {
  Streaming server;
  Client client(server.endpoint());
  client.call(kStream);
  server.stop();
  EXPECT_EQ(client.receive_to_end(), "0\r\n\r\n");
  client.finish();
  server.join();
}

TEST(Stream, IsCutWhenTheServerIsDestroyed) {
  Streaming server;
  Client client(server.endpoint());
  client.call(kStream);
  server.destroy_server();
  EXPECT_TRUE(server.last_is_gone());
  EXPECT_EQ(client.receive_to_end(), "");
  server.join();
}

TEST(Stream, ThatIsBrokenIsCutWithoutItsEnd) {
  Streaming server;
  Client client(server.endpoint());
  client.call(kStream);
  server.with_last([](Pieces& stream) {
    stream.ended = stream.broken = true;
    stream.push("x");
  });
  EXPECT_EQ(client.receive_to_end(), "1\r\nx\r\n");
}

TEST(Stream, ThatIsBrokenResetsTheConnectionInHttp10) {
  Streaming server;
  Client client(server.endpoint());
  client.send("GET /stream HTTP/1.0\r\n\r\n");
  server.wait_until([](const ServerStats& stats) { return stats.streams == 1; });
  server.with_last([](Pieces& stream) {
    stream.ended = stream.broken = true;
    stream.wake();
  });
  char byte = 0;
  while (::recv(client.descriptor(), &byte, 1, 0) == 1) {
  }
  EXPECT_EQ(errno, ECONNRESET);
}

TEST(Stream, ThatFailsIsCutWithoutItsEnd) {
  Streaming server;
  Client client(server.endpoint());
  client.call(kStream);
  server.with_last([](Pieces& stream) {
    stream.fails = true;
    stream.wake();
  });
  EXPECT_EQ(client.receive_to_end(), "");
  EXPECT_EQ(Client(server.endpoint()).call(kGet).status, 200);
}

}  // namespace
}  // namespace portway
