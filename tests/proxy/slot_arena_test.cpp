#include "proxy/slot_arena.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace portway {
namespace {

// --- The layout. Each structured binding names every member: with another one it does not compile.

template <class Whole, class... Members>
std::string layout_of(std::string_view name, const Whole& whole, const Members&... members) {
  std::string text = fmt::format("{} {}:", name, sizeof whole);
  const auto* base = reinterpret_cast<const std::byte*>(&whole);
  ((text += fmt::format(" {}@{}", sizeof members,
                        reinterpret_cast<const std::byte*>(std::addressof(members)) - base)),
   ...);
  return text + "\n";
}

std::string layout() {
  const ArenaHeader header;
  const auto& [magic, version, slot_bytes, tables, slots, relay_bytes, boot_id, crashes, meters,
               meters_used] = header;
  const PlainEndpoint plain;
  const auto& [address, port, is_v6] = plain;
  const KeptForward kept;
  const auto& [kept_id, session, rate, guest_port, draining, why] = kept;
  const SocketState socket;
  const auto& [fd, error, readable, writable, peer_closed, urgent, read_ended, write_ended, is_unix] = socket;
  const RelayState relay;
  const auto& [bytes, pipe, pipe_bytes, pipe_capacity, streak, mode, in_spare, ended] = relay;
  const auto relay_memory = std::make_unique<RelayMemory>();
  const auto& [in_hand, crashed, before_read, spare_begin, spare_end, buffer, spare] = *relay_memory;
  const NotedRefusal refusal;
  const auto& [refused_forward, refused_client, refused_guest, refused_local, own_address] = refusal;
  const UsageTotals totals;
  const auto& [connections, received, sent, connection_us, last_byte_at, last_connection_at] = totals;
  const MeterHead meter;
  const auto& [key, base, reported, resumed, byte_seen, connection_seen] = meter;
  const MeterCell cell{};
  const auto& [cell_version, open, open_us, cell_connections, cell_received, cell_sent, last_byte,
               last_connection] = cell;
  const CloseCause close_cause;
  const auto& [side, how] = close_cause;
  const ConnectionSlot slot;
  const auto& [forward, client, guest, serial, sockets, relays, accepted, connected, active, reset_deadline,
               device, slot_error, cause, state, source, first_ended, failed, dscp, lasting] = slot;
  return layout_of("header", header, magic, version, slot_bytes, tables, slots, relay_bytes, boot_id, crashes,
                   meters, meters_used) +
         layout_of("kept", kept, kept_id, session, rate, guest_port, draining, why) +
         layout_of("refusal", refusal, refused_forward, refused_client, refused_guest, refused_local,
                   own_address) +
         layout_of("totals", totals, connections, received, sent, connection_us, last_byte_at,
                   last_connection_at) +
         layout_of("meter", meter, key, base, reported, resumed, byte_seen, connection_seen) +
         layout_of("cell", cell, cell_version, open, open_us, cell_connections, cell_received, cell_sent,
                   last_byte, last_connection) +
         layout_of("endpoint", plain, address, port, is_v6) +
         layout_of("socket", socket, fd, error, readable, writable, peer_closed, urgent, read_ended,
                   write_ended, is_unix) +
         layout_of("relay", relay, bytes, pipe, pipe_bytes, pipe_capacity, streak, mode, in_spare, ended) +
         layout_of("cause", close_cause, side, how) +
         layout_of("slot", slot, forward, client, guest, serial, sockets, relays, accepted, connected, active,
                   reset_deadline, device, slot_error, cause, state, source, first_ended, failed, dscp,
                   lasting) +
         layout_of("memory", *relay_memory, in_hand, crashed, before_read, spare_begin, spare_end, buffer,
                   spare) +
         fmt::format("enums {} {} {} {}\n", static_cast<int>(ConnectionState::kClosing),
                     static_cast<int>(RelayMode::kSplice), kCloseSides, kCloseHows);
}

TEST(SlotLayout, IsThatOfItsVersion) {
  EXPECT_EQ(kSlotLayout, 4U) << "then replace the layout below with that of the new version";
  EXPECT_EQ(layout(), R"(header 112: 8@0 4@8 4@12 4@16 4@20 4@24 40@28 32@72 4@104 4@108
kept 48: 16@0 16@16 8@32 2@40 1@42 1@43
refusal 78: 16@0 20@16 20@36 20@56 1@76
totals 48: 8@0 8@8 8@16 8@24 8@32 8@40
meter 256: 112@0 48@112 48@160 8@208 8@216 8@224
cell 64: 8@0 8@8 8@16 8@24 8@32 8@40 8@48 8@56
endpoint 20: 16@0 2@16 1@18
socket 16: 4@0 2@4 1@6 1@7 1@8 1@9 1@10 1@11 1@12
relay 32: 8@0 8@8 4@16 4@20 4@24 1@28 1@29 1@30
cause 2: 1@0 1@1
slot 208: 16@0 20@16 20@36 8@56 32@64 64@96 8@160 8@168 8@176 8@184 4@192 2@196 2@198 1@200 1@201 1@202 1@203 1@204 1@205
memory 131096: 4@0 4@4 8@8 4@16 4@20 65536@24 65536@65560
enums 4 1 3 20
)") << "a process of another version would misread the slots: increase kSlotLayout";
}

// --- The memory.

TEST(SlotArena, IsCutIntoTablesThatShareNoSlot) {
  const SlotArena arena(7, 3);
  std::vector<std::size_t> sizes;
  const ConnectionSlot* next = arena.slots().data();
  for (std::size_t i = 0; i < arena.tables(); ++i) {
    const std::span<ConnectionSlot> slots = arena.table(i).slots;
    EXPECT_EQ(slots.data(), next);
    next += slots.size();
    sizes.push_back(slots.size());
  }
  EXPECT_EQ(sizes, (std::vector<std::size_t>{2, 2, 3}));
}

TEST(SlotArena, HasASlotForEachTableAtLeast) {
  EXPECT_EQ(SlotArena(1, 4).table(3).slots.size(), 1U);
}

TEST(SlotArena, AnotherProcessSeesTheSlots) {
  const SlotArena arena(1);
  ConnectionTable table(arena.slots());
  ConnectionSlot& slot = table[table.take().value()];
  const pid_t child = ::fork();
  if (child == 0) {
    slot.active_ns = 42;
    ::_exit(0);
  }
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_EQ(slot.active_ns, 42);
}

Fd copy_of(const Fd& fd) {
  return Fd(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
}

TEST(SlotArena, IsOpenedByItsMemory) {
  const SlotArena arena(7, 3);
  arena.slots()[6].serial = 42;
  const SlotArena again(copy_of(arena.memory()));
  ASSERT_EQ(again.fault(), ArenaFault::kNone) << to_string(again.fault());
  EXPECT_EQ(again.tables(), 3U);
  EXPECT_EQ(again.slots().size(), 7U);
  EXPECT_EQ(again.table(2).slots[2].serial, 42U);
  arena.table(1).relay.spare_end = 44;
  EXPECT_EQ(again.table(1).relay.spare_end, 44U);
  EXPECT_EQ(again.table(2).relay.in_hand, RelayMemory::kNobody);
  again.slots()[0].serial = 43;
  EXPECT_EQ(arena.slots()[0].serial, 43U);
}

TEST(SlotArena, CannotBeMadeSmallerByWhoHasItsMemory) {
  const SlotArena arena(100);
  EXPECT_NE(::ftruncate(arena.memory().get(), 0), 0);
}

TEST(SlotArena, OtherMemoryIsNone) {
  EXPECT_EQ(SlotArena(Fd()).fault(), ArenaFault::kNotAnArena);
  EXPECT_EQ(SlotArena(Fd(::open("/dev/null", O_RDWR | O_CLOEXEC))).fault(), ArenaFault::kNotAnArena);
  Fd zeros(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(zeros.get(), 8192), 0);
  EXPECT_EQ(SlotArena(copy_of(zeros)).fault(), ArenaFault::kNotAnArena) << "it can become smaller";
  ASSERT_EQ(::fcntl(zeros.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
  EXPECT_EQ(SlotArena(std::move(zeros)).fault(), ArenaFault::kNotAnArena) << "it has no header";
}

/// What is found once a member of the header has another value.
template <class Member>
ArenaFault fault_with(Member ArenaHeader::*member, const Member& value) {
  const SlotArena arena(7, 3);
  void* memory =
      ::mmap(nullptr, sizeof(ArenaHeader), PROT_READ | PROT_WRITE, MAP_SHARED, arena.memory().get(), 0);
  static_cast<ArenaHeader*>(memory)->*member = value;
  ::munmap(memory, sizeof(ArenaHeader));
  return SlotArena(copy_of(arena.memory())).fault();
}

TEST(SlotArena, OnlyOneOfThisLayoutAndBootIsUsed) {
  EXPECT_EQ(fault_with(&ArenaHeader::magic, {'x'}), ArenaFault::kNotAnArena);
  EXPECT_EQ(fault_with(&ArenaHeader::layout, kSlotLayout + 1), ArenaFault::kOtherLayout);
  EXPECT_EQ(fault_with(&ArenaHeader::boot_id, {'x'}), ArenaFault::kOtherBoot);
}

TEST(SlotArena, AHeaderThatContradictsItselfIsRefused) {
  EXPECT_EQ(fault_with(&ArenaHeader::slot_bytes, 8U), ArenaFault::kDamaged);
  EXPECT_EQ(fault_with(&ArenaHeader::relay_bytes, 8U), ArenaFault::kDamaged);
  EXPECT_EQ(fault_with(&ArenaHeader::tables, 0U), ArenaFault::kDamaged);
  EXPECT_EQ(fault_with(&ArenaHeader::tables, 8U), ArenaFault::kDamaged);
  EXPECT_EQ(fault_with(&ArenaHeader::slots, 6U), ArenaFault::kDamaged);
  EXPECT_EQ(fault_with(&ArenaHeader::meters, 1U), ArenaFault::kDamaged);
  EXPECT_EQ(fault_with(&ArenaHeader::meters_used, 1U), ArenaFault::kDamaged);
  EXPECT_EQ(fault_with(&ArenaHeader::slots, 0xffff'ffffU), ArenaFault::kDamaged);
}

}  // namespace
}  // namespace portway
