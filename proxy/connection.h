// The connections of one worker, from the accepted socket to the last descriptor closed.
//
// A connection goes kConnecting -> kRelaying -> (kResetting ->) kClosing -> kFree. Readiness only marks it
// and puts it into the run queue; run() then advances each once, however many events came. Teardown has three
// steps: terminate (nothing is moved any more, what is armed is cancelled), join (the last completions
// arrive), release (descriptors closed, slot free).
//
// All calls on the worker's thread.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "proxy/buffer_fit.h"
#include "proxy/close_record.h"
#include "proxy/connection_options.h"
#include "proxy/connection_table.h"
#include "proxy/io.h"
#include "proxy/pipe_pool.h"
#include "proxy/refusal_gates.h"
#include "proxy/relay.h"
#include "proxy/served_forward.h"
#include "proxy/spsc_ring.h"
#include "proxy/stats.h"
#include "proxy/timer_wheel.h"
#include "proxy/upstream.h"

namespace portway {

/// Where a connection waits for run().
enum class Queue : std::uint8_t {
  kNone,
  kReady,    // among its forward's
  kStreams,  // among all bulk streams
};

/// What a slot needs beside it in this process.
struct Connection {
  ServedForwardPtr forward;
  ListLinks in_forward;
  ListLinks in_half_closed;
  bool half_closed = false;                     // in the forward's list of these
  Nanos half_closed_seen{0};                    // when it came there, or to its end
  Nanos throttled_until = TimerWheel::kNever;   // the forward's byte rate is spent: look again then
  Nanos reset_deadline = TimerWheel::kNever;    // an error was told: deliver what came before it until then
  Side doomed = kDownstream;                    // whose error it is
  Nanos look_at = TimerWheel::kNever;           // whether the guest still answers
  Nanos guest_owes_since = TimerWheel::kNever;  // an acknowledgement, as far as looks tell
  Nanos device_due = TimerWheel::kNever;        // the session has no device: it is waited for until then
  std::uint8_t dscp = 0;                        // for when there is one
  bool lasting = false;                         // UpstreamOpener::set_lasting()
  bool armed[2] = {false, false};  // a poll of that side's socket has not had its last completion
  bool reset[2] = {false, false};  // close that side with RST
  Queue queue = Queue::kNone;
  bool due = false;  // its deadline has passed
  ListLinks in_queue;
  bool admitted = false;  // the forward's admission counts it
  BufferFit receive_buffer[2];
  CloseCause cause;
  std::int16_t error = 0;  // the errno that ends it
};

/// An accepted client and its connection to the guest, which may still be under way.
struct OpenedConnection {
  ServedForwardPtr forward;
  int downstream = -1;
  int upstream = -1;  // not valid where there was no socket to be had
  int error = 0;      // the errno with which the connection failed at once; 0: it is under way, or made
  Endpoint client;
  std::uint8_t dscp = 0;  // of the client's SYN, shifted left by two; 0: none, or not copied
  SourcePlan source = SourcePlan::kPlain;
  bool waits_for_device = false;  // it is connected once its session has one
  bool admitted = false;          // the forward's admission counts it
  Nanos accepted_at{0};
};

using CloseRecordRing = SpscRing<CloseRecord>;

class ConnectionSet {
 public:
  /// `worker` is this worker's index into the forwards' counters; `token_base` is or'ed into the tokens of
  /// its polls; `closes` gets a record of each connection's end.
  ConnectionSet(Io& io, const ConnectionOptions& options, std::span<ConnectionSlot> slots,
                std::uint32_t pipes_max, WorkerCounters& counters, CloseRecordRing& closes,
                std::size_t worker, Token token_base);
  ~ConnectionSet();
  ConnectionSet(const ConnectionSet&) = delete;
  ConnectionSet& operator=(const ConnectionSet&) = delete;

  /// Opens the connection to the guest for an accepted socket, and owns that from now on. Guests see
  /// connections in the order of these calls. nullopt when the client was turned away: it was reset.
  std::optional<OpenedConnection> open(int downstream, const ServedForwardPtr& forward);
  /// Takes it over; another worker may have opened it. Where every slot is in use, or its forward has ended
  /// meanwhile, both sides are reset.
  void start(OpenedConnection opened);
  /// Resets both sides, without a connection.
  void reject(const OpenedConnection& opened, RejectReason reason);
  /// Resets the client at once, without a connection.
  void reject(int downstream, const ServedForwardPtr& forward, RejectReason reason) {
    reject(downstream, forward, reason, client_of(downstream));
  }

