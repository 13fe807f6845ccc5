#include "proxy/run_queue.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace portway {
namespace {

struct Item : RunQueue::Entry {
  explicit Item(std::string item_name) : name(std::move(item_name)) {}
  std::string name;
};

/// The names of those that get a turn, in order.
std::vector<std::string> run(RunQueue& queue) {
  std::vector<std::string> names;
  queue.run([&names](RunQueue::Entry& entry) { names.push_back(static_cast<Item&>(entry).name); });
  return names;
}

using Names = std::vector<std::string>;

TEST(RunQueue, AdvancesOneEntryOfEachForwardInTurn) {
  RunQueue queue;
  RunQueue::Lane a;
  RunQueue::Lane b;
  Item a1("a1"), a2("a2"), a3("a3"), b1("b1");
  for (Item* item : {&a1, &a2, &a3}) queue.add_message(*item, a);
  queue.add_message(b1, b);
  EXPECT_EQ(run(queue), (Names{"a1", "b1", "a2", "a3"}));
  EXPECT_TRUE(queue.empty());
}

TEST(RunQueue, AForwardWithACrowdDoesNotDelayAnother) {
  RunQueue queue;
  RunQueue::Lane crowd;
  RunQueue::Lane bystander;
  std::deque<Item> many;
  for (int i = 0; i < 1000; ++i) queue.add_message(many.emplace_back("crowd"), crowd);
  Item one("bystander");
  queue.add_message(one, bystander);
  const Names first_turn = run(queue);
  EXPECT_EQ(first_turn.size(), RunQueue::kStepsAtOnce);
  EXPECT_EQ(first_turn[1], "bystander");
  EXPECT_FALSE(queue.empty());
  RunQueue::Lane later;
  queue.add_message(one, later);
  EXPECT_EQ(run(queue)[1], "bystander");
  while (!queue.empty()) run(queue);
}

TEST(RunQueue, QueuesAnEntryOnceHoweverManyEventsItHad) {
  RunQueue queue;
  RunQueue::Lane lane;
  Item item("item");
  queue.add_message(item, lane);
  queue.add_message(item, lane);
  queue.add_stream(item);
  EXPECT_TRUE(RunQueue::is_first(item));
  EXPECT_EQ(run(queue), Names{"item"});
  EXPECT_TRUE(queue.empty());
  EXPECT_FALSE(RunQueue::is_first(item));
}

TEST(RunQueue, MessagesComeBeforeStreams) {
  RunQueue queue;
  RunQueue::Lane lane;
  Item stream("stream"), message("message");
  queue.add_stream(stream);
  queue.add_message(message, lane);
  EXPECT_EQ(run(queue), (Names{"message", "stream"}));
}

TEST(RunQueue, AMessageDoesNotWaitWithTheStreams) {
  RunQueue queue;
  RunQueue::Lane lane;
  Item first("first"), second("second");
  queue.add_stream(first);
  queue.add_stream(second);
  queue.add_message(second, lane);
  EXPECT_EQ(run(queue), (Names{"second", "first"}));
}

TEST(RunQueue, StreamsNotServedGoFirstInTheNextTurn) {
  RunQueue queue;
  Item a("a"), b("b"), c("c");
  for (Item* item : {&a, &b, &c}) queue.add_stream(*item);
  Names names;
  const auto spend_everything = [&](RunQueue::Entry& entry) {
    names.push_back(static_cast<Item&>(entry).name);
    queue.count_moved(kRelayBudgetBytes);
    queue.add_stream(entry);  // it has more
  };
  queue.run(spend_everything);
  queue.run(spend_everything);
  queue.run(spend_everything);
  queue.run(spend_everything);
  EXPECT_EQ(names, (Names{"a", "b", "c", "a"}));
  run(queue);
}

TEST(RunQueue, WhatMessagesMoveTakesNothingFromTheStreams) {
  RunQueue queue;
  RunQueue::Lane lane;
  Item message("message"), stream("stream");
  queue.add_message(message, lane);
  queue.add_stream(stream);
  Names names;
  queue.run([&](RunQueue::Entry& entry) {
    names.push_back(static_cast<Item&>(entry).name);
    queue.count_moved(kRelayBudgetBytes);
  });
  EXPECT_EQ(names, (Names{"message", "stream"}));
}

TEST(RunQueue, AStreamHasAPipefulAloneAndLittleBesideMessages) {
  RunQueue queue;
  RunQueue::Lane lane;
  Item message("message"), stream("stream");
  queue.add_stream(stream);
  std::size_t alone = 0;
  queue.run([&](RunQueue::Entry&) { alone = queue.budget(); });
  queue.add_message(message, lane);
  queue.add_stream(stream);
  std::size_t beside = 0;
  queue.run([&](RunQueue::Entry&) { beside = queue.budget(); });
  EXPECT_EQ(alone, kRelayBudgetBytes);
  EXPECT_EQ(beside, kRelayShareBesideMessages);
}

TEST(RunQueue, ManyStreamsShareTheBudgetButKeepAPipefulEach) {
  RunQueue queue;
  std::deque<Item> streams;
  for (int i = 0; i < 100; ++i) queue.add_stream(streams.emplace_back("stream"));
  std::size_t each = 0;
  queue.run([&](RunQueue::Entry&) { each = queue.budget(); });
  EXPECT_EQ(each, PipePool::kPipeSize);
  while (!queue.empty()) run(queue);
}

TEST(RunQueue, EntriesAddedDuringATurnWaitForTheNext) {
  RunQueue queue;
  RunQueue::Lane lane;
  Item item("item");
  queue.add_message(item, lane);
  int turns = 0;
  queue.run([&](RunQueue::Entry& entry) {
    ++turns;
    queue.add_message(entry, lane);
  });
  EXPECT_EQ(turns, 1);
  EXPECT_FALSE(queue.empty());
  run(queue);
}

}  // namespace
}  // namespace portway
