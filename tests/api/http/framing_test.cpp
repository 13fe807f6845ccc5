// An answer's bytes, without a socket.
#include "api/http/framing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

namespace portway {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr std::time_t kNow = 784'111'777;  // the example of RFC 9110, 5.6.7

AnswerFraming framing_of(unsigned version) {
  return {.request_id = "an-id", .version = version, .is_to_head = false, .keep_alive = true};
}

NextPiece no_pieces() {
  return [] { return std::string(); };
}

class EmptyStream : public BodyStream {
 public:
  void on_ready(std::function<void()>) override {}
  std::optional<std::string> read() override { return std::nullopt; }
};

Response response_with(std::string body) {
  Response response;
  response.body = std::move(body);
  return response;
}

Response piecewise() {
  Response response;
  response.pieces = no_pieces();
  return response;
}

Response streamed() {
  Response response;
  response.stream = std::make_shared<EmptyStream>();
  return response;
}

TEST(Framing, WritesTheWholeHead) {
  Response response = response_with("{}");
  response.status = 201;
  response.headers = {{"Location", "/x/1"}};
  EXPECT_EQ(head_of(response, framing_of(11), kNow),
            "HTTP/1.1 201 Created\r\n"
            "Server: portway\r\n"
            "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
            "X-Content-Type-Options: nosniff\r\n"
            "X-Request-Id: an-id\r\n"
            "Location: /x/1\r\n"
            "Cache-Control: no-store\r\n"
            "Content-Type: application/json\r\n"
            "Content-Length: 2\r\n"
            "\r\n");
}

// If it ends before, the client sees that bytes are missing.
TEST(Framing, AStreamOfAKnownLengthIsSentAsItIs) {
  Response response = streamed();
  response.stream_bytes = 7;
  AnswerFraming framing = framing_of(11);
  framing.has_length = true;
  EXPECT_THAT(head_of(response, framing, kNow),
              AllOf(HasSubstr("Content-Length: 7\r\n"), Not(HasSubstr("chunked"))));
  EXPECT_EQ(framed_piece("abc", framing), "abc");
  EXPECT_EQ(framed_piece("", framing), "");
}

TEST(Framing, LeavesCachingToAResponseThatDecidesIt) {
  Response response = response_with("{}");
  response.headers = {{"cache-control", "no-cache"}};
  EXPECT_THAT(head_of(response, framing_of(11), kNow),
              AllOf(HasSubstr("cache-control: no-cache\r\n"), Not(HasSubstr("no-store"))));
}

TEST(Framing, KeepsAHeadersValueOnOneLine) {
  Response response = response_with("{}");
  response.headers = {{"X", std::string("a\r\nSet-Cookie: b\0c", 18)}};
  EXPECT_THAT(head_of(response, framing_of(11), kNow), HasSubstr("\r\nX: a  Set-Cookie: b c\r\n"));
}

TEST(Framing, GivesABodyOfStaticStorageItsLength) {
  Response response;
  response.lasting_body = "static";
  EXPECT_EQ(whole_body(response), "static");
  EXPECT_THAT(head_of(response, framing_of(11), kNow), HasSubstr("\r\nContent-Length: 6\r\n"));
}

TEST(Framing, DescribesNoBodyIn204) {
  Response response;
  response.status = 204;
  EXPECT_FALSE(has_body(response, framing_of(11)));
  EXPECT_THAT(head_of(response, framing_of(11), kNow),
              AllOf(StartsWith("HTTP/1.1 204 No Content\r\n"), Not(HasSubstr("Content-Length")),
                    Not(HasSubstr("\r\nContent-Type"))));
}

TEST(Framing, DescribesTheBodyThatHeadDoesNotGet) {
  const Response response = response_with("1234");
  AnswerFraming to_head = framing_of(11);
  to_head.is_to_head = true;
  EXPECT_FALSE(has_body(response, to_head));
  EXPECT_THAT(head_of(response, to_head, kNow), HasSubstr("\r\nContent-Length: 4\r\n"));
  EXPECT_TRUE(has_body(response, framing_of(11)));
}

TEST(Framing, ChunksABodyOfUnknownLengthForHttp11Only) {
  for (const Response& response : {piecewise(), streamed()}) {
    EXPECT_THAT(head_of(response, framing_of(11), kNow),
                AllOf(HasSubstr("\r\nTransfer-Encoding: chunked\r\n"), Not(HasSubstr("Content-Length"))));
    EXPECT_THAT(head_of(response, framing_of(10), kNow),
                AllOf(Not(HasSubstr("Transfer-Encoding")), Not(HasSubstr("Content-Length"))));
  }
}

TEST(Framing, WritesPiecesAsChunksForHttp11Only) {
  EXPECT_EQ(framed_piece(std::string(17, 'x'), framing_of(11)), "11\r\n" + std::string(17, 'x') + "\r\n");
  EXPECT_EQ(framed_piece("abc", framing_of(10)), "abc");
}

TEST(Framing, EndsABodyInPieces) {
  EXPECT_EQ(framed_piece("", framing_of(11)), "0\r\n\r\n");
  EXPECT_EQ(framed_piece("", framing_of(10)), "") << "the connection's end";
}

// The default is to keep the connection in HTTP/1.1 and to close it in HTTP/1.0 (RFC 9112, 9.3).
TEST(Framing, NamesWhatIsNotTheVersionsDefault) {
  const Response response = response_with("{}");
  for (const unsigned version : {10U, 11U}) {
    AnswerFraming framing = framing_of(version);
    EXPECT_EQ(head_of(response, framing, kNow).find("Connection: keep-alive") != std::string::npos,
              version == 10);
    framing.keep_alive = false;
    EXPECT_EQ(head_of(response, framing, kNow).find("Connection: close") != std::string::npos, version == 11);
  }
  EXPECT_THAT(head_of(response, framing_of(10), kNow), StartsWith("HTTP/1.0 200 OK\r\n"));
}

TEST(Framing, EndsAConnectionWithAStreamOrWithPiecesOfHttp10) {
  AnswerFraming to_head = framing_of(11);
  to_head.is_to_head = true;
  EXPECT_FALSE(ends_with_connection(response_with("{}"), framing_of(11)));
  EXPECT_FALSE(ends_with_connection(response_with("{}"), framing_of(10)));
  EXPECT_FALSE(ends_with_connection(piecewise(), framing_of(11)));
  EXPECT_TRUE(ends_with_connection(piecewise(), framing_of(10)));
  EXPECT_TRUE(ends_with_connection(streamed(), framing_of(11)));
  EXPECT_FALSE(ends_with_connection(streamed(), to_head)) << "a head has an end";
}

TEST(Framing, WritesAHeadThatEndsWithAnEmptyLine) {
  EXPECT_THAT(head_of(piecewise(), framing_of(11), kNow), EndsWith("\r\n\r\n"));
}

}  // namespace
}  // namespace portway
