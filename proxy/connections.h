// The connections of one worker: starts and lists them, and ends them with their forward, their session or
// the worker.
//
// All calls on the worker's thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include <boost/container_hash/hash.hpp>

#include "proxy/connection.h"
#include "proxy/slot_arena.h"

namespace portway {

class Connections {
 public:
  /// `worker` is this worker's index into the forwards' counters; `token_base` is or'ed into the tokens of
  /// its polls; `closes` gets a record of each ended connection.
  Connections(Io& io, const ConnectionOptions& options, const ArenaTable& memory, const FairShare* share,
              std::uint32_t pipes_max, WorkerCounters& counters, CloseRecordRing& closes, std::size_t worker,
              Token token_base);
  ~Connections();
  Connections(const Connections&) = delete;
  Connections& operator=(const Connections&) = delete;

  /// Opens the connection to the guest for an accepted socket, and takes ownership of the socket. Guests
  /// see connections in the order of these calls. `upstream` may be a connection to the guest that a
  /// predecessor has made for this client, else -1; it is -1 afterwards if it has been used. nullopt: the
  /// client was rejected, with a reset.
  std::optional<OpenedConnection> open(int downstream, const ServedForwardPtr& forward, int& upstream);
  /// Takes an opened connection, possibly from another worker. Resets both sides if every slot is in use,
  /// or if the forward has ended meanwhile.
  void start(OpenedConnection opened);
  /// open() would reject this client now: do not evict a connection for it.
  bool refuses(ServedForward& forward, int downstream);
  /// Resets both sides, without a connection.
  void reject(const OpenedConnection& opened, RejectReason reason);
  /// Resets the client, without a connection.
  void reject(int downstream, const ServedForwardPtr& forward, RejectReason reason);

  /// A connection of a predecessor; it waits for adopt(). False: every slot is in use. Only before the first
  /// turn, the oldest first.
  bool put(const ConnectionSlot& slot);
  /// Continues those that belong to this forward.
  void adopt(const ServedForwardPtr& forward);
  /// Resets those whose forward nobody has named, and returns how many.
  std::size_t reset_orphans();

  RelayMemory& memory() { return context_.memory; }
  /// No connection is being moved: its memory says so to a successor.
  void note_quiet() { context_.memory.in_hand = RelayMemory::kNobody; }

  /// A completion of a poll; `token` is what token_base was or'ed with.
  void on_poll(Token token, const Completion& completion);
  /// Advances the connections whose turn it is.
  void run();
  /// Queues connections that have timed out.
  void expire();

  /// run() has work left; then nothing may wait.
  bool runnable() const { return !context_.queue.empty() || !ending_.empty(); }
  Nanos until_next_deadline() const;

  /// Counts connections that were made while the forward had no limits.
  void limits_changed(ServedForward& forward);
  /// The forward's phase has advanced: applies it to the connections, in this turn and the next ones.
  void close_forward(const ServedForwardPtr& forward);
  /// Its guest() has changed: resets the connections that miss it, in this turn and the next ones.
  void guest_changed(const ServedForwardPtr& forward);
  /// Its session has another device, or none: the same with those that are bound to the former one.
  void device_changed(const ServedForwardPtr& forward);
  void reset_all(CloseHow how);
  /// At most `limit` connections of a forward with ids above `after`, the lowest ids first. Takes a
  /// microsecond or two per listed connection.
  std::vector<LiveConnection> list(const ServedForward& forward, ConnectionId after, std::size_t limit);
  /// Resets one connection of a forward, or all of them (0), in this turn and the next ones; returns how
  /// many.
  std::size_t kill(const ServedForwardPtr& forward, ConnectionId connection);

  /// The connections to evict if connections run short.
  HalfClosed& half_closed() { return context_.half_closed; }
  std::uint32_t in_use() const { return table_.in_use(); }
  /// See UpstreamOpener::source_ports().
  PortRange source_ports() { return context_.upstream.source_ports(); }
  /// Calls take(const Refusal&) for each connection that the guest refused since the last call.
  template <class Take>
  void take_refused(Take take) {
    for (const Refusal& refusal : context_.refused) take(refusal);
    context_.refused.clear();
  }
  /// Descriptors were closed since the last call: accepting may work again.
  bool take_released() { return std::exchange(released_, false); }

 private:
  ForwardConnections& of(const ServedForward& forward) const { return forward.connections[context_.worker]; }
  void reject(int downstream, const ServedForwardPtr& forward, RejectReason reason, const Endpoint& client);
  void release(Connection& connection);
  void find_urgent();
  void end(const ServedForwardPtr& forward, std::uint64_t until, CloseHow how);
  template <class Misses>
  void end_if(const ServedForwardPtr& forward, CloseHow how, Misses misses);
  void end_some();
  template <class Visit>
  void for_each_live(const ServedForward& forward, Visit visit);

  ConnectionTable table_;
  ConnectionContext context_;
  std::deque<Connection> connections_;   // an object for each slot that was ever in use
  std::deque<ServedForwardPtr> ending_;  // forwards with an end_until
  // Those of a predecessor that wait for their forward: the indices of their slots.
  std::unordered_map<ForwardId, std::vector<std::uint32_t>, boost::hash<ForwardId>> orphans_;
  struct Draining {
    Nanos deadline;
    ServedForwardPtr forward;
    CloseHow how;
  };
  std::deque<Draining> draining_;     // in the order of their deadlines
  std::vector<pollfd> asked_urgent_;  // scratch of find_urgent()
  bool released_ = false;
};

}  // namespace portway