  /// A completion of a poll; `token` is what token_base was or'ed with.
  void on_poll(Token token, const Completion& completion);
  /// Advances every connection that something happened to.
  void run();
  /// Ends what has timed out.
  void expire();
  /// expire_half_closed() is due. While there are half-closed connections, it is once a second.
  bool half_closed_due() const {
    return half_closed_due_ != TimerWheel::kNever && io_.now() >= half_closed_due_;
  }
  /// Ends half-closed connections that have been silent for longer than limit(N), N being how many it has
  /// ended; zero: no limit.
  void expire_half_closed(const std::function<Nanos(std::size_t)>& limit);

  /// True when run() has work left; then nothing may wait.
  bool runnable() const { return ready_ != 0 || !streams_.empty() || !ending_.empty(); }
  Nanos until_next_deadline() const;

  // --- Where connections are short (proxy/fair_share.h). Each ends one that is half-closed; false when there
  // is none.

  // Of those that have been so for longest, it is the one that has been silent for longest.

  /// start() would turn this client away, as it is now: nobody is to give way to it.
  bool refuses(ServedForward& forward, int downstream);
  /// One of the forward.
  bool replace_of_forward(const ServedForward& forward);
  /// One of the forward's session: of that forward which has most connections, if it has been silent for a
  /// second; else of the forward itself.
  bool replace_of_session(const ServedForward& forward);
  /// One of the forward and this client's source address.
  bool replace_of_source(const ServedForward& forward, int downstream);
  /// One of the session that has most connections, more than `kept`. It has been silent for a second or more:
  /// nobody loses a running transfer to a newcomer.
  bool replace_of_heaviest(std::uint64_t kept);
  /// Whether most of the forward's latest connections are from the address (IPv6: the /64) of this client, as
  /// it was within the last 100 ms.
  bool has_most(const ServedForward& forward, int downstream);

  /// Counts those of the forward's connections for its limits that were made while it had none.
  void count_for_limits(ServedForward& forward);

  /// The forward's phase has moved on: does to its connections what that means, in this turn and the next
  /// ones.
  void close_forward(const ServedForwardPtr& forward);
  void reset_all(CloseHow how);

  /// The connections of a forward with ids above `after`, at most `limit`, those with the lowest ids. A
  /// microsecond or two for each one that it lists.
  std::vector<LiveConnection> list(const ServedForward& forward, ConnectionId after, std::size_t limit);
  /// Resets one connection of a forward, or all of them (0), in this turn and the next ones; returns how
  /// many.
  std::size_t kill(const ServedForwardPtr& forward, ConnectionId connection);

  std::uint32_t in_use() const { return table_.in_use(); }
  /// See UpstreamOpener::source_ports().
  PortRange source_ports() { return upstream_.source_ports(); }
  /// Calls take(const Refusal&) for each connection that the guest refused since the last call.
  template <class Take>
  void take_refused(Take take) {
    for (const Refusal& refusal : refused_) take(refusal);
    refused_.clear();
  }
  /// Descriptors were given back since the last call: accepting may work again.
  bool take_released() { return std::exchange(released_, false); }

 private:
  Token token_of(std::uint32_t index, Side side) const { return token_base_ | (Token{index} << 1) | side; }
  void set_state(std::uint32_t index, ConnectionState state);
  void enqueue(std::uint32_t index);
  void arm(std::uint32_t index, Side side);
  void schedule(std::uint32_t index);

