// Refuses clients while a guest's port is closed, as DNAT does: the node answers their SYNs with RST, and the
// guest's port is probed until it is open.
//
// A refusal applies to whomever the guest has refused. If guests see their clients' own addresses, that is
// one client: the guest's packet filter may refuse it and nobody else (a *client gate*, kept by
// ClientRefusals). If the guest sees the node's address for every client, the refusal applies to all
// clients (a *forward gate*: the forward's listeners are shut). The client whose connection the guest
// refused has already been accepted and sees a reset; afterwards it, or everybody, sees "connection
// refused". If a guest has an address of each family, "everybody" means the clients of one family: the
// port may be open on the other address.
//
// The guest is probed again before anybody is refused: its refusal may have been temporary, or concern one
// connection. The probe comes from the address that was refused, and its SYN becomes no connection
// (Io::probe). The interval is an eighth of the time that the port has been closed, at least 10 ms and at
// most `interval_max`. A client gate ends if its client has not come back for kForgetAfter, and probes
// half as often while it stays away. A forward gate, which cannot see whether clients come, ends after
// kForwardGateMax. In doubt, clients are let in: after silence, after an error, or if the table is full.
//
// A guest that limits the rate of connections refuses some of them, and a probe uses up a client's place.
// So if clients were let in and the next one is refused before any was served, clients are let in for a
// while: kLetInMin, doubled each time. After kForgetAfter the doubling starts over.
//
// At most kGatesMax gates per worker and kGatesPerForward per forward. A further one replaces the gate
// that has waited longest.
//
// Belongs to one worker's thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "network/client_refusals.h"
#include "proxy/io.h"
#include "proxy/noted_refusal.h"
#include "proxy/served_forward.h"
#include "proxy/stats.h"

namespace portway {

/// A guest has refused a connection.
struct Refusal {
  ServedForwardPtr forward;
  IpAddress client;
  Endpoint guest;             // which of the guest's endpoints
  Endpoint local;             // what the client connected to
  bool own_address = false;   // the guest saw the client's address; else the node's
  bool concerns_all = false;  // the guest sees every client of the forward like this one
};

class RefusalGates {
 public:
  static constexpr std::size_t kGatesMax = portway::kGatesMax;
  static constexpr std::size_t kGatesPerForward = 8;
  static constexpr std::chrono::seconds kForgetAfter{3};
  static constexpr std::chrono::seconds kForwardGateMax{60};
  static constexpr std::chrono::milliseconds kLetInMin{100};
  static constexpr unsigned kInVainMax = 8;  // how often the time doubles: 12.8 s

  /// What the gates need from their worker.
  struct Hooks {
    /// Shuts or opens a forward's listeners: with `v6` those that lead to the guest's second address
    /// (GuestEndpoints::goes_v6), else the others. open() returns false if it failed: call it again later.
    std::function<void(const ServedForwardPtr&, bool v6)> shut;
    std::function<bool(const ServedForwardPtr&, bool v6)> open;
    std::function<PortRange()> source_ports;  // of a probe; see SynProbeTarget
  };

  /// `token_base` is or'ed into the tokens of its polls. `interval_max` zero: nobody is ever refused.
  /// `refusals` null: no client gates. `notes`: for a successor, kGatesMax free ones.
  RefusalGates(Io& io, Nanos interval_max, ClientRefusals* refusals, WorkerCounters& counters,
               Token token_base, Hooks hooks, std::span<NotedRefusal> notes);
  ~RefusalGates();
  RefusalGates(const RefusalGates&) = delete;
  RefusalGates& operator=(const RefusalGates&) = delete;

  void add(const Refusal& refusal);
  /// A predecessor has been refusing them: nobody is let in before a probe.
  void adopt(const Refusal& refusal);
  /// The forward is closed: removes its gates and leaves its listeners as they are.
  void forget(const ServedForwardPtr& forward);
  void forget_all();
  /// The forward's guest has other addresses: lets its clients in again.
  void lift(const ServedForwardPtr& forward);

  /// A completion of a probe's poll; `token` is what token_base was or'ed with.
  void on_poll(Token token, const Completion& completion);
  /// Probes what is due.
  void run();
  /// Zero if something is due.
  Nanos until_next() const;

  /// No gate and no descriptor is left.
  bool empty() const { return in_use_ == 0; }

 private:
  enum class State : std::uint8_t {
    kFree,
    kWaiting,  // until due, for the next probe
    kProbing,  // until due, for the guest's answer or the next check for it
    kEnding,   // for the last completion of the probe's poll
    kOpen,     // clients are let in; the outcome is known at due
  };
  enum class Verdict : std::uint8_t { kRefused, kLetIn, kForgotten };

  struct Gate {
    ServedForwardPtr forward;
    bool v6 = false;                // of the clients that go to the guest's second address
    std::optional<Refusal> client;  // of a client gate
    State state = State::kFree;
    Verdict verdict = Verdict::kRefused;
    bool shut = false;  // clients are refused
    bool armed = false;
    bool asked = true;  // a client has come between the last two probes
    std::unique_ptr<PortProbe> probe;
    Nanos since{};    // when it was added
    Nanos probed{};   // when the last probe began
    Nanos give_up{};  // while probing: stop waiting for an answer then
    Nanos due{};
    std::uint64_t served = 0;  // connections that the forward had served when the gate opened
    unsigned in_vain = 0;      // how often it opened and the next client was refused
    bool told = false;         // the outcome of this opening is known
    Nanos open_until{};
  };

  Gate* find(const Refusal& refusal);
  Gate* place_for(const Refusal& refusal);
  bool shut(Gate& gate);
  bool open(Gate& gate);
  Nanos last_asked(const Gate& gate) const;
  void on_due(std::uint32_t index);
  void probe(std::uint32_t index);
  void ask(std::uint32_t index);
  void end_probe(std::uint32_t index, Verdict verdict);
  void settle(std::uint32_t index);
  void wait(Gate& gate);
  void let_in(Gate& gate);
  void refused_again(Gate& gate);
  void release(Gate& gate);
  NotedRefusal& note_of(const Gate& gate);

  Io& io_;
  const Nanos interval_max_;
  ClientRefusals* const refusals_;
  WorkerCounters& counters_;
  const Token token_base_;
  const Hooks hooks_;
  const std::span<NotedRefusal> notes_;  // of gates_
  std::vector<Gate> gates_;              // kGatesMax at most
  std::size_t in_use_ = 0;
};

}  // namespace portway
