// Parses requests from bytes, without a socket. What a client gets for a bad one:
// tests/api/http/server_test.cpp.
#include "api/http/request_parser.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/asio/error.hpp>
#include <string>
#include <string_view>

#include "base/forward.h"

namespace portway {
namespace {

using boost::system::error_code;
using ::testing::HasSubstr;

constexpr RequestLimits kLimits{.header_max_bytes = 200, .body_max_bytes = 10};

/// A parser and the bytes that it has not used yet.
class Input {
 public:
  /// Feeds header and body until the request is done, an error, or nothing more.
  error_code feed(std::string_view bytes) {
    unparsed_ += bytes;
    error_code error;
    if (!parser_.is_header_done()) unparsed_.erase(0, parser_.parse_header(unparsed_, error));
    if (error || !parser_.is_header_done()) return error;
    if (!request_) request_ = parser_.request();
    if (!parser_.is_done()) unparsed_.erase(0, parser_.parse_body(unparsed_, error));
    return error;
  }
  error_code feed_bytewise(std::string_view bytes) {
    error_code error;
    for (std::size_t i = 0; i < bytes.size() && !error; ++i) error = feed(bytes.substr(i, 1));
    return error;
  }

  RequestParser& parser() { return parser_; }
  const Request& request() const { return request_.value(); }
  const std::string& unparsed() const { return unparsed_; }

