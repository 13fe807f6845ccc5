#include "proxy/connection_table.h"

#include <gtest/gtest.h>

#include <set>

#include "proxy/slot_arena.h"

namespace portway {
namespace {

Endpoint endpoint(const char* address, std::uint16_t port) {
  return {boost::asio::ip::make_address(address), port};
}

TEST(ConnectionTable, HandsOutEverySlotOnceAndThenNone) {
  SlotArena arena(3);
  ConnectionTable table(arena.slots());
  std::set<std::uint32_t> taken;
  for (int i = 0; i < 3; ++i) taken.insert(table.take().value());
  EXPECT_EQ(taken, (std::set<std::uint32_t>{0, 1, 2}));
  EXPECT_FALSE(table.take());
  EXPECT_EQ(table.in_use(), 3U);
}

TEST(ConnectionTable, ASlotThatWasGivenBackIsUsedAgainBeforeANewOne) {
  SlotArena arena(100);
  ConnectionTable table(arena.slots());
  table.take();
  const std::uint32_t second = table.take().value();
  table.give_back(second);
  EXPECT_EQ(table.take().value(), second);
  EXPECT_EQ(table.high_water(), 2U);
}

TEST(ConnectionTable, TwoConnectionsInOneSlotHaveDifferentSerials) {
  SlotArena arena(1);
  ConnectionTable table(arena.slots());
  const std::uint64_t first = table[table.take().value()].serial;
  table.give_back(0);
  const std::uint64_t second = table[table.take().value()].serial;
  EXPECT_GT(second, first);
}

TEST(ConnectionTable, ATakenSlotHasNothingOfTheConnectionBefore) {
  SlotArena arena(1);
  ConnectionTable table(arena.slots());
  ConnectionSlot& slot = table[table.take().value()];
  slot.socket[kUpstream] = {.fd = 17, .error = 104, .readable = true};
  slot.relay[kDownstream].bytes = 1000;
  slot.relay[kDownstream].ended = true;
  slot.state = ConnectionState::kClosing;
  table.give_back(0);
  table.take();
  EXPECT_EQ(slot.socket[kUpstream].fd, -1);
  EXPECT_EQ(slot.socket[kUpstream].error, 0);
  EXPECT_FALSE(slot.socket[kUpstream].readable);
  EXPECT_EQ(slot.relay[kDownstream].bytes, 0U);
  EXPECT_FALSE(slot.relay[kDownstream].ended);
  EXPECT_EQ(slot.state, ConnectionState::kFree);
}

TEST(PlainEndpoint, KeepsAddressesOfBothFamilies) {
  for (const Endpoint& each : {endpoint("198.18.0.1", 80), endpoint("fd00:1::2", 65535)}) {
    EXPECT_EQ(to_endpoint(to_plain(each)), each);
  }
  EXPECT_EQ(to_plain(Endpoint{}).port, 0);
}

}  // namespace
}  // namespace portway
