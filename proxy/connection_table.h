// The connections of a worker: a bounded array of plain-old-data slots, part of a SlotArena
// (proxy/slot_arena.h).
//
// A slot holds what another process would need to continue the connection: descriptor numbers, ids, the
// state of each side and each direction, counts. Nothing in it is a pointer. What only this process can
// use (the forward object, timers, operations armed in the ring) is in Connection (proxy/connection.h).
// If a slot changes, kSlotLayout must change too: a test holds it.
//
// A table belongs to its worker's thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

#include "base/endpoint.h"
#include "base/forward.h"
#include "proxy/stats.h"

namespace portway {

/// The two ends of a connection. Arrays of two are indexed by it.
enum Side : std::uint8_t { kDownstream = 0, kUpstream = 1 };
inline constexpr Side kSides[] = {kDownstream, kUpstream};
constexpr Side other(Side side) {
  return side == kDownstream ? kUpstream : kDownstream;
}

/// The state of one socket. Readiness is remembered here because the ring reports each edge once.
struct SocketState {
  std::int32_t fd = -1;
  std::int16_t error = 0;  // the errno that ended it (ECONNRESET, ETIMEDOUT, ...), 0: none
  bool readable = false;   // a read may return something; cleared by EAGAIN
  bool writable = false;   // a write may succeed; cleared by EAGAIN
  // POLLRDHUP, POLLHUP or POLLERR was reported, or it is a Unix socket, where a read ends early behind
  // passed descriptors: a short read does not prove "drained".
  bool peer_closed = false;
  bool urgent = false;       // POLLPRI was reported: splice(2) stops at the urgent mark
  bool read_ended = false;   // FIN or an error was read
  bool write_ended = false;  // we sent FIN, or it accepts nothing any more
  bool is_unix = false;      // it has no urgent data, no TCP options, and no RST
};

/// How a direction moves its bytes.
enum class RelayMode : std::uint8_t {
  kCopy,    // recv(2) into the worker's buffer and send(2): best for small messages
  kSplice,  // socket to pipe to socket: best for bulk
};

/// One direction: bytes read from one side on their way to the other. slot.relay[kDownstream] reads from
/// downstream.
struct RelayState {
  std::uint64_t bytes = 0;          // what the sink's socket has taken
  std::int32_t pipe[2] = {-1, -1};  // held only while bytes are in it
  std::uint32_t pipe_bytes = 0;     // how many are in it
  std::uint32_t pipe_capacity = 0;  //
  std::uint32_t streak = 0;         // copying: bytes in large reads in a row; splicing: small moves in a row
  RelayMode mode = RelayMode::kCopy;
  bool in_spare = false;  // its latest bytes are in the pool's spare buffer
  bool ended = false;     // everything was delivered, as far as possible, and the end passed on
};

enum class ConnectionState : std::uint8_t {
  kFree,        // not in use
  kConnecting,  // accepted from the client; the guest has not answered yet
  kRelaying,    // both sides are connected; either direction may have ended
  kResetting,   // one side was reset: the other is reset too once it has acknowledged what was sent to it
  kClosing,     // no more bytes move: waiting for the last completions of armed polls
};

/// An address and a port as plain old data.
struct PlainEndpoint {
  std::array<std::uint8_t, 16> address{};  // in network order; the first four bytes if it is IPv4
  std::uint16_t port = 0;                  // 0: not known
  bool is_v6 = false;
};
PlainEndpoint to_plain(const Endpoint& endpoint);
Endpoint to_endpoint(const PlainEndpoint& plain);

inline constexpr std::int64_t kNoDeadline = std::numeric_limits<std::int64_t>::max();

struct ConnectionSlot {
  ForwardId forward{};
  PlainEndpoint client;
  PlainEndpoint guest;       // where it goes
  std::uint64_t serial = 0;  // counts up within a table: distinguishes two connections in one slot
  SocketState socket[2];
  RelayState relay[2];
  std::int64_t accepted_ns = 0;  // on the monotonic clock
  std::int64_t connected_ns = 0;
  std::int64_t active_ns = 0;  // when bytes last moved
  // An error was reported: deliver what came before it until then.
  std::int64_t reset_deadline_ns = kNoDeadline;
  std::int32_t device = 0;  // interface index, kAnyDevice or kNoDevice (proxy/dataplane.h)
  std::int16_t error = 0;   // the errno that ends it
  CloseCause cause;         // in kResetting and kClosing
  ConnectionState state = ConnectionState::kFree;
  SourcePlan source = SourcePlan::kPlain;  // whose address the guest sees
  Side first_ended = kDownstream;          // which side sent FIN first, or in kResetting which one was reset
  Side failed = kDownstream;               // whose error reset_deadline_ns is for
  std::uint8_t dscp = 0;  // for an upstream socket that is yet to be opened; see OpenedConnection
  bool lasting = false;   // UpstreamOpener::set_lasting() was called
};
static_assert(std::is_trivially_copyable_v<ConnectionSlot>, "a slot must make sense in another process");
static_assert(sizeof(ConnectionSlot) <= 256);

/// Hands out slots, the lowest free one first if that is cheap: a table with little traffic takes little
/// memory.
class ConnectionTable {
 public:
  explicit ConnectionTable(std::span<ConnectionSlot> slots) : slots_(slots) {}

  /// nullopt if every slot is in use.
  std::optional<std::uint32_t> take();
  /// Takes one for a connection of a predecessor's table. It keeps its serial if that is above all others
  /// here, else it gets a new one. Only while no slot was ever given back.
  std::optional<std::uint32_t> take(const ConnectionSlot& content);
  void give_back(std::uint32_t index);

  ConnectionSlot& operator[](std::uint32_t index) { return slots_[index]; }
  const ConnectionSlot& operator[](std::uint32_t index) const { return slots_[index]; }
  std::uint32_t in_use() const { return in_use_; }
  /// Slots at and above this index were never in use.
  std::uint32_t high_water() const { return high_water_; }

 private:
  std::span<ConnectionSlot> slots_;
  std::vector<std::uint32_t> free_;  // returned slots, last in first out; below high_water_
  std::uint32_t high_water_ = 0;
  std::uint32_t in_use_ = 0;
  std::uint64_t serial_ = 0;
};

}  // namespace portway
