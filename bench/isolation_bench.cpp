// How long a worker lets a bystander wait while many connections of another forward end, their forward is
// closed, or a backlog is accepted: in the simulator, with more connections than a machine's limits may
// allow.
//
// Time is that of the worker's longest turn, without the simulator's own event search. The system calls
// are the simulator's, so this shows how work grows, not how long a kernel takes: `echo_us`, the
// bystander's worst round trip, is the time of all turns that it took.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "proxy/slot_arena.h"
#include "proxy/worker.h"
#include "tests/sim/sim_io.h"
#include "tests/sim/sim_network.h"

namespace portway {
namespace {

using Clock = std::chrono::steady_clock;
using test::SimNetwork;
using test::SimSocket;

class TimedIo final : public test::SimIo {
 public:
  using SimIo::SimIo;

  std::span<const Completion> wait(Nanos timeout) override {
    const auto begin = Clock::now();
    const auto completions = SimIo::wait(timeout);
    waited_ += Clock::now() - begin;
    return completions;
  }
  Clock::duration take_waited() { return std::exchange(waited_, {}); }

 private:
  Clock::duration waited_{};
};

/// A worker with two forwards: a busy one with many connections, and that of a bystander.
class Scene {
 public:
  explicit Scene(std::size_t connections)
      : arena_(connections + 16),
        io_(new TimedIo(network_)),
        worker_(std::unique_ptr<Io>(io_), {}, arena_.table(0)) {
    busy_ = open(1);
    quiet_ = open(2);
    bystander_.client = connect(quiet_);
    until([&] { return (bystander_.guest = quiet_.service->accept()) != nullptr; });
    send();
    until([&] { return answered_ > 0; });
    slowest_ = {};
    worst_echo_ = {};
  }
  ~Scene() {
    for (SimSocket* client : clients_) client->close();
    bystander_.client->close();
    worker_.post(Worker::Stop{});
    until([&] { return worker_.stopped(); });
  }

  /// Clients that the guest has answered.
  void fill(std::size_t connections) {
    clients_.reserve(connections);
    constexpr std::size_t kAtATime = 1000;
    while (clients_.size() < connections) {
      arrive(std::min(kAtATime, connections - clients_.size()));
      until([&] { return active() == clients_.size() && serve() == clients_.size(); });
    }
    forget();
  }
  /// Clients whose connections nobody has accepted yet.
  void arrive(std::size_t connections) {
    for (std::size_t i = 0; i < connections; ++i) clients_.push_back(connect(busy_));
    network_.advance_to(network_.now() + std::chrono::milliseconds(1));
  }
  /// All clients close at the same time.
  void leave() {
    for (SimSocket* client : clients_) client->close();
    clients_.clear();
    for (SimSocket* guest : guests_) guest->close();
    guests_.clear();
    network_.advance_to(network_.now() + std::chrono::milliseconds(1));
  }
  void close_busy_forward() {
    busy_.forward->advance(ForwardPhase::kEnded, CloseHow::kForwardDeleted);
    io_->shutdown(busy_.listener, SHUT_RD);
    worker_.post(Worker::CloseForward{busy_.forward});
  }
  /// One without connections.
  void close_another_forward() {
    Forward other = open(3);
    worker_.turn(Nanos::zero());
    forget();
    other.forward->advance(ForwardPhase::kEnded, CloseHow::kForwardDeleted);
    io_->shutdown(other.listener, SHUT_RD);
    worker_.post(Worker::CloseForward{other.forward});
  }

  std::uint64_t active() const { return busy_.forward->connections_now(); }
  std::size_t serve() {
    while (SimSocket* guest = busy_.service->accept()) guests_.push_back(guest);
    return guests_.size();
  }

  /// Takes turns until it is true, and then until the bystander's last echo has arrived.
  template <class Condition>
  void until(Condition condition) {
    constexpr int kTurnsMax = 1'000'000;
    for (int turn = 0; !condition(); ++turn) {
      if (turn == kTurnsMax) std::abort();
      this->turn();
    }
  }
  void turn() {
    io_->take_waited();
    const auto begin = Clock::now();
    worker_.turn(std::chrono::milliseconds(1));
    const auto took = Clock::now() - begin - io_->take_waited();
    slowest_ = std::max(slowest_, took);
    echo_ += took;
    ++turns_;
    drain();
    serve_bystander();
  }
  /// Discards what was measured so far.
  void forget() {
    slowest_ = worst_echo_ = {};
    turns_ = 0;
  }

  double slowest_s() const { return std::chrono::duration<double>(slowest_).count(); }
  double worst_echo_us() const { return std::chrono::duration<double, std::micro>(worst_echo_).count(); }
  double turns() const { return static_cast<double>(turns_); }
  std::uint64_t answered() const { return answered_; }

 private:
  struct Forward {
    ServedForwardPtr forward;
    test::SimListener* service = nullptr;
    Endpoint entry;
    int listener = -1;
  };

