// Refuses clients while a guest's port is closed, as DNAT does: the node answers their SYNs with RST, and the
// guest's port is probed until it is open.
//
// A refusal applies to whom the guest has refused. If guests see their clients' own addresses, that is one
// client: the guest's packet filter may refuse it and nobody else (a *client gate*, kept by ClientRefusals).
// If the guest sees the node whoever the client is, it applies to all clients (a *forward gate*: the
// forward's listeners are shut). The client whose connection the guest refused was accepted before, and sees
// a reset; afterwards it, or everybody, sees "connection refused". If a guest has an address of each family,
// "everybody" is the clients of one family: the other address's port is another port.
//
// The guest is probed again before anybody is refused: its refusal may have been temporary, or concern one
// connection. The probe comes from the address that was refused, and its SYN becomes no connection
// (Io::probe). The interval grows with the time that the port has been closed: an eighth of it, at least 10
// ms and at most `interval_max`. A client gate ends if its client has not come back for kForgetAfter, and
// probes half as often while it stays away. A forward gate, which cannot know, ends after kForwardGateMax. In
// doubt, clients are let in: after silence, an error, or with a full table.
//
// A guest that limits the rate of connections refuses some of them, and a probe takes the place of a client.
// So if clients were let in and the next one is refused before any was served, they are let in for a while:
// kLetInMin, and twice as long each time. kForgetAfter later that is forgotten.
//
// At most kGatesMax gates a worker and kGatesPerForward a forward. A further one takes the place of the gate
// that waits longest.
//
// Belongs to one worker's thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "network/client_refusals.h"
#include "proxy/io.h"
#include "proxy/served_forward.h"
#include "proxy/stats.h"

namespace portway {

/// A guest has refused a connection.
struct Refusal {
  ServedForwardPtr forward;
  IpAddress client;
  Endpoint local;             // what the client has connected to
  bool own_address = false;   // the guest has seen the client's address; else the node's
  bool concerns_all = false;  // every client of the forward is seen as this one was
};

class RefusalGates {
 public:
  static constexpr std::size_t kGatesMax = 64;
  static constexpr std::size_t kGatesPerForward = 8;
  static constexpr std::chrono::seconds kForgetAfter{3};
  static constexpr std::chrono::seconds kForwardGateMax{60};
  static constexpr std::chrono::milliseconds kLetInMin{100};
  static constexpr unsigned kInVainMax = 8;  // how often the time doubles: 12.8 s

  /// What the worker does for it.
  struct Hooks {
    /// Shuts or opens a forward's listeners: those that lead to the guest's second address
    /// (ForwardRoute::goes_v6), or the others. open() is false if it failed and is to be called again.
    std::function<void(const ServedForwardPtr&, bool v6)> shut;
    std::function<bool(const ServedForwardPtr&, bool v6)> open;
    std::function<PortRange()> source_ports;  // of a probe; see SynProbeTarget
  };

  /// `token_base` is or'ed into the tokens of its polls. `interval_max` zero: nobody is ever refused.
  /// `refusals` null: no client gates.
  RefusalGates(Io& io, Nanos interval_max, ClientRefusals* refusals, WorkerCounters& counters,
               Token token_base, Hooks hooks);
  ~RefusalGates();
  RefusalGates(const RefusalGates&) = delete;
  RefusalGates& operator=(const RefusalGates&) = delete;

  void add(const Refusal& refusal);
  /// The forward is closed: its gates go, and its listeners stay as they are.
  void forget(const ServedForwardPtr& forward);
  void forget_all();

  /// A completion of a probe's poll; `token` is what token_base was or'ed with.
  void on_poll(Token token, const Completion& completion);
  /// Probes what is due.
  void run();
  /// Zero when something is due.
  Nanos until_next() const;

  /// There is no gate and no descriptor left.
  bool empty() const { return in_use_ == 0; }

 private:
  enum class State : std::uint8_t {
    kFree,
    kWaiting,  // until due, for the next probe
    kProbing,  // until due, for the guest's answer; or to ask for it
    kEnding,   // for the last completion of the probe's poll
    kOpen,     // clients are let in, and until due it is known how that went
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
    Nanos give_up{};  // while probing: no answer by then is none
    Nanos due{};
    std::uint64_t served = 0;  // how many connections the forward had served when it was opened
    unsigned in_vain = 0;      // how often it was opened and the next client was refused
    bool told = false;         // it is known whether it was in vain this time
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

  Io& io_;
  const Nanos interval_max_;
  ClientRefusals* const refusals_;
  WorkerCounters& counters_;
  const Token token_base_;
  const Hooks hooks_;
  std::vector<Gate> gates_;  // kGatesMax at most
  std::size_t in_use_ = 0;
};

}  // namespace portway
