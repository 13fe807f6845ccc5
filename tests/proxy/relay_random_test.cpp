// Random connections that do random things, checked against what each end sent. In the simulator also with
// random buffers, delays and faults.
//
// PORTWAY_SEED=N repeats one seed; PORTWAY_SEEDS=N runs N seeds. PORTWAY_SAMPLE_DIVISOR: only one of so many,
// where each takes long (sanitizers).
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/proxy/relay_suite.h"

namespace portway::test {
namespace {

class RelayRandom : public RelaySuite {};
INSTANTIATE_TEST_SUITE_P(Relay, RelayRandom, testing::ValuesIn(kBackends), backend_name);

constexpr std::size_t kHeader = 8;  // the client's number, with which each stream to a guest begins
constexpr std::size_t kTape = 1 << 20;

/// Every stream is a section of one tape, from its own position.
std::string stretch(std::uint64_t stream, std::uint64_t from, std::size_t size) {
  static const std::string tape = [] {
    std::string bytes(kTape, '\0');
    Pattern(42).fill(bytes);
    return bytes;
  }();
  std::string out;
  out.reserve(size);
  std::size_t at = (stream * 104729 + from) % kTape;
  while (out.size() < size) {
    out.append(tape, at, size - out.size());
    at = 0;
  }
  return out;
}

/// One end, and what it did.
struct End {
  Peer* peer = nullptr;
  std::uint64_t stream = 0;
  std::uint64_t written = 0;  // bytes given to send()
  bool ended = false;         // shutdown_write()
  bool aborted = false;       // reset or closed: it may have discarded data
};

struct Pair {
  End client;
  End guest;
};

std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  const char* value = std::getenv(variable);
  return value != nullptr ? std::strtoull(value, nullptr, 10) : otherwise;
}

class RandomRun {
 public:
  RandomRun(Backend backend, std::uint64_t seed) : random_(seed), rig_(backend, options(seed)) {
    if (rig_.sim() != nullptr && chance(3)) rig_.sim()->set_pipe_slots_max(1 + pick(16));
  }

  void run() {
    for (std::uint64_t steps = 100 + pick(400); steps > 0; --steps) {
      step();
      for (std::uint64_t turns = pick(4); turns > 0; --turns) turn();
      if (testing::Test::HasFatalFailure()) return;
    }
    finish();
  }

