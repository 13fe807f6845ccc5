// One worker with one forward, its clients and its guest, all driven by the test's own thread.
//
// Rig::turn() lets the worker have one turn and then every peer move what it can. run_until() turns until
// something is true. When a Rig ends it stops the worker and checks that nothing was left behind: no
// connection, no descriptor, no pipe in use.
#pragma once

#include <sys/socket.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "proxy/slot_arena.h"
#include "proxy/stats.h"
#include "proxy/worker.h"
#include "tests/proxy/world.h"
#include "tests/support/pattern.h"

namespace portway::test {

/// A client or a guest's side of one connection. It reads what comes unless it is paused.
class Peer {
 public:
  explicit Peer(std::unique_ptr<PeerSocket> socket) : socket_(std::move(socket)) {}

  // --- What it does. Sending is queued and goes out as the network takes it; ends are immediate, except
  // shutdown_write(), which follows what is queued.

  void send(std::string_view data) { outbox_.append(data); }
  /// Sends `bytes` of Pattern(seed); nothing else may be sent afterwards.
  void send_pattern(std::uint64_t seed, std::uint64_t bytes);
  /// At once, and nothing may be queued.
  void send_urgent(char byte);
  void shutdown_write() { fin_wanted_ = true; }
  void reset();
  void close();
  /// PeerSocket::forget().
  void forget();
  /// From now on it sends back what it gets, and FIN after FIN.
  void echo() { echo_ = true; }
  void pause() { paused_ = true; }
  void resume() { paused_ = false; }
  /// Reads no more than `bytes` in one turn.
  void set_read_size(std::size_t bytes) { read_size_ = bytes; }
  /// Gives the network no more than `bytes` in one call.
  void set_write_size(std::size_t bytes) { write_size_ = bytes; }
  /// Compares what arrives with Pattern(seed) instead of keeping it.
  void expect_pattern(std::uint64_t seed) { expected_.emplace(seed); }
  PeerSocket& socket() { return *socket_; }

  // --- What it saw.

  const std::string& received() const { return received_; }
  std::uint64_t received_bytes() const { return received_bytes_; }
  std::uint64_t sent_bytes() const { return sent_bytes_; }
  /// Everything has been sent, including FIN if requested.
  bool all_sent() const { return outbox_.empty() && to_send_ == 0 && fin_wanted_ == fin_sent_; }
  /// Everything sent has arrived at the other end of the wire.
  bool all_arrived() { return all_sent() && (is_closed() || socket_->unacknowledged() == 0); }
  bool eof() const { return eof_; }
  /// A call failed with an error: RST was received, or the connect failed.
  bool was_reset() const { return error_ != 0; }
  int error() const { return error_; }
  bool ended() const { return eof_ || was_reset() || closed_; }
  bool is_closed() const { return closed_; }
  /// False if what arrived differs from what was expected.
  bool intact() const { return intact_; }

  /// Sends and reads what it can; true if anything moved.
  bool pump();

 private:
  bool pump_out();
  bool pump_in();
  void refill();
  void take(std::string_view data);

  std::unique_ptr<PeerSocket> socket_;
  std::string outbox_;
  std::optional<Pattern> source_;
  std::uint64_t to_send_ = 0;  // bytes of source_ that are not in outbox_ yet
  std::uint64_t sent_bytes_ = 0;
  bool fin_wanted_ = false;
  bool fin_sent_ = false;

  std::string received_;
  std::optional<Pattern> expected_;
  std::string expected_rest_;  // made and not yet compared
  std::uint64_t received_bytes_ = 0;
  std::size_t read_size_ = SIZE_MAX;
  std::size_t write_size_ = SIZE_MAX;
  bool paused_ = false;
  bool echo_ = false;
  bool intact_ = true;
  bool read_ended_ = false;
  bool eof_ = false;
  bool closed_ = false;
  int error_ = 0;
};

struct RigOptions {
  ConnectionOptions connections = {};
  std::uint32_t connections_max = 256;
  std::uint32_t pipes_max = 256;
  GuestAnswer guest = GuestAnswer::kServes;
  int family = AF_INET;
  bool dual_stack = false;  // beside IPv4, node and guest have an IPv6 address each
  int device = kAnyDevice;
  ForwardSource source = {};
  bool unix_socket = false;  // the service is behind one; simulated only
  const FairShare* share = nullptr;
  SimNetworkOptions network = {};  // of the simulated world
  SimFaults faults = {};           // there
  UringEnter uring_enter = nullptr;
};

class Rig {
 public:
  static constexpr Nanos kTurn = std::chrono::milliseconds(1);

