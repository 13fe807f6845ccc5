// The timeouts of a connection.
#include <algorithm>
#include <cerrno>

#include "proxy/connection.h"

namespace portway {
namespace {

// A connection is checked when it has lasted this long, then at intervals that are short compared with
// proxy.user_timeout_s. Checks that are due together are made together, which lets a worker sleep.
constexpr Nanos kFirstLook = std::chrono::seconds(10);
constexpr Nanos kLooksMin = std::chrono::milliseconds(250);
constexpr int kLooksInTimeout = 16;
constexpr int kGrainsInLooks = 64;

Nanos look_after(Nanos now, Nanos wait) {
  const Nanos grain = std::max(wait / kGrainsInLooks, TimerWheel::kTick);
  return (now + wait) / grain * grain + grain;
}

Nanos looks_every(const Config::Proxy& config) {
  return std::max<Nanos>(Nanos(config.user_timeout) / kLooksInTimeout, kLooksMin);
}

/// Zero: never.
Nanos deadline_after(std::int64_t from_ns, Nanos span) {
  return span == Nanos::zero() ? TimerWheel::kNever : Nanos(from_ns) + span;
}

}  // namespace

/// The earliest deadline in the connection's state. Moving bytes does not move the timer: on_deadline()
/// checks again.
Connection::Deadline Connection::deadline() const {
  using Why = Deadline::Why;
  Deadline next;
  const auto consider = [&next](Nanos when, Why why) {
    if (when < next.when) next = {when, why};
  };
  switch (slot_.state) {
    case ConnectionState::kConnecting:
      if (device_due_ != TimerWheel::kNever) {
        consider(look_at_, Why::kDevice);
      } else {
        consider(deadline_after(slot_.accepted_ns, config().connect_timeout), Why::kConnectTimeout);
        consider(look_at_, Why::kConnectError);
      }
      break;
    case ConnectionState::kRelaying:
      consider(reset_deadline(), Why::kUnreadError);
      consider(throttled_until_, Why::kByteRate);
      consider(deadline_after(slot_.active_ns, config().idle_timeout), Why::kIdle);
      consider(deadline_after(slot_.active_ns, forward_->idle_timeout()), Why::kIdle);
      if (has_ended_side())
        consider(deadline_after(slot_.active_ns, config().half_close_timeout), Why::kHalfClosed);
      consider(look_at_, Why::kGuestSilence);
      break;
    case ConnectionState::kResetting:
      consider(look_at_, Why::kDelivery);
      break;
    case ConnectionState::kClosing:
    case ConnectionState::kFree:
      break;
  }
  return next;
}

void Connection::on_deadline() {
  using Why = Deadline::Why;
  const Deadline due = deadline();
  if (due.when > now()) return schedule();  // bytes have moved since it was set
  switch (due.why) {
    case Why::kNone:
      break;
    case Why::kDevice:
      return look_for_device();
    case Why::kConnectError:
      look_at_ = TimerWheel::kNever;
      if (to_unix())
        return on_connecting(context_.upstream.connect_again(fd(kUpstream), *forward_->route.socket));
      if (const int error = -context_.io.socket_error(fd(kUpstream)); error != 0)
        return on_connect_failed(error);
      return schedule();
    case Why::kConnectTimeout:
      return on_connect_failed(ETIMEDOUT);
    case Why::kUnreadError:
      return on_error_unread();
    case Why::kByteRate:
      throttled_until_ = TimerWheel::kNever;
      enqueue();
      return schedule();
    case Why::kIdle:
      return terminate({CloseSide::kNode, CloseHow::kIdleTimeout});
    case Why::kHalfClosed:
      return terminate({CloseSide::kNode, CloseHow::kHalfCloseTimeout});
    case Why::kGuestSilence:
      look_at_guest();
      return schedule();
    case Why::kDelivery:
      return advance_resetting();
  }
}

void Connection::plan_first_look() {
  const bool times_out = config().user_timeout.count() > 0;
  look_at_ = TimerWheel::kNever;
  if (to_unix()) return;  // a process on the node is there until its socket says that it is not
  if (times_out || config().keepalive.count() > 0) {
    look_at_ = look_after(now(), times_out ? std::min(looks_every(config()), kFirstLook) : kFirstLook);
  }
}

/// The guest's silence counts from when it has something to acknowledge, and only if TCP asked for an
/// answer: a guest with a closed window answers each probe, up to two minutes apart, and a paused one need
/// not answer keepalive.
void Connection::look_at_guest() {
  if (!std::exchange(slot_.lasting, true)) context_.upstream.set_lasting(fd(kUpstream));
  if (config().user_timeout.count() == 0) {
    look_at_ = TimerWheel::kNever;
    return;
  }
  Nanos wait = looks_every(config());
  if (context_.io.unacknowledged(fd(kUpstream)) <= 0) {
    guest_owes_since_ = TimerWheel::kNever;
  } else {
    const TcpSummary tcp = context_.io.tcp_summary(fd(kUpstream));
    guest_owes_since_ = std::min(guest_owes_since_, now());
    const Nanos silence = std::min<Nanos>(now() - guest_owes_since_, tcp.answered_ago);
    const Nanos left = config().user_timeout - silence;
    if (left <= Nanos::zero() && tcp.unanswered > 0) {
      slot_.socket[kUpstream].error = ETIMEDOUT;
      return on_reset(kUpstream);
    }
    if (left > Nanos::zero()) wait = std::min(wait, left);
  }
  look_at_ = look_after(now(), wait);
}

}  // namespace portway