 private:
  RigOptions options(std::uint64_t seed) {
    RigOptions options;
    options.connections.config.connect_timeout = 1h;
    options.pipes_max = static_cast<std::uint32_t>(one_of({0, 1, 2, 256}));
    options.network = {.latency = Nanos(1000 + pick(200'000)),
                       .jitter = Nanos(pick(500'000)),
                       .receive_buffer = one_of({1024, 8192, 65536, 262144}),
                       .send_buffer = one_of({1024, 8192, 65536, 262144}),
                       .segment = one_of({64, 1448, 16384, 65536}),
                       .seed = seed};
    const double p = static_cast<double>(pick(4)) * 0.1;
    options.faults = {.partial_read = p,
                      .partial_write = p,
                      .spurious_again = p / 2,
                      .delayed_event = p,
                      .early_end = p / 4,
                      .spurious_event = p / 4,
                      .bare_event = p * 2,
                      .no_pages = p / 2};
    return options;
  }

  std::uint64_t pick(std::uint64_t count) { return random_() % count; }
  std::uint64_t one_of(const std::array<std::uint64_t, 4>& choices) { return choices[pick(4)]; }
  bool chance(std::uint64_t one_in) { return pick(one_in) == 0; }

  void turn() {
    rig_.turn();
    while (Peer* guest = rig_.try_accept()) unnamed_.push_back(guest);
    // The header identifies the client of a guest's connection.
    std::erase_if(unnamed_, [this](Peer* guest) {
      if (guest->received().size() < kHeader) return false;
      const std::uint64_t number = std::stoull(guest->received().substr(0, kHeader));
      pairs_.at(number)->guest.peer = guest;
      return true;
    });
    for (const auto& pair : pairs_) check(*pair);
  }

  void step() {
    if (pairs_.empty() || (pairs_.size() < 30 && chance(10))) {
      add();
      return;
    }
    Pair& pair = *pairs_[pick(pairs_.size())];
    End& end = chance(2) ? pair.client : pair.guest;
    if (end.peer == nullptr || end.aborted) return;
    const std::uint64_t action = pick(100);
    if (action < 55) {
      write(end, 1 + pick(one_of({10, 1000, 20'000, 300'000})));
    } else if (action < 65) {
      end.peer->pause();
    } else if (action < 85) {
      end.peer->resume();
    } else if (action < 93) {
      shut_down(end);
    } else if (action < 97) {
      end.aborted = true;
      end.peer->reset();
    } else {
      end.aborted = true;
      end.peer->close();
    }
  }

  void add() {
    auto pair = std::make_unique<Pair>();
    const std::uint64_t number = pairs_.size();
    pair->client = {.peer = &rig_.connect(), .stream = 2 * number};
    pair->guest = {.stream = 2 * number + 1};
    std::string header = std::to_string(number);
    header.insert(0, kHeader - header.size(), '0');
    pair->client.peer->send(header);
    pairs_.push_back(std::move(pair));
  }

  void write(End& end, std::uint64_t size) {
    if (end.ended || end.written > 4 * kMiB) return;
    end.peer->send(stretch(end.stream, end.written, size));
    end.written += size;
  }

  void shut_down(End& end) {
    end.ended = true;
    end.peer->shutdown_write();
  }

  /// Checks that an end has a prefix of what the other one wrote, and all of it once it has seen a FIN.
  void check(Pair& pair) {
    check(pair.guest, pair.client, kHeader);
    check(pair.client, pair.guest, 0);
  }
  void check(End& reader, const End& writer, std::size_t header) {
    if (reader.peer == nullptr || reader.peer->received().size() < header) return;
    std::uint64_t& checked = checked_[reader.stream];
    const std::string_view got = std::string_view(reader.peer->received()).substr(header);
    ASSERT_LE(got.size(), writer.written);
    ASSERT_TRUE(got.substr(checked) == stretch(writer.stream, checked, got.size() - checked))
        << "stream " << writer.stream;
    checked = got.size();
    if (!reader.peer->eof()) return;
    ASSERT_TRUE(writer.ended || writer.aborted) << "a FIN that nobody sent";
    // If a writer closed after sending everything, that is a FIN too; otherwise it must not be one.
    ASSERT_EQ(got.size() + header, writer.peer->sent_bytes())
        << "a FIN before the end of stream " << writer.stream;
  }

  void finish() {
    for (const auto& pair : pairs_) {
      for (End* end : {&pair->client, &pair->guest}) {
        if (end->peer == nullptr || end->aborted) continue;
        end->peer->resume();
        shut_down(*end);
      }
    }
    EXPECT_TRUE(rig_.run_until(
        [this] {
          turn();
          for (const auto& pair : pairs_) {
            if (pair->guest.peer == nullptr || pair->guest.ended || pair->guest.aborted) continue;
            shut_down(pair->guest);
          }
          // Their clients ended before the header was sent.
          for (Peer* guest : unnamed_) {
            if (guest->ended()) guest->shutdown_write();
          }
          return rig_.stats().connections_active == 0 && std::ranges::all_of(pairs_, [](const auto& pair) {
                   return pair->client.peer->ended() &&
                          (pair->guest.peer == nullptr || pair->guest.peer->ended());
                 });
        },
        300s))
        << "a connection does not end";
    std::uint64_t sent[2] = {0, 0};
    std::uint64_t received[2] = {0, 0};
    for (const auto& pair : pairs_) {
      for (const End* end : {&pair->client, &pair->guest}) {
        if (end->peer == nullptr) continue;
        const std::size_t side = end == &pair->client ? 0 : 1;
        sent[side] += end->peer->sent_bytes();
        received[side] += end->peer->received_bytes();
      }
    }
    // Resets lose bytes before and after they are counted.
    const ForwardStats stats = rig_.stats();
    EXPECT_LE(stats.received_bytes, sent[0]);
    EXPECT_GE(stats.received_bytes, received[1]);
    EXPECT_LE(stats.sent_bytes, sent[1]);
    EXPECT_GE(stats.sent_bytes, received[0]);
    for (const auto& pair : pairs_) {
      if (pair->client.aborted || pair->guest.aborted) continue;
      EXPECT_TRUE(pair->client.peer->eof()) << "error " << pair->client.peer->error();
      EXPECT_TRUE(pair->guest.peer != nullptr && pair->guest.peer->eof());
    }
  }

  std::mt19937_64 random_;
  Rig rig_;
  std::vector<std::unique_ptr<Pair>> pairs_;
  std::vector<Peer*> unnamed_;                      // guests' ends whose header is still on its way
  std::map<std::uint64_t, std::uint64_t> checked_;  // by stream: how much of it was compared
};

TEST_P(RelayRandom, WhateverBothEndsDoTheirStreamsStayWhole) {
  const std::uint64_t one = number_from("PORTWAY_SEED", 0);
  const std::uint64_t divisor = number_from("PORTWAY_SAMPLE_DIVISOR", 1);
  const std::uint64_t seeds = number_from(
      "PORTWAY_SEEDS", (GetParam() == Backend::kSim ? 40 : 6) / std::max<std::uint64_t>(divisor, 1));
  for (std::uint64_t seed = one != 0 ? one : 1; seed <= (one != 0 ? one : seeds); ++seed) {
    SCOPED_TRACE("PORTWAY_SEED=" + std::to_string(seed));
    RandomRun(GetParam(), seed).run();
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace portway::test
