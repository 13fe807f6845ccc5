#include "api/json_fields.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace portway {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Request request_with(std::string body, std::string content_type = "application/json") {
  Request request;
  request.body = std::move(body);
  if (!content_type.empty()) request.headers["content-type"] = std::move(content_type);
  return request;
}

JsonFields fields_of(std::string body) {
  return JsonFields(request_with(std::move(body)));
}

TEST(JsonFields, ReadsFieldsByName) {
  JsonFields fields = fields_of(R"({"name": "a", "port": 3000, "networks": ["203.0.113.0/24"]})");
  EXPECT_EQ(fields.string("name"), "a");
  EXPECT_EQ(fields.integer("port", 1, 65535), 3000);
  EXPECT_EQ(fields.networks("networks", 2).size(), 1U);
  EXPECT_EQ(fields.finish(), std::nullopt);
}

TEST(JsonFields, TakesNullForAFieldThatIsNotGiven) {
  JsonFields fields = fields_of(R"({"a": null, "b": null})");
  EXPECT_EQ(fields.string_or("a", "x"), "x");
  EXPECT_EQ(fields.string_or("absent", "y"), "y");
  EXPECT_EQ(fields.string_or_none("a"), std::nullopt);
  EXPECT_EQ(fields.integer_or_none("b", 1, 2), std::nullopt);
  EXPECT_TRUE(fields.networks("a", 1).empty());
  EXPECT_TRUE(fields.addresses("b", 1).empty());
  EXPECT_TRUE(fields.given("a")) << "but it can be distinguished";
  EXPECT_FALSE(fields.given("absent"));
  EXPECT_EQ(fields.finish(), std::nullopt);
}

TEST(JsonFields, RequiresWhatIsRequired) {
  JsonFields fields = fields_of("{}");
  EXPECT_EQ(fields.string("name"), "");
  const auto error = fields.finish();
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code, ErrorCode::kInvalidRequest);
  EXPECT_EQ(error->field, "name");
  EXPECT_EQ(error->detail, "name is required.");
}

TEST(JsonFields, ReportsTheFirstFault) {
  JsonFields fields = fields_of(R"({"a": 1, "b": "x"})");
  EXPECT_EQ(fields.string("a"), "");
  EXPECT_EQ(fields.integer("b", 0, 9, ErrorCode::kInvalidPort), 0);
  EXPECT_EQ(fields.finish()->field, "a");
}

TEST(JsonFields, ReportsAnUnknownFieldBeforeAnyOtherFault) {
  JsonFields fields = fields_of(R"({"nam": "x"})");
  (void)fields.string("name");
  const auto error = fields.finish();
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code, ErrorCode::kUnknownField) << "a mistyped name explains the missing one";
  EXPECT_EQ(error->field, "nam");
  EXPECT_THAT(error->detail, HasSubstr("known are: name"));
}

TEST(JsonFields, RefusesNumbersOutOfRangeWithTheCodeOfTheField) {
  for (const char* number :
       {"0", "10", "-1", "1.5", "\"5\"", "1e300", "99999999999999999999", "true", "[]"}) {
    JsonFields fields = fields_of(std::string(R"({"n": )") + number + "}");
    EXPECT_EQ(fields.integer("n", 1, 9, ErrorCode::kInvalidPort), 0) << number;
    const auto error = fields.finish();
    ASSERT_TRUE(error) << number;
    EXPECT_EQ(error->code, ErrorCode::kInvalidPort) << number;
    EXPECT_EQ(error->detail, "n must be a whole number from 1 to 9.");
  }
}

TEST(JsonFields, RefusesABodyThatIsNoJsonObject) {
  for (const char* body : {"", "{", "[1]", "7", R"({"a": 1} x)", R"({"a": 1, "a": 2})"}) {
    JsonFields fields = fields_of(body);
    const auto error = fields.finish();
    ASSERT_TRUE(error) << body;
    EXPECT_EQ(error->code, ErrorCode::kMalformedJson) << body;
  }
}

TEST(JsonFields, RefusesABodyThatIsNotSaidToBeJson) {
  for (const char* type : {"", "text/plain", "application/jsonp", "application/json-patch+json"}) {
    JsonFields fields(request_with("{}", type));
    EXPECT_EQ(fields.finish()->code, ErrorCode::kUnsupportedMediaType) << type;
  }
  for (const char* type : {"application/json", "Application/JSON ; charset=utf-8", "application/json;v=1"}) {
    JsonFields fields(request_with("{}", type));
    EXPECT_EQ(fields.finish(), std::nullopt) << type;
  }
}

