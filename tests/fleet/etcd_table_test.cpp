#include "fleet/etcd_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <charconv>
#include <string>
#include <utility>
#include <vector>

namespace portway::test {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;

Result<int> parse_number(std::string_view /*name*/, std::string_view text) {
  int number = 0;
  const auto end = text.data() + text.size();
  if (std::from_chars(text.data(), end, number).ptr == end && !text.empty()) return number;
  return Error{ErrorCode::kInvalidRequest, "not a number"};
}

class EtcdTableTest : public testing::Test {
 protected:
  EtcdTable<int> make(IfUnreadable if_unreadable) {
    return EtcdTable<int>(
        {.prefix = "/p/", .parse = parse_number, .if_unreadable = if_unreadable, .on_change = [this] {
           ++changes_;
         }});
  }
  /// A sink is told by its mirror.
  static void put(EtcdSink& sink, const std::string& name, const std::string& value) {
    sink.put({.key = "/p/" + name, .value = value, .mod_revision = 7});
  }
  static void list(EtcdSink& sink, const std::vector<std::pair<std::string, std::string>>& values) {
    sink.begin_listing();
    for (const auto& [name, value] : values) put(sink, name, value);
    sink.end_listing(9);
  }
  static std::vector<std::pair<std::string, int>> values(const EtcdTable<int>& table) {
    std::vector<std::pair<std::string, int>> out;
    for (const auto& [name, entry] : table.entries()) out.emplace_back(name, entry.value);
    return out;
  }

  int changes_ = 0;
};

TEST_F(EtcdTableTest, IsAsTheLastListingAndTheChangesSince) {
  auto table = make(IfUnreadable::kGone);
  list(table, {{"a", "1"}, {"b", "2"}});
  EXPECT_THAT(values(table), ElementsAre(Pair("a", 1), Pair("b", 2)));
  EXPECT_EQ(table.entries().at("a").mod_revision, 7);
  EXPECT_EQ(changes_, 1);
  put(table, "c", "3");
  static_cast<EtcdSink&>(table).erase("/p/a", 8);
  static_cast<EtcdSink&>(table).erase("/p/none", 9);
  EXPECT_THAT(values(table), ElementsAre(Pair("b", 2), Pair("c", 3)));
  EXPECT_EQ(changes_, 3);
  list(table, {{"b", "2"}, {"c", "3"}});
  EXPECT_EQ(changes_, 3);  // nothing is otherwise
  list(table, {});
  EXPECT_THAT(values(table), IsEmpty());
  EXPECT_EQ(changes_, 4);
}

TEST_F(EtcdTableTest, AListingThatDoesNotEndChangesNothing) {
  auto table = make(IfUnreadable::kGone);
  list(table, {{"a", "1"}});
  static_cast<EtcdSink&>(table).begin_listing();
  put(table, "b", "2");
  EXPECT_THAT(values(table), ElementsAre(Pair("a", 1)));
  list(table, {{"c", "3"}});
  EXPECT_THAT(values(table), ElementsAre(Pair("c", 3)));
}

TEST_F(EtcdTableTest, AValueThatBecomesUnreadableIsGoneAndCounted) {
  auto table = make(IfUnreadable::kGone);
  list(table, {{"a", "1"}, {"b", "?"}});
  EXPECT_EQ(table.unreadable(), 1U);
  put(table, "a", "?");
  EXPECT_THAT(values(table), IsEmpty());
  EXPECT_EQ(table.unreadable(), 2U);
  EXPECT_EQ(changes_, 2);
  put(table, "a", "");
  EXPECT_EQ(changes_, 2);
  put(table, "a", "3");
  static_cast<EtcdSink&>(table).erase("/p/b", 8);
  EXPECT_EQ(table.unreadable(), 0U);
  EXPECT_THAT(values(table), ElementsAre(Pair("a", 3)));
  list(table, {{"a", "?"}});
  EXPECT_THAT(values(table), IsEmpty());
}

TEST_F(EtcdTableTest, OrItStaysAsItWas) {
  auto table = make(IfUnreadable::kStays);
  list(table, {{"a", "1"}, {"b", "?"}});
  put(table, "a", "?");
  EXPECT_THAT(values(table), ElementsAre(Pair("a", 1)));
  list(table, {{"a", "?"}});
  EXPECT_THAT(values(table), ElementsAre(Pair("a", 1)));
  EXPECT_EQ(table.unreadable(), 1U);
  static_cast<EtcdSink&>(table).erase("/p/a", 8);
  EXPECT_THAT(values(table), IsEmpty());
}

TEST_F(EtcdTableTest, HasABound) {
  auto table = make(IfUnreadable::kGone);
  std::vector<std::pair<std::string, std::string>> many;
  for (std::size_t i = 0; i < EtcdTable<int>::kMax; ++i) many.emplace_back(std::to_string(i), "1");
  list(table, many);
  put(table, "one more", "1");
  EXPECT_EQ(table.entries().size(), EtcdTable<int>::kMax);
  EXPECT_EQ(table.unreadable(), 1U);
  put(table, "0", "2");
  EXPECT_EQ(table.entries().at("0").value, 2);
  many.back().first = "one more";
  list(table, many);
  EXPECT_TRUE(table.entries().contains("one more"));
}

}  // namespace
}  // namespace portway::test
