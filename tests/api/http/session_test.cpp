// Requests and their answers over real sockets on loopback: what any client, good or bad, gets to see.
#include "api/http/session.h"

#include <any>
#include <atomic>
#include <stdexcept>
#include <string>

#include <fmt/format.h>

#include "base/forward.h"
#include "tests/api/http/running_server.h"

namespace portway {
namespace {

using namespace std::chrono_literals;
using namespace test;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(Session, AnswersWithTheHeadersOfEveryAnswer) {
  Running server;
  Client client(server.endpoint());
  Answer answer = client.call("GET /a?b=%20c HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.body, "GET /a?b=%20c ");
  EXPECT_EQ(answer.headers["Server"], "portway");
  EXPECT_EQ(answer.headers["Cache-Control"], "no-store");
  EXPECT_EQ(answer.headers["X-Content-Type-Options"], "nosniff");
  EXPECT_EQ(answer.headers["Content-Type"], "application/json");
  EXPECT_THAT(answer.headers["Date"], ::testing::EndsWith(" GMT"));
  const auto id = parse_uuid(answer.headers["X-Request-Id"]);
  ASSERT_TRUE(id);
  EXPECT_EQ(id->data[6] >> 4, 7);
}

TEST(Session, PassesTheRequestToTheHandler) {
  Request seen;
  Running server({}, [&seen](const Request& request) {
    seen = request;
    return Response{
        .status = 201, .body = "{}", .content_type = "text/plain", .headers = {{"Location", "/x/1"}}};
  });
  Client client(server.endpoint());
  Answer answer = client.call(
      "POST /x HTTP/1.1\r\nHost: a\r\nX-REQUEST-id: client.7_a-B\r\nX-Two: 1\r\nx-two: 2\r\n"
      "Content-Length: 5\r\n\r\nhello");
  EXPECT_EQ(answer.status, 201);
  EXPECT_EQ(answer.headers["Location"], "/x/1");
  EXPECT_EQ(answer.headers["Content-Type"], "text/plain");
  EXPECT_EQ(answer.headers["X-Request-Id"], "client.7_a-B");
  EXPECT_EQ(seen.id, "client.7_a-B");
  EXPECT_EQ(seen.method, "POST");
  EXPECT_EQ(seen.target, "/x");
  EXPECT_EQ(seen.header("x-two"), "2");
  EXPECT_EQ(seen.header("host"), "a");
  EXPECT_EQ(seen.body, "hello");
  EXPECT_EQ(seen.peer.to_string(), "127.0.0.1");
}

TEST(Session, ReplacesARequestIdThatDoesNotFit) {
  Running server;
  Client client(server.endpoint());
  for (const std::string& id :
       {std::string("a b"), std::string("<x>"), std::string(65, 'a'), std::string("\xc3\xa9")}) {
    Answer answer = client.call("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: " + id + "\r\n\r\n");
    EXPECT_TRUE(parse_uuid(answer.headers["X-Request-Id"])) << id;
  }
}

TEST(Session, KeepsTheConnectionForTheNextRequest) {
  Running server;
  Client client(server.endpoint());
  for (int i = 0; i < 3; ++i) EXPECT_EQ(client.call(kGet).status, 200);
  EXPECT_EQ(server.stats().connections_total, 1u);
}

TEST(Session, ClosesWhenTheClientAsksForIt) {
  Running server;
  Client client(server.endpoint());
  Answer answer = client.call("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(answer.headers["Connection"], "close");
  EXPECT_EQ(client.receive_to_end(), "");
}

TEST(Session, AnswersPipelinedRequestsInTheirOrder) {
  Running server;
  Client client(server.endpoint());
  std::string requests;
  for (int i = 0; i < 300; ++i) {
    requests += "POST /" + std::to_string(i) + " HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx";
  }
  client.send(requests);
  for (int i = 0; i < 300; ++i) EXPECT_EQ(client.receive().body, "POST /" + std::to_string(i) + " x");
}

TEST(Session, IgnoresEmptyLinesBeforeARequest) {
  Running server;
  Client client(server.endpoint());
  client.send_bytewise("\r\n\r\n");
  EXPECT_EQ(client.call(kGet).status, 200);
}

TEST(Session, SpeaksHttp10) {
  Running server;
  Client client(server.endpoint());
  Answer kept = client.call("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  EXPECT_EQ(kept.headers["Connection"], "keep-alive");
  client.send("GET / HTTP/1.0\r\n\r\n");
  EXPECT_THAT(client.receive_to_end(), AllOf(StartsWith("HTTP/1.0 200 OK\r\n"), HasSubstr("\r\n\r\nGET / ")));
}

/// A body of `count` pieces, each of which is the same `piece`.
NextPiece pieces_of(std::string piece, int count) {
  return [piece = std::move(piece), count]() mutable { return count-- > 0 ? piece : std::string(); };
}

TEST(Session, SendsABodyThatIsMadeInPiecesAndKeepsTheConnection) {
  Running server(
      {}, [](const Request&) { return Response{.body = {}, .headers = {}, .pieces = pieces_of("abc", 3)}; });
  constexpr std::string_view kBody = "\r\n\r\n3\r\nabc\r\n3\r\nabc\r\n3\r\nabc\r\n0\r\n\r\n";
  Client client(server.endpoint());
  client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
  Answer head = client.receive(true);
  EXPECT_EQ(head.headers["Transfer-Encoding"], "chunked");
  EXPECT_EQ(head.headers.count("Content-Length"), 0U);
  client.send(kGet + "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  const std::string both = client.receive_to_end();
  EXPECT_THAT(both, HasSubstr(std::string(kBody) + "HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(both, ::testing::EndsWith(std::string(kBody)));
  Client old(server.endpoint());
  old.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  EXPECT_THAT(old.receive_to_end(),
              AllOf(StartsWith("HTTP/1.0 200 OK\r\n"), ::testing::EndsWith("\r\n\r\nabcabcabc")));
}

TEST(Session, MakesNoMorePiecesThanItsClientReads) {
  std::atomic<int> made = 0;
  Running server({.write_timeout = 300ms}, [&made](const Request&) {
    return Response{.body = {}, .headers = {}, .pieces = [&made] {
                      ++made;
                      return std::string(16 * 1024, 'x');
                    }};
  });
  Client client(server.endpoint());
  client.send(kGet);
  server.wait_until([](const ServerStats& stats) { return stats.connections == 1; });
  server.wait_until([](const ServerStats& stats) { return stats.connections == 0; });
  EXPECT_LT(made, 2000) << "what the buffers of two sockets hold; and it ends after write_timeout";
}

TEST(Session, RefusesAnswersBeyondTheBudgetUntilThoseBeforeAreRead) {
  AnswerBudget budget(std::size_t{64} << 20);
  constexpr std::size_t kLarge = std::size_t{20} << 20;  // more than the buffers of two sockets hold
  Running server({.answers = &budget}, [](const Request& request) {
    return Response{.body = request.target == "/small" ? std::string("{}") : std::string(kLarge, ' '),
                    .headers = {},
                    .repeatable = request.method == "GET"};
  });
  Client first(server.endpoint());
  first.send(kGet);
  ASSERT_TRUE(first.wait_readable(kDeadline));
  Client second(server.endpoint());
  Answer refused = second.call(kGet);
  EXPECT_EQ(refused.status, 503);
  EXPECT_THAT(refused.body, HasSubstr("resource_exhausted"));
  EXPECT_EQ(refused.headers["Retry-After"], "5");
  EXPECT_EQ(second.call("GET /small HTTP/1.1\r\nHost: a\r\n\r\n").status, 200);
  EXPECT_EQ(second.call("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").status, 200)
      << "what it has changed would stay unnoticed";
  EXPECT_EQ(first.receive().body.size(), kLarge);
  EXPECT_EQ(second.call(kGet).status, 200);
}

/// Refuses POSTs; the others are the caller's whom the header X-Caller names.
RequestAdmission no_posts(const Request& request) {
  if (request.method == "POST") return {.refusal = make_response(401, "no")};
  return {.payer = std::string(request.header("x-caller")), .pass = request.target};
}

TEST(Session, RefusesARequestWithoutReadingItsBody) {
  int handled = 0;
  Running server({.gate = no_posts}, [&handled](const Request& request) {
    ++handled;
    EXPECT_EQ(std::any_cast<std::string>(request.pass), request.target);
    return echo(request);
  });
  for (const char* const expects : {"", "Expect: 100-continue\r\n"}) {
    Client client(server.endpoint());
    Answer answer =
        client.call(std::string("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n") + expects + "\r\n");
    EXPECT_EQ(answer.status, 401);
    EXPECT_EQ(answer.headers["Connection"], "close");
    client.finish();
    EXPECT_EQ(client.receive_to_end(), "");
  }
  EXPECT_EQ(handled, 0);
  Client client(server.endpoint());
  EXPECT_EQ(client.call("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab").body, "PUT /x ab");
}

TEST(Session, KeepsAConnectionWhoseRefusedBodyIsHereAlready) {
  Running server({.gate = no_posts});
  Client client(server.endpoint());
  Answer answer = client.call("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab");
  EXPECT_EQ(answer.status, 401);
  EXPECT_NE(answer.headers["Connection"], "close");
  EXPECT_EQ(client.call(kGet).body, "GET /ping ");
}

TEST(Session, AsksTheGateOnlyAboutBodiesAndSurvivesItsFailure) {
  Running server({.gate = [](const Request&) -> RequestAdmission { throw std::runtime_error("broken"); }});
  Client client(server.endpoint());
  EXPECT_EQ(client.call(kGet).status, 200);
  EXPECT_EQ(client.call("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n").status, 500);
}

TEST(Session, BoundsTheBodiesThatAreBeingReadOfACallerAndOfAll) {
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  AnswerBudget budget(64 * kMiB);
  Running server(
      {.body_max_bytes = 32 * kMiB, .bodies = &budget, .gate = no_posts},
      [](const Request& request) { return make_response(200, std::to_string(request.body.size())); });
  const auto begin = [&](Client& client, std::string_view caller, std::string_view framing) {
    client.send(fmt::format("PUT / HTTP/1.1\r\nHost: a\r\nX-Caller: {}\r\n{}\r\n\r\n", caller, framing));
  };
  const auto taken = [&] { return server.on_its_thread([&] { return budget.stats().bytes; }); };
  const auto until_taken = [&](std::size_t bytes) {
    server.wait_until([&](const ServerStats&) { return budget.stats().bytes >= bytes; });
  };
  const std::string of_20_mib = fmt::format("Content-Length: {}", 20 * kMiB);
  Client first(server.endpoint());
  begin(first, "alice", of_20_mib);
  until_taken(20 * kMiB - 4096);
  Client second(server.endpoint());
  begin(second, "alice", of_20_mib);
  expect_refusal(second, 503, "resource_exhausted");
  Client other(server.endpoint());
  begin(other, "bob", of_20_mib);
  until_taken(40 * kMiB - 8192);
  first.send(std::string(20 * kMiB, 'x'));
  EXPECT_EQ(first.receive().body, std::to_string(20 * kMiB));
  other.send(std::string(20 * kMiB, 'x'));
  EXPECT_EQ(other.receive().body, std::to_string(20 * kMiB));
  EXPECT_EQ(taken(), 0u);
  // Nobody says how much is to come.
  Client chunked(server.endpoint());
  begin(chunked, "alice", "Transfer-Encoding: chunked");
  chunked.send(fmt::format("{:x}\r\n{}", 8 * kMiB, std::string(8 * kMiB, 'x')));
  until_taken(8 * kMiB);
  EXPECT_LE(taken(), 16 * kMiB + 16384);
  chunked.send("\r\n0\r\n\r\n");
  EXPECT_EQ(chunked.receive().body, std::to_string(8 * kMiB));
  EXPECT_EQ(taken(), 0u);
}

TEST(Session, SendsNoBodyForHeadAnd204) {
  Running server({}, [](const Request& request) {
    return request.method == "DELETE" ? make_response(204, "") : echo(request);
  });
  Client client(server.endpoint());
  client.send("HEAD /ping HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_EQ(client.receive(true).headers["Content-Length"], "11");
  Answer gone = client.call("DELETE / HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_EQ(gone.status, 204);
  EXPECT_EQ(gone.headers.count("Content-Length"), 0u);
  EXPECT_EQ(gone.headers.count("Content-Type"), 0u);
  EXPECT_EQ(client.call(kGet).body, "GET /ping ") << "no stray byte came in between";
}

TEST(Session, AsksForTheBodyOfAClientThatExpectsIt) {
  Running server;
  Client client(server.endpoint());
  Answer go_on =
      client.call("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n");
  EXPECT_EQ(go_on.status, 100);
  EXPECT_EQ(client.call("ab").body, "PUT / ab");
}

TEST(Session, DoesNotAskForABodyThatIsTooLarge) {
  Running server;
  Client client(server.endpoint());
  client.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 65537\r\n\r\n");
  expect_refusal(client, 413, "body_too_large");
}

TEST(Session, ReadsRequestsThatComeByteByByte) {
  Running server;
  Client client(server.endpoint());
  client.send_bytewise("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabcdef");
  EXPECT_EQ(client.receive().body, "POST /slow abcdef");
  client.send_bytewise(
      "POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
      "3;ext=1\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n");
  EXPECT_EQ(client.receive().body, "POST /chunks abcdef");
}

TEST(Session, TakesNoHeadersFromATrailer) {
  Running server({}, [](const Request& request) {
    return make_response(200, request.body + std::string(request.header("authorization")));
  });
  Client client(server.endpoint());
  Answer answer = client.call(
      "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
      "1\r\nx\r\n0\r\nAuthorization: Bearer stolen\r\n\r\n");
  EXPECT_EQ(answer.body, "x");
}

TEST(Session, TakesABodyOfExactlyTheLimit) {
  Running server({.body_max_bytes = 1000});
  Client client(server.endpoint());
  const std::string body(1000, 'b');
  EXPECT_EQ(client.call("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + body).body,
            "PUT / " + body);
  EXPECT_EQ(client
                .call("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" + body +
                      "\r\n0\r\n\r\n")
                .body,
            "PUT / " + body);
}

TEST(Session, RefusesABodyOverTheLimitHoweverItIsFramed) {
  Running server({.body_max_bytes = 1000});
  Client counted(server.endpoint());
  counted.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n");
  expect_refusal(counted, 413, "body_too_large");
  Client chunked(server.endpoint());
  chunked.send("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1f4\r\n" +
               std::string(500, 'b') + "\r\n1f5\r\n");
  expect_refusal(chunked, 413, "body_too_large");
  EXPECT_EQ(server.stats().requests_refused, 2u);
}

// Closing with bytes unread resets the connection, and the client loses the answer that says why.
TEST(Session, LetsTheClientReadTheRefusalOfABodyItIsStillSending) {
  Running server;
  Client client(server.endpoint());
  client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n" + std::string(500000, 'b'));
  expect_refusal(client, 413, "body_too_large");
}

TEST(Session, RefusesAHeaderThatIsTooLarge) {
  Running server({.header_max_bytes = 2000});
  Client one_field(server.endpoint());
  one_field.send("GET / HTTP/1.1\r\nHost: a\r\nX: " + std::string(2000, 'x'));
  expect_refusal(one_field, 431, "header_too_large");
  Client request_line(server.endpoint());
  request_line.send("GET /" + std::string(2000, 'x'));
  expect_refusal(request_line, 431, "header_too_large");
}

// Beast's limit applies only to what it has not parsed yet, and it parses each field once the next line
// has begun: with the right segments the limit is never reached.
TEST(Session, CountsTheHeaderFieldsThatAreParsedAlready) {
  Running server({.header_max_bytes = 2000});
  Client client(server.endpoint());
  client.send("GET / HTTP/1.1\r\nHost: a\r\nX");
  int sent = 0;
  while (!client.wait_readable(1ms) && ++sent < 1000) client.send(": " + std::string(95, 'x') + "\r\nX");
  EXPECT_LT(sent, 1000);
  expect_refusal(client, 431, "header_too_large");
}

TEST(Session, RefusesATrailerOrChunkExtensionWithoutEnd) {
  Running server({.header_max_bytes = 2000});
  const std::string head = "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (const std::string& start : {std::string("0\r\nX: "), std::string("1;x=")}) {
    Client client(server.endpoint());
    client.send(head + start + std::string(20000, 'x'));
    expect_refusal(client, 431, "header_too_large");
  }
}

TEST(Session, RefusesWhatIsNotHttp) {
  Running server;
  for (const std::string request : {
           "hello\r\n\r\n",
           "\x16\x03\x01\x02",  // a TLS handshake
           "GET  HTTP/1.1\r\nHost: a\r\n\r\n",
           "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
           "GET / HTTP/1.1\nHost: a\n\n",
           "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
           "GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n",
           "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
           "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
       }) {
    SCOPED_TRACE(in_quotes(request));
    Client client(server.endpoint());
    client.send(request);
    client.finish();
    expect_refusal(client, 400, "malformed_request");
  }
}

TEST(Session, RefusesWhatTwoReadersCouldUnderstandDifferently) {
  Running server;
  for (const std::string fields : {
           "",
           "Host: a\r\nHost: b\r\n",
           "Host: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n",
           "Host: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
           "Host: a\r\nContent-Length: 1, 1\r\n",
           "Host: a\r\nContent-Length: +1\r\n",
           "Host: a\r\nContent-Length: -1\r\n",
           "Host: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
           "Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n",
           "Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
           "Host: a\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
           "Host: a\r\nTransfer-Encoding: gzip, chunked\r\n",
           "Host: a\r\nTransfer-Encoding: xchunked\r\nContent-Length: 1\r\n",
           "Host: a\r\nTransfer-Encoding: identity\r\n",
           "Host: a\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n",
       }) {
    SCOPED_TRACE(in_quotes(fields));
    Client client(server.endpoint());
    client.send("POST / HTTP/1.1\r\n" + fields + "\r\n1\r\nx\r\n0\r\n\r\n");
    expect_refusal(client, 400, "malformed_request");
  }
  Client old(server.endpoint());
  old.send("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
  expect_refusal(old, 400, "malformed_request");
}

TEST(Session, AnswersWhatCameBeforeTheBadRequest) {
  Running server;
  Client client(server.endpoint());
  client.send(kGet + "bad\r\n\r\n" + kGet);
  EXPECT_EQ(client.receive().status, 200);
  expect_refusal(client, 400, "malformed_request");
}

TEST(Session, AnswersAClientThatHasFinishedSending) {
  Running server;
  Client client(server.endpoint());
  client.send(kGet);
  client.finish();
  EXPECT_EQ(client.receive().status, 200);
  EXPECT_EQ(client.receive_to_end(), "");
}

/// For a client that is silent after the first, and one that sends single bytes without end after the
/// second.
void expect_timeouts(Running& server, std::string_view before_silence, std::string_view before_dripping) {
  Client silent(server.endpoint());
  silent.send(before_silence);
  expect_refusal(silent, 408, "request_timeout");
  Client dripping(server.endpoint());
  dripping.send(before_dripping);
  for (int i = 0; i < 100000 && !dripping.wait_readable(1ms); ++i) dripping.send("x");
  expect_refusal(dripping, 408, "request_timeout");
}

TEST(Session, EndsARequestWhoseHeaderComesTooSlowly) {
  Running server({.header_timeout = 50ms});
  expect_timeouts(server, "GET / HT", "GET /");
}

TEST(Session, EndsARequestWhoseBodyComesTooSlowly) {
  Running server({.body_timeout = 50ms});
  const std::string head = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n";
  expect_timeouts(server, head + "ab", head);
}

TEST(Session, ClosesIdleConnectionsWithoutAnAnswer) {
  Running server({.idle_timeout = 50ms});
  Client fresh(server.endpoint());
  Client used(server.endpoint());
  EXPECT_EQ(used.call(kGet).status, 200);
  EXPECT_EQ(fresh.receive_to_end(), "");
  EXPECT_EQ(used.receive_to_end(), "");
}

TEST(Session, GivesUpOnAClientThatDoesNotTakeItsAnswer) {
  Running server({.write_timeout = 50ms},
                 [](const Request&) { return make_response(200, std::string(64 << 20, 'x')); });
  Client client(server.endpoint());
  client.send(kGet);
  server.wait_until(
      [](const ServerStats& stats) { return stats.connections_total == 1 && stats.connections == 0; });
}

TEST(Session, AnswersAnExceptionOfTheHandlerWith500AndContinues) {
  Running server({}, [](const Request& request) -> Response {
    if (request.target == "/standard") throw std::runtime_error("secret");
    if (request.target == "/other") throw 1;
    return echo(request);
  });
  Client client(server.endpoint());
  for (const std::string target : {"/standard", "/other"}) {
    Answer answer = client.call("GET " + target + " HTTP/1.1\r\nHost: a\r\n\r\n");
    EXPECT_EQ(answer.status, 500);
    EXPECT_EQ(answer.headers["Content-Type"], "application/problem+json");
    EXPECT_THAT(answer.body, ::testing::Not(HasSubstr("secret")));
  }
  EXPECT_EQ(client.call(kGet).status, 200);
}

}  // namespace
}  // namespace portway