  static Endpoint endpoint(std::uint16_t port) { return {boost::asio::ip::address_v4::loopback(), port}; }

  Forward open(std::uint16_t number) {
    Forward opened{.forward = nullptr, .entry = endpoint(static_cast<std::uint16_t>(1000 + number))};
    const Endpoint service = endpoint(static_cast<std::uint16_t>(2000 + number));
    opened.service = &network_.listen(service);
    opened.forward =
        std::make_shared<ServedForward>(ForwardRoute{.id = make_uuid(), .guest = {.endpoint = service}}, 1);
    opened.listener = io_->listen(opened.entry);
    std::vector<Fd> listeners;
    listeners.emplace_back(opened.listener);
    worker_.post(Worker::OpenForward{opened.forward, std::move(listeners)});
    worker_.turn(std::chrono::milliseconds(1));
    return opened;
  }
  SimSocket* connect(const Forward& forward) {
    SimSocket& client = network_.socket();
    client.connect(forward.entry);
    return &client;
  }

  void send() {
    bystander_.client->send("ping", 0);
    echo_ = {};
  }
  void serve_bystander() {
    char buffer[16];
    if (bystander_.guest == nullptr) return;
    const auto asked = bystander_.guest->recv(buffer, 0);
    if (asked > 0) bystander_.guest->send({buffer, static_cast<std::size_t>(asked)}, 0);
    if (bystander_.client->recv(buffer, 0) <= 0) return;
    worst_echo_ = std::max(worst_echo_, echo_);
    ++answered_;
    send();
  }
  void drain() {
    worker_.drain_closes([](CloseRecord&&) {});
  }

  SimNetwork network_;
  SlotArena arena_;
  TimedIo* io_;
  Worker worker_;
  Forward busy_;
  Forward quiet_;
  struct {
    SimSocket* client = nullptr;
    SimSocket* guest = nullptr;
  } bystander_;
  std::vector<SimSocket*> clients_;
  std::vector<SimSocket*> guests_;
  Clock::duration slowest_{};
  Clock::duration echo_{};
  Clock::duration worst_echo_{};
  std::uint64_t turns_ = 0;
  std::uint64_t answered_ = 0;
};

template <class Prepare, class Disturb, class Done>
void run(benchmark::State& state, Prepare prepare, Disturb disturb, Done done) {
  const auto connections = static_cast<std::size_t>(state.range(0));
  double worst_echo_us = 0;
  double turns = 0;
  for (auto _ : state) {
    Scene scene(connections);
    prepare(scene, connections);
    scene.forget();
    const std::uint64_t answered = scene.answered();
    disturb(scene, connections);
    scene.until([&] { return done(scene, connections) && scene.answered() > answered + 1; });
    state.SetIterationTime(scene.slowest_s());
    worst_echo_us = std::max(worst_echo_us, scene.worst_echo_us());
    turns = scene.turns();
  }
  state.counters["echo_us"] = worst_echo_us;
  state.counters["turns"] = turns;
}

void fill(Scene& scene, std::size_t connections) {
  scene.fill(connections);
}
bool empty(Scene& scene, std::size_t) {
  return scene.active() == 0;
}

void BM_ConnectionsEnd(benchmark::State& state) {
  run(
      state, fill, [](Scene& scene, std::size_t) { scene.leave(); }, empty);
}
void BM_TheirForwardIsClosed(benchmark::State& state) {
  run(
      state, fill, [](Scene& scene, std::size_t) { scene.close_busy_forward(); }, empty);
}
void BM_AnotherForwardIsClosed(benchmark::State& state) {
  run(
      state, fill, [](Scene& scene, std::size_t) { scene.close_another_forward(); },
      [](Scene&, std::size_t) { return true; });
}
void BM_BacklogIsAccepted(benchmark::State& state) {
  run(
      state, [](Scene&, std::size_t) {},
      [](Scene& scene, std::size_t connections) { scene.arrive(connections); },
      [](Scene& scene, std::size_t connections) {
        return scene.active() == connections && scene.serve() == connections;
      });
}

#define WITH_CONNECTIONS ArgName("connections")->Iterations(1)->UseManualTime()->Unit(benchmark::kMicrosecond)
BENCHMARK(BM_ConnectionsEnd)->WITH_CONNECTIONS->Arg(64)->Arg(1000)->Arg(50'000);
BENCHMARK(BM_TheirForwardIsClosed)->WITH_CONNECTIONS->Arg(64)->Arg(1000)->Arg(50'000);
BENCHMARK(BM_AnotherForwardIsClosed)->WITH_CONNECTIONS->Arg(64)->Arg(1000)->Arg(50'000);
BENCHMARK(BM_BacklogIsAccepted)->WITH_CONNECTIONS->Arg(64)->Arg(4096);

}  // namespace
}  // namespace portway
