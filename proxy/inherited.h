// What a predecessor's data plane has left: its connections, made exact, its listeners, and the clients that
// it had accepted and not yet connected.
//
// inherit() reads the predecessor's memory and asks the kernel; it changes nothing that the predecessor's
// keeper could not hand over once more. Used before the workers start, and then by the control thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/endpoint.h"
#include "base/error.h"
#include "base/fd.h"
#include "proxy/slot_arena.h"

namespace portway {

/// Why a connection of a predecessor is reset.
enum class Lost : std::uint8_t {
  kUnknown,      // how far its bytes had come cannot be told
  kIncomplete,   // one of its descriptors is missing
  kNoForward,    // its forward is gone
  kConnections,  // there is no slot for it: connections_max is lower than it was
  kPoison,       // it was being moved each time when the daemon died again and again
};
inline constexpr std::size_t kLostReasons = static_cast<std::size_t>(Lost::kPoison) + 1;
std::string_view to_string(Lost reason);

/// What came of the connections of the process before, and of attempts to hand this one's to another.
struct HandoverStats {
  bool taken_over = false;                       // this process has continued another one's work
  bool from_living = false;                      // which handed over for an upgrade; otherwise it had died
  std::size_t found = 0;                         // established connections that it had
  std::size_t adopted = 0;                       // those that continue
  std::array<std::size_t, kLostReasons> lost{};  // those that were reset
  std::size_t left_over = 0;                     // descriptors that belonged to nothing
  double seconds = 0;                            // from the descriptors' arrival until all is served
  std::uint64_t upgrades_failed = 0;             // of this process
  bool has_keeper = false;                       // its connections outlive this process
};

class Inherited {
 public:
  /// `memory` is that of the predecessor's SlotArena, `descriptors` what it had, by the numbers that its
  /// slots name. kInternal: this version cannot read it.
  static Result<std::unique_ptr<Inherited>> read(Fd memory, std::vector<Fd> descriptors);
  ~Inherited();
  Inherited(const Inherited&) = delete;
  Inherited& operator=(const Inherited&) = delete;

  /// The connections of each of its workers, the oldest first; they own their descriptors. Once.
  std::vector<std::vector<ConnectionSlot>> take_connections() { return std::move(connections_); }
  /// Forwards that had been deleted, and may have connections left.
  const std::vector<KeptForward>& kept_forwards() const { return kept_; }
  /// The one that is bound there, whether it listens or is shut: then its forward's guest refuses everybody.
  /// None: not valid.
  Fd take_listener(const Endpoint& endpoint);
  /// The same for a Unix socket.
  Fd take_listener(const std::string& path);
  /// Clients of a forward that are refused.
  std::vector<NotedRefusal> take_refusals(const ForwardId& forward);
  /// What it has carried. Once.
  InheritedUsage take_usage() { return std::move(usage_); }
  /// Clients that were accepted there and wait for their connection to the guest.
  std::vector<Fd> take_clients(const Endpoint& listener);
  /// The connection to the guest that such a client already has, with its own address and port: by the
  /// `device` (kAnyDevice: any), in the network namespace with this cookie. Its handshake may still be under
  /// way. None: not valid.
  Fd take_upstream(const Endpoint& client, const Endpoint& guest, int device, std::uint64_t netns);

  /// ArenaHeader::crashes_ns of this process's memory, with the predecessor's end if a worker of it crashed.
  const std::array<std::int64_t, 4>& crashes() const { return crashes_; }

  /// Resets both sides.
  void reset(const ConnectionSlot& slot, Lost reason);

  std::size_t connections() const { return found_; }
  const std::array<std::size_t, kLostReasons>& lost() const { return lost_; }
  /// Descriptors that nobody has taken; they go with this object.
  std::size_t left_over() const;

 private:
  explicit Inherited(std::vector<Fd> descriptors) : descriptors_(std::move(descriptors)) {}
  void note_crashes(const SlotArena& arena);
  bool is_poison(const ArenaTable& table, std::uint32_t index) const;
  void read(const ArenaTable& table);
  bool take_descriptors(ConnectionSlot& slot);
  int at(int number) const;
  int take(int number);
  void close(ConnectionSlot& slot);

  void sort_rest();

  std::vector<Fd> descriptors_;  // by number; those that no slot, nor one of the following, has
  std::map<Endpoint, Fd> listeners_;
  std::map<std::string, Fd> unix_listeners_;
  std::multimap<Endpoint, Fd> clients_;    // by their local ends: also sockets that are connected to guests
  std::multimap<Endpoint, Fd> upstreams_;  // connected to guests from the ends of clients_, by those
  std::vector<std::vector<ConnectionSlot>> connections_;
  std::vector<KeptForward> kept_;
  std::vector<NotedRefusal> refusals_;
  InheritedUsage usage_;
  std::array<std::int64_t, 4> crashes_{};
  std::size_t crashes_lately_ = 0;
  std::size_t found_ = 0;
  std::array<std::size_t, kLostReasons> lost_{};
};

}  // namespace portway
