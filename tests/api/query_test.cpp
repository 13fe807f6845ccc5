#include "api/query.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/url/parse.hpp>
#include <string>

namespace portway {
namespace {

enum class Fruit { kApple, kPear, kPlum };

const auto kName = text_parameter("name");
const auto kCount = integer_parameter<std::int64_t>("count", 7, 1, 20);
const auto kId = uuid_parameter("id", "must be a UUID.");
const auto kFruit = choice_parameter<Fruit>(
    "fruit", {{"apple", Fruit::kApple}, {"pear", Fruit::kPear}, {"plum", Fruit::kPlum}});
const auto kCursor = cursor_parameter<Uuid>(parse_uuid);

constexpr std::string_view kSomeId = "0190b2c0-5a3e-7c11-9d2f-6f0a4c1b8e57";

Result<Query> read(const std::string& query, const QueryParameters& parameters) {
  const std::string target = "/path" + query;
  return read_query(boost::urls::parse_origin_form(target).value(), parameters);
}

Error refusal(const std::string& query, const QueryParameters& parameters) {
  const auto read_anyway = read(query, parameters);
  EXPECT_FALSE(read_anyway) << query;
  return read_anyway ? Error{} : read_anyway.error();
}

TEST(Query, GivesEachParameterInItsType) {
  const auto query =
      read("?name=a%20b&count=20&id=" + std::string(kSomeId) + "&fruit=plum", {kName, kCount, kId, kFruit});
  ASSERT_TRUE(query);
  EXPECT_EQ((*query)[kName], "a b");
  EXPECT_EQ((*query)[kCount], 20);
  EXPECT_EQ((*query)[kId], parse_uuid(kSomeId));
  EXPECT_EQ((*query)[kFruit], Fruit::kPlum);
}

TEST(Query, HasADefaultForWhatIsAbsent) {
  const auto query = read("", {kName, kCount, kId, kFruit, kCursor, kPageLimit});
  ASSERT_TRUE(query);
  EXPECT_EQ((*query)[kName], std::nullopt);
  EXPECT_EQ((*query)[kCount], 7);
  EXPECT_EQ((*query)[kId], std::nullopt);
  EXPECT_EQ((*query)[kFruit], Fruit::kApple);
  EXPECT_EQ((*query)[kCursor], Uuid{});
  EXPECT_EQ((*query)[kPageLimit], 100U);
}

TEST(Query, TakesAnEmptyNumberOrCursorForAnAbsentOne) {
  const auto query = read("?count=&cursor=&name=", {kName, kCount, kCursor});
  ASSERT_TRUE(query);
  EXPECT_EQ((*query)[kCount], 7);
  EXPECT_EQ((*query)[kCursor], Uuid{});
  EXPECT_EQ((*query)[kName], "") << "an empty text is a text";
}

TEST(Query, RefusesWhatDoesNotFitByName) {
  struct Case {
    std::string query;
    std::string field;
    std::string detail;
  };
  for (const Case& each : {
           Case{"?count=0", "count", "count must be a whole number from 1 to 20."},
           Case{"?count=21", "count", "count must be a whole number from 1 to 20."},
           Case{"?count=-1", "count", "count must be a whole number from 1 to 20."},
           Case{"?count=1.5", "count", "count must be a whole number from 1 to 20."},
           Case{"?count=5x", "count", "count must be a whole number from 1 to 20."},
           Case{"?count=99999999999999999999", "count", "count must be a whole number from 1 to 20."},
           Case{"?id=5", "id", "id must be a UUID."},
           Case{"?id=", "id", "id must be a UUID."},
           Case{"?fruit=cherry", "fruit", "fruit must be apple (the default), pear or plum."},
           Case{"?fruit=", "fruit", "fruit must be apple (the default), pear or plum."},
           Case{"?cursor=x", "cursor", "cursor must be the next_cursor of an earlier answer."},
       }) {
    const Error error = refusal(each.query, {kCount, kId, kFruit, kCursor});
    EXPECT_EQ(error.code, ErrorCode::kInvalidRequest) << each.query;
    EXPECT_EQ(error.field, each.field) << each.query;
    EXPECT_EQ(error.detail, each.detail) << each.query;
  }
}

TEST(Query, RefusesWithTheCodeOfTheParameter) {
  const auto fruit =
      choice_parameter<int>("fruit", {{"apple", 1}, {"pear", 2}}, ErrorCode::kMalformedRequest);
  const Error error = refusal("?fruit=plum", {fruit});
  EXPECT_EQ(error.code, ErrorCode::kMalformedRequest);
  EXPECT_EQ(error.detail, "fruit must be apple (the default) or pear.");
}

TEST(Query, RefusesAnUnknownParameterAndNamesTheKnownOnes) {
  const Error error = refusal("?limits=3", {kName, kCount});
  EXPECT_EQ(error.code, ErrorCode::kUnknownField);
  EXPECT_EQ(error.field, "limits");
  EXPECT_EQ(error.detail, "There is no query parameter \"limits\"; known are: name, count.");
  EXPECT_EQ(refusal("?limits=3", {}).detail, "There is no query parameter \"limits\" here.");
  EXPECT_EQ(refusal("?Count=3", {kCount}).field, "Count") << "names are case-sensitive";
}

TEST(Query, RefusesAnUnknownParameterBeforeOneThatDoesNotFit) {
  EXPECT_EQ(refusal("?count=0&zebra=1", {kCount}).field, "zebra");
}

TEST(Query, RefusesAParameterThatIsGivenTwiceEvenIfAllAreIgnored) {
  for (const QueryParameters& parameters : {QueryParameters({kCount}), QueryParameters::ignored()}) {
    const Error error = refusal("?count=1&count=1", parameters);
    EXPECT_EQ(error.code, ErrorCode::kInvalidRequest);
    EXPECT_EQ(error.field, "count");
  }
}

TEST(Query, IsNotLookedAtByARouteThatIgnoresIt) {
  EXPECT_TRUE(read("?count=x&limits=3", QueryParameters::ignored()));
}

}  // namespace
}  // namespace portway
