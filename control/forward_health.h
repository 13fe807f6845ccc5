// What clients' failures say about a forward: whether its guest serves anybody now.
//
// A client that did not get through makes a forward suspect. Then its guest is asked with half a handshake
// (network/syn_probe.h), which its service never sees, as any client would come, and the answer decides. Only
// silence after a client was refused does not: there may be no route back to the probe. A forward that nobody
// uses is not asked: it is taken to be served until a client finds out otherwise.
//
// While a guest does not serve, it is asked again: after kAskMin, later after an eighth of the time that it
// has been away, at least every kAskMax; and with every client that fails, but not more often than kAskMin.
// A client that is served ends it at once. If it then fails again, that is believed after kHoldMin only, and
// twice as long each time, up to kHoldMax: a guest that serves some clients and refuses others does not
// change its state with each of them.
//
// At most kProbesMax guests are asked at a time, the first suspect first. A forward to a Unix socket is not
// asked: a failure is believed until a client is served, or kBelieved have passed without another one.
//
// Control thread. Idle without suspects.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/functional/hash.hpp>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "base/endpoint.h"
#include "base/forward.h"
#include "control/forward_state.h"
#include "network/syn_probe.h"
#include "proxy/close_record.h"

namespace portway {

class ForwardHealth {
 public:
  using Clock = std::chrono::steady_clock;

  static constexpr std::chrono::milliseconds kAskMin{500};
  static constexpr std::chrono::seconds kAskMax{10};
  static constexpr std::chrono::seconds kAnswerMax{1};  // then the guest does not answer
  static constexpr std::chrono::seconds kHoldMin{1};
  static constexpr std::chrono::seconds kHoldMax{60};
  static constexpr std::chrono::seconds kBelieved{10};
  static constexpr std::chrono::seconds kLimitFor{2};  // after the last client that a limit turned away
  static constexpr std::size_t kProbesMax = 64;

  struct Hooks {
    /// Asks a guest of the forward. 0 or a negative errno, as SynProbe::open(); -EPERM: it cannot be asked.
    std::function<int(const ForwardId&, const Endpoint& guest, SynProbe& out)> ask;
    /// How many connections of the forward guests have answered.
    std::function<std::uint64_t(const ForwardId&)> established;
    /// cause() of the forward may be another one now.
    std::function<void(const ForwardId&)> on_change;
  };

  ForwardHealth(boost::asio::io_context& context, Hooks hooks);

  /// A client of the forward did not get through.
  void note(const CloseRecord& record);
  /// Its guest or its port is another one, or it is gone.
  void forget(const ForwardId& id);

  /// kNone, kGuestRefusing, kGuestUnreachable, kDeviceDown, kLimitReached or kNodeResources.
  ForwardCause cause(const ForwardId& id) const;

 private:
  struct Suspect {
    ForwardCause verdict = ForwardCause::kNone;
    ForwardCause suspected = ForwardCause::kNone;  // by a client, and not yet confirmed
    Endpoint guest = {};                           // which of the guest's
    std::uint64_t established = 0;                 // Hooks::established() at the last look
    Clock::time_point failed_at{};                 // the last client that did not get through to the guest
    Clock::time_point away_since{};                // of the verdict
    Clock::time_point asked_at{};                  // the last time
    Clock::time_point limit_until{};
    Clock::time_point hold_until{};  // nothing is believed before
    std::chrono::milliseconds hold{0};
    SynProbe probe = {};
    bool is_due = false;    // in due_
    bool is_asked = false;  // in asked_
  };
  using Suspects = std::unordered_map<ForwardId, Suspect, boost::hash<ForwardId>>;

  static ForwardCause cause_of(const Suspect& suspect, Clock::time_point now);
  static bool is_to_be_asked(const Suspect& suspect, Clock::time_point now);
  static bool is_over(const Suspect& suspect, Clock::time_point now);
  void wait();
  void look();
  void look_at_all(Clock::time_point now);
  void take_answers(Clock::time_point now);
  void ask_some(Clock::time_point now);
  static void on_served(Suspect& suspect, Clock::time_point now);
  static void conclude(Suspect& suspect, int answer, Clock::time_point now);

  boost::asio::steady_timer timer_;
  const Hooks hooks_;
  Suspects suspects_;
  std::deque<ForwardId> due_;      // to be asked
  std::vector<ForwardId> asked_;   // whose answers are awaited
  Clock::time_point looked_at_{};  // at all
  bool waiting_ = false;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // for the timer's handler
};

}  // namespace portway