TEST(JsonFields, ReadsEachObjectOfAListAndNamesItsPlaceInErrors) {
  std::vector<std::string> names;
  const auto read = [&](const std::string& body) {
    JsonFields fields = fields_of(body);
    names.clear();
    fields.each("list", 1, 2, [&](JsonFields each) {
      names.push_back(each.string("name"));
      return each.finish();
    });
    return fields.finish();
  };
  EXPECT_EQ(read(R"({"list": [{"name": "a"}, {"name": "b"}]})"), std::nullopt);
  EXPECT_THAT(names, ElementsAre("a", "b"));
  EXPECT_EQ(read(R"({"list": [{"name": "a"}, {}]})")->field, "list[1].name");
  EXPECT_EQ(read(R"({"list": [{"name": "a", "x": 1}]})")->field, "list[0].x");
  EXPECT_EQ(read(R"({"list": [7]})")->field, "list[0]");
  EXPECT_EQ(read(R"({"list": []})")->detail, "list must be a list of 1 to 2 objects.");
  EXPECT_EQ(read(R"({"list": [{}, {}, {}]})")->field, "list");
  EXPECT_EQ(read("{}")->detail, "list is required.");
}

// The detail named the last part alone: "socket is required.", of a forward.
TEST(JsonFields, NamesTheWholePlaceInTheDetail) {
  const auto read = [](const std::string& body) {
    JsonFields fields = fields_of(body);
    fields.each("list", 1, 2, [](JsonFields each) {
      each.object("target", [](JsonFields target) {
        (void)target.string("socket");
        (void)target.integer_or_none("port", 1, 9, ErrorCode::kInvalidPort);
        return target.finish();
      });
      return each.finish();
    });
    return fields.finish()->detail;
  };
  EXPECT_EQ(read(R"({"list": [{"target": 1}]})"), "list[0].target must be an object.");
  EXPECT_EQ(read(R"({"list": [{"target": {}}]})"), "list[0].target.socket is required.");
  EXPECT_EQ(read(R"({"list": [{"target": {"socket": 1}}]})"), "list[0].target.socket must be a string.");
  EXPECT_EQ(read(R"({"list": [{"target": {"socket": "/s", "port": 0}}]})"),
            "list[0].target.port must be a whole number from 1 to 9.");
  EXPECT_EQ(read(R"({"list": [{"target": {"socket": "/s", "x": 0}}]})"),
            "There is no field \"list[0].target.x\"; known are: socket, port.");
}

TEST(JsonFields, RefusesAddressesAndNetworksThatAreNone) {
  const auto addresses = [](const std::string& list) {
    JsonFields fields = fields_of(R"({"list": )" + list + "}");
    (void)fields.addresses("list", 2);
    return fields.finish();
  };
  EXPECT_EQ(addresses(R"(["198.18.0.2", "fd00::2"])"), std::nullopt);
  EXPECT_EQ(addresses("[]")->code, ErrorCode::kInvalidRequest);
  EXPECT_EQ(addresses(R"(["198.18.0.2", "fd00::2", "fd00::3"])")->code, ErrorCode::kInvalidRequest);
  EXPECT_EQ(addresses("[7]")->code, ErrorCode::kInvalidAddress);
  EXPECT_EQ(addresses(R"(["nonsense"])")->code, ErrorCode::kInvalidAddress);
  const auto networks = [](const std::string& list) {
    JsonFields fields = fields_of(R"({"list": )" + list + "}");
    (void)fields.networks("list", 1);
    return fields.finish();
  };
  EXPECT_EQ(networks("[]"), std::nullopt);
  EXPECT_EQ(networks(R"(["2001:db8::/32"])"), std::nullopt);
  for (const char* list : {R"(["203.0.113.0/33"])", "[7]", R"("203.0.113.0/24")", R"(["::/0", "::/0"])"}) {
    EXPECT_EQ(networks(list)->code, ErrorCode::kInvalidRequest) << list;
  }
}

TEST(JsonFields, RefusesWhatItsReaderRefuses) {
  JsonFields fields = fields_of(R"({"a": "x"})");
  (void)fields.string("a");
  fields.refuse("a", "a makes no sense.");
  EXPECT_EQ(fields.finish()->detail, "a makes no sense.");
}

}  // namespace
}  // namespace portway