 private:
  RequestParser parser_{kLimits};
  std::optional<Request> request_;
  std::string unparsed_;
};

TEST(RequestParser, ReadsARequestInOnePieceAndLeavesWhatFollows) {
  Input input;
  EXPECT_FALSE(input.feed("POST /x?a=%20 HTTP/1.1\r\nHost: a\r\nX-TWO: 1\r\nContent-Length: 2\r\n\r\nabGET"));
  EXPECT_TRUE(input.parser().is_done());
  EXPECT_EQ(input.request().method, "POST");
  EXPECT_EQ(input.request().target, "/x?a=%20");
  EXPECT_EQ(input.request().header("x-two"), "1");
  EXPECT_EQ(input.parser().take_body(), "ab");
  EXPECT_EQ(input.unparsed(), "GET");
  EXPECT_EQ(input.parser().version(), 11U);
  EXPECT_TRUE(input.parser().keep_alive());
}

TEST(RequestParser, ReadsARequestByteByByte) {
  Input input;
  EXPECT_FALSE(
      input.feed_bytewise("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                          "1;x\r\na\r\n2\r\nbc\r\n0\r\nAuthorization: stolen\r\n\r\n"));
  EXPECT_TRUE(input.parser().is_done());
  EXPECT_EQ(input.parser().take_body(), "abc");
  EXPECT_EQ(input.request().header("authorization"), "") << "a trailer is not the header";
}

TEST(RequestParser, TakesAnIdOnlyIfItCanGoIntoALog) {
  for (const auto& [id, is_taken] : {std::pair<std::string, bool>{"client.7_a-B", true},
                                     {"a b", false},
                                     {"<x>", false},
                                     {std::string(64, 'a'), true},
                                     {std::string(65, 'a'), false}}) {
    Input input;
    EXPECT_FALSE(input.feed("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: " + id + "\r\n\r\n"));
    EXPECT_EQ(input.request().id == id, is_taken) << id;
    if (!is_taken) {
      EXPECT_TRUE(parse_uuid(input.request().id)) << id;
    }
  }
}

// Beast's limit applies only to what it has not parsed yet, and it parses each field once the next line
// has begun.
TEST(RequestParser, CountsTheHeaderBytesThatAreParsedAlready) {
  Input input;
  error_code error = input.feed("GET / HTTP/1.1\r\nHost: a\r\nX");
  std::size_t fed = 0;
  for (; !error && fed < 1000; fed += 14) error = input.feed(": xxxxxxxxx\r\nX");
  EXPECT_LE(fed, kLimits.header_max_bytes + 14);
  const auto answer = refusal(error, kLimits);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->code, ErrorCode::kHeaderTooLarge);
  EXPECT_EQ(answer->limit, 200);
}

TEST(RequestParser, RefusesABodyOverTheLimitHoweverItIsFramed) {
  for (const std::string framed : {"Content-Length: 11\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nb\r\n"}) {
    Input input;
    const error_code error = input.feed("PUT / HTTP/1.1\r\nHost: a\r\n" + framed);
    const auto answer = refusal(error, kLimits);
    ASSERT_TRUE(answer) << framed;
    EXPECT_EQ(answer->code, ErrorCode::kBodyTooLarge);
    EXPECT_EQ(answer->limit, 10);
  }
}

TEST(RequestParser, FindsWhatTwoReadersCouldUnderstandDifferently) {
  for (const auto& [head, field] : {
           std::pair<std::string, std::string>{"GET / HTTP/1.1\r\n", "Host"},
           {"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n", "Host"},
           {"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: a\r\nAuthorization: b\r\n", "Authorization"},
           {"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n", "Transfer-Encoding"},
           {"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding"},
       }) {
    Input input;
    EXPECT_FALSE(input.feed(head + "\r\n")) << head;
    const auto ambiguity = input.parser().ambiguity();
    ASSERT_TRUE(ambiguity) << head;
    EXPECT_EQ(ambiguity->code, ErrorCode::kMalformedRequest);
    EXPECT_EQ(ambiguity->field, field) << head;
  }
  Input clear;
  EXPECT_FALSE(clear.feed("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
  EXPECT_FALSE(clear.parser().ambiguity());
}

TEST(RequestParser, SaysWhetherTheClientWaitsForContinue) {
  for (const std::string version : {"1.0", "1.1"}) {
    Input input;
    EXPECT_FALSE(input.feed("PUT / HTTP/" + version +
                            "\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n"));
    EXPECT_EQ(input.parser().expects_continue(), version == "1.1");
  }
}

TEST(RequestParser, FollowsTheVersionsDefaultForTheNextRequest) {
  for (const auto& [head, keep_alive] : {std::pair<std::string, bool>{"GET / HTTP/1.1\r\nHost: a\r\n", true},
                                         {"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n", false},
                                         {"GET / HTTP/1.0\r\n", false},
                                         {"GET / HTTP/1.0\r\nConnection: keep-alive\r\n", true}}) {
    Input input;
    EXPECT_FALSE(input.feed(head + "\r\n"));
    EXPECT_EQ(input.parser().keep_alive(), keep_alive) << head;
  }
}

TEST(RequestParser, OutlinesARequestThatBreaksOffInItsHeader) {
  Input input;
  EXPECT_FALSE(input.feed("HEAD / HTTP/1.0\r\nX-Request-Id: mine\r\nX"));
  const RequestOutline outline = input.parser().outline();
  EXPECT_EQ(outline.method, "HEAD");
  EXPECT_EQ(outline.version, 10U);
  EXPECT_EQ(outline.id, "mine");
}

TEST(RequestParser, OutlinesWhatIsNotARequest) {
  Input input;
  const error_code error = input.feed("hello\r\n\r\n");
  const auto answer = refusal(error, kLimits);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->code, ErrorCode::kMalformedRequest);
  const RequestOutline outline = input.parser().outline();
  EXPECT_EQ(outline.version, 11U);
  EXPECT_TRUE(parse_uuid(outline.id));
}

TEST(RequestParser, CountsEmptyLinesBeforeARequest) {
  EXPECT_EQ(empty_lines(""), 0U);
  EXPECT_EQ(empty_lines("GET"), 0U);
  EXPECT_EQ(empty_lines("\r\n\nGET\r\n"), 3U);
  EXPECT_EQ(empty_lines("\r\n"), 2U);
}

TEST(RequestParser, HasAnAnswerForEveryEndOfReadingThatAClientCanSee) {
  EXPECT_EQ(refusal(boost::asio::error::timed_out, kLimits)->code, ErrorCode::kRequestTimeout);
  EXPECT_EQ(refusal(boost::asio::error::eof, kLimits)->code, ErrorCode::kMalformedRequest);
  EXPECT_EQ(refusal(input_is_full(), kLimits)->code, ErrorCode::kHeaderTooLarge);
  EXPECT_FALSE(refusal(boost::asio::error::connection_reset, kLimits)) << "nobody is there";
  EXPECT_FALSE(refusal(boost::asio::error::operation_aborted, kLimits));
}

}  // namespace
}  // namespace portway