  /// Ready if why_not() is empty.
  explicit Rig(Backend backend, const RigOptions& options = {});
  ~Rig();
  Rig(const Rig&) = delete;
  Rig& operator=(const Rig&) = delete;

  const std::string& why_not() const { return why_not_; }
  World& world() { return *world_; }
  ServedForward& forward() { return *forward_; }
  /// Makes the guest's service, which refuses with GuestAnswer::kRefuses, serve from now on, or refuse
  /// again.
  void set_serving(bool serving) { world_->set_serving(service_, serving); }
  /// The same at the guest's IPv6 address, if it has both.
  void set_serving_v6(bool serving) { world_->set_serving(service_v6_, serving); }
  /// The guest gets another address, or one of the family that it has two of: the endpoint of a new service,
  /// which accept(), open() and so on use from now on. Posts the control plane's message; turn() handles it.
  void move_guest(GuestAnswer answer = GuestAnswer::kServes);
  /// From now on it has one address only, which clients of both families share.
  void drop_guest_v6();
  int listener() const { return listener_; }
  SimIo* sim() { return world_->sim(); }
  SimRefusals& refusals() { return *world_->refusals(); }
  /// From now on the guest refuses, or serves, this client; simulated only.
  void set_serving(const IpAddress& client, bool serving) { world_->set_serving(service_, client, serving); }
  Worker& worker() { return *worker_; }
  const WorkerCounters& counters() const { return worker_->counters(); }
  ForwardStats stats() const { return forward_->stats(); }
  std::uint64_t closed(CloseSide side, CloseHow how) const;
  /// Bytes that the forward has moved both ways.
  std::uint64_t moved_bytes() const { return stats().received_bytes + stats().sent_bytes; }

  /// A new client, on its way to the forward; from an address of its own in the simulator.
  Peer& connect(const std::optional<IpAddress>& from = std::nullopt);
  /// Another listener of the forward, with clients of its own.
  Endpoint add_listener();
  Peer& connect_to(const Endpoint& entry, const std::optional<IpAddress>& from = std::nullopt);
  /// The same to the forward's IPv6 address, if it has both.
  Peer& connect_v6(const std::optional<IpAddress>& from = std::nullopt);
  /// The next connection to the guest, if there is one now; and the same after waiting for it.
  Peer* try_accept();
  Peer* try_accept_v6();
  Peer& accept();
  struct Pair {
    Peer& client;
    Peer& guest;
  };
  /// A client and the guest's side of its connection.
  Pair open();
  /// Closes the peer's end and forgets it.
  void drop(Peer& peer);

  /// As the control plane would.
  void close_forward(ClosePolicy policy, CloseHow why = CloseHow::kForwardDeleted);
  /// The control plane's requests, answered in the worker's next turn.
  std::vector<LiveConnection> connections(ConnectionId after = 0, std::size_t limit = 1000);
  std::size_t end_connections(ConnectionId connection);
  /// Ends the worker, as the daemon's shutdown does.
  void stop();

  /// The records of all connections that have ended, in that order.
  const std::vector<CloseRecord>& records();

  /// One turn of the worker, which may wait for that long unless a peer has just moved something, and of
  /// every peer. True if a peer moved something.
  bool turn(Nanos wait = kTurn);
  /// False if it did not come true within `limit` on the world's clock.
  bool run_until(const std::function<bool()>& condition, Nanos limit = std::chrono::seconds(30));
  /// On the world's clock. The longer nothing moves, the longer are the turns: up to 64 ms.
  void pass_time(Nanos span);
  /// Until nothing has moved for twenty turns in a row; for what must not happen afterwards.
  void settle();
  /// The worker has nothing to do, and waits rather than spins.
  bool worker_sleeps();

 private:
  Peer* try_accept_at(const Endpoint& service);
  Endpoint serve(int family, GuestAnswer answer);
  void change_guest(const GuestEndpoints& guest);
  void shut_down(int listener);
  void check_nothing_is_left();
  void check_records();

  std::unique_ptr<World> world_;
  std::string why_not_;
  std::size_t descriptors_before_;
  SlotArena arena_;
  std::unique_ptr<Worker> worker_;
  ServedForwardPtr forward_;
  Endpoint entry_;    // where clients connect to
  Endpoint service_;  // the guest's
  Endpoint entry_v6_;
  Endpoint service_v6_;
  int listener_ = -1;
  int listener_v6_ = -1;
  std::vector<CloseRecord> records_;
  bool moved_ = false;  // in the last turn
  std::deque<std::unique_ptr<Peer>> peers_;
};

}  // namespace portway::test