  Client client_of(int downstream);
  void reject(int downstream, const ServedForwardPtr& forward, RejectReason reason, const Client& client);
  void connect(OpenedConnection& opened, int device);
  void go_on(std::uint32_t index, int error);
  void wait_for_device(std::uint32_t index);
  void look_for_device(std::uint32_t index);
  int send_proxy_header(const ConnectionSlot& slot);
  void on_events(std::uint32_t index, Side side, std::uint32_t events);
  void find_urgent();
  bool is_bulk(std::uint32_t index) const;
  void dequeue(ConnectionList& list, std::uint32_t index);
  void advance(std::uint32_t index);
  void advance_connecting(std::uint32_t index);
  void advance_relaying(std::uint32_t index);
  void advance_resetting(std::uint32_t index);
  void relay_from(std::uint32_t index, Side from);
  void fit_receive_buffer(std::uint32_t index, Side side);
  void throttle(std::uint32_t index, Nanos wait);
  void end(const ServedForwardPtr& forward, std::uint64_t until, CloseHow how);
  void end_some();
  void doom(std::uint32_t index, Side side);
  void on_doom(std::uint32_t index);
  void on_reset(std::uint32_t index, Side side);
  void on_connect_failed(std::uint32_t index, int error);
  void on_deadline(std::uint32_t index);
  void look_at_guest(std::uint32_t index);
  Nanos looks_every() const;

  void terminate(std::uint32_t index, CloseSide side, CloseHow how, bool reset_downstream,
                 bool reset_upstream);
  void join(std::uint32_t index);
  bool is_joined(std::uint32_t index) const;
  void release(std::uint32_t index);
  void count_close(const ConnectionSlot& slot, const Connection& connection);
  CloseRecord record_of(const ConnectionSlot& slot, Connection& connection);
  void push_record(CloseRecord&& record);
  bool is_live(std::uint32_t index) const;
  ForwardConnections& of(const ServedForward& forward) { return forward.connections[worker_]; }
  void append(ConnectionList& list, ListLinks Connection::*links, std::uint32_t index);
  void remove(ConnectionList& list, ListLinks Connection::*links, std::uint32_t index);
  template <class Visit>
  void for_each_live(const ServedForward& forward, Visit visit);
  void set_half_closed(std::uint32_t index, bool half_closed);
  template <class Wanted>
  bool evict_from(const ConnectionList& list, Nanos least, Wanted wanted);
  bool evict_from(const ConnectionList& list, Nanos least);
  template <class Weigh>
  const ServedForward* heaviest(Weigh weigh);
  std::optional<IpAddress> main_source(const ServedForward& forward);
  IpAddress source_of_slot(std::uint32_t index) const;
  std::optional<IpAddress> source_of_client(int downstream);
  ConnectionId id_of(const ConnectionSlot& slot) const;
  std::uint64_t queued(const ConnectionSlot& slot, Side from);
  LiveConnection live_connection(const ConnectionSlot& slot);

  Io& io_;
  const ConnectionOptions options_;
  WorkerCounters& counters_;
  CloseRecordRing& closes_;
  const std::size_t worker_;
  const Token token_base_;
  ConnectionTable table_;
  std::vector<Connection> connections_;  // beside the slots of the same index
  PipePool pipes_;
  UpstreamOpener upstream_;
  TimerWheel timers_;
  std::deque<ServedForward*> ready_forwards_;  // those with a `ready` connection, the next one in front
  std::size_t ready_ = 0;                      // connections that are `ready`
  ConnectionList streams_;                     // bulk streams that can move something, the next one in front
  std::deque<ServedForwardPtr> ending_;        // those with an end_until
  struct Draining {
    Nanos deadline;
    ServedForwardPtr forward;
    CloseHow how;
  };
  std::deque<Draining> draining_;                               // in the order of their deadlines
  Nanos turn_began_{0};                                         // run() was called
  std::size_t budget_ = kRelayBudgetBytes;                      // of each direction in this turn
  std::uint64_t turn_bytes_ = 0;                                // moved in this turn by streams
  std::vector<std::pair<std::uint32_t, Side>> perhaps_urgent_;  // POLLPRI was told of them in this turn
  std::vector<pollfd> asked_urgent_;                            // of the same index
  std::array<std::byte, PipePool::kSpareSize> buffer_;
  std::vector<ServedForward*> with_half_closed_;  // forwards that have some here
  std::size_t half_closed_next_ = 0;              // behind the forward to be looked at next
  std::size_t weighed_ = 0;                       // the last one that heaviest() has looked at
  Nanos half_closed_due_ = TimerWheel::kNever;
  std::vector<Refusal> refused_;  // only where somebody takes them
  bool released_ = false;
};

}  // namespace portway
