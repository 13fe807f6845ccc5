#include "control/forward_health.h"

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "proxy/close_cause.h"

namespace portway {
namespace {

constexpr std::chrono::milliseconds kLook(200);
constexpr std::chrono::milliseconds kLookForAnswers(20);

/// What a client's failure says about the forward; nullopt: nothing, it concerns the client alone.
std::optional<ForwardCause> failure_of(const CloseRecord& record) {
  switch (record.cause.how) {
    case CloseHow::kRefused:
      return ForwardCause::kGuestRefusing;
    case CloseHow::kConnectTimeout:
      return ForwardCause::kGuestUnreachable;
    case CloseHow::kResources:
      return ForwardCause::kNodeResources;
    case CloseHow::kConnectError:
      switch (connect_error(record.error)) {
        case ConnectError::kDeviceGone:
          return ForwardCause::kDeviceDown;
        case ConnectError::kResources:
        case ConnectError::kSourcePorts:
          return ForwardCause::kNodeResources;
        default:
          return ForwardCause::kGuestUnreachable;
      }
    default:
      break;
  }
  if (!record.rejected) return std::nullopt;
  switch (*record.rejected) {
    case RejectReason::kConnectionsMax:
    case RejectReason::kForwardConnectionsMax:
    case RejectReason::kOwnerConnectionsMax:
    case RejectReason::kNewConnectionRate:
    case RejectReason::kInstanceShare:
    case RejectReason::kForwardShare:
      return ForwardCause::kLimitReached;
    default:
      return std::nullopt;
  }
}

/// What the guest's answer to a probe says; nullopt: that it could not be asked.
std::optional<ForwardCause> cause_of_answer(int answer) {
  switch (answer) {
    case 0:
      return ForwardCause::kNone;
    case -ECONNREFUSED:
      return ForwardCause::kGuestRefusing;
    case -ETIMEDOUT:
    case -EHOSTUNREACH:
    case -ENETUNREACH:
    case -EHOSTDOWN:
    case -ENETDOWN:
      return ForwardCause::kGuestUnreachable;
    case -ENODEV:
      return ForwardCause::kDeviceDown;
    default:
      return std::nullopt;
  }
}

}  // namespace

ForwardHealth::ForwardHealth(boost::asio::io_context& context, Hooks hooks)
    : timer_(context), hooks_(std::move(hooks)) {}

void ForwardHealth::note(const CloseRecord& record) {
  const auto failed = failure_of(record);
  if (!failed) return;
  const ForwardId& id = record.forward->route.id;
  const auto now = Clock::now();
  const auto [found, is_new] = suspects_.try_emplace(id);
  Suspect& suspect = found->second;
  if (is_new) suspect.established = hooks_.established(id);
  if (*failed == ForwardCause::kLimitReached) {
    const ForwardCause before = cause_of(suspect, now);
    suspect.limit_until = now + kLimitFor;
    if (cause_of(suspect, now) != before) hooks_.on_change(id);
  } else {
    suspect.suspected = *failed;
    suspect.guest = record.guest;
    suspect.failed_at = now;
  }
  if (is_new && is_to_be_asked(suspect, now)) {
    suspect.is_due = true;
    due_.push_back(id);
    ask_some(now);
  }
  if (!waiting_) wait();
}

void ForwardHealth::forget(const ForwardId& id) {
  suspects_.erase(id);  // due_ and asked_ forget it when it is its turn
}

ForwardCause ForwardHealth::cause(const ForwardId& id) const {
  const auto found = suspects_.find(id);
  return found == suspects_.end() ? ForwardCause::kNone : cause_of(found->second, Clock::now());
}

/// A guest that serves nobody makes limits irrelevant.
ForwardCause ForwardHealth::cause_of(const Suspect& suspect, Clock::time_point now) {
  if (suspect.verdict != ForwardCause::kNone) return suspect.verdict;
  return now < suspect.limit_until ? ForwardCause::kLimitReached : ForwardCause::kNone;
}

void ForwardHealth::wait() {
  waiting_ = !suspects_.empty();
  if (!waiting_) return;
  timer_.expires_after(asked_.empty() ? kLook : kLookForAnswers);
  timer_.async_wait([this, alive = std::weak_ptr<bool>(alive_)](boost::system::error_code cancelled) {
    if (alive.expired() || cancelled) return;
    look();
    wait();
  });
}

void ForwardHealth::look() {
  const auto now = Clock::now();
  take_answers(now);
  if (now - looked_at_ >= kLook) look_at_all(now);
  ask_some(now);
}

void ForwardHealth::look_at_all(Clock::time_point now) {
  std::vector<ForwardId> changed;
  for (auto& [id, suspect] : suspects_) {
    const ForwardCause before = cause_of(suspect, looked_at_);
    if (const std::uint64_t established = hooks_.established(id); established != suspect.established) {
      suspect.established = established;
      on_served(suspect, now);
    }
    if (!suspect.is_due && !suspect.is_asked && is_to_be_asked(suspect, now)) {
      suspect.is_due = true;
      due_.push_back(id);
    }
    if (cause_of(suspect, now) != before) changed.push_back(id);
  }
  looked_at_ = now;
  std::erase_if(suspects_, [now](const auto& each) { return is_over(each.second, now); });
  for (const ForwardId& id : changed) hooks_.on_change(id);
}

bool ForwardHealth::is_to_be_asked(const Suspect& suspect, Clock::time_point now) {
  if (now < suspect.hold_until) return false;
  const auto since = now - suspect.asked_at;
  if (suspect.suspected != ForwardCause::kNone && since >= kAskMin) return true;
  if (suspect.verdict == ForwardCause::kNone) return false;
  return since >= std::clamp<Clock::duration>((now - suspect.away_since) / 8, kAskMin, kAskMax);
}

/// It says nothing, and is to say nothing for a while.
bool ForwardHealth::is_over(const Suspect& suspect, Clock::time_point now) {
  return suspect.verdict == ForwardCause::kNone && suspect.suspected == ForwardCause::kNone &&
         !suspect.is_asked && now >= suspect.limit_until && now >= suspect.hold_until + suspect.hold;
}

/// A client got through.
void ForwardHealth::on_served(Suspect& suspect, Clock::time_point now) {
  if (suspect.verdict != ForwardCause::kNone) {
    suspect.hold = std::clamp<std::chrono::milliseconds>(2 * suspect.hold, kHoldMin, kHoldMax);
    suspect.hold_until = now + suspect.hold;
  }
  suspect.verdict = suspect.suspected = ForwardCause::kNone;
}

void ForwardHealth::ask_some(Clock::time_point now) {
  while (!due_.empty() && asked_.size() < kProbesMax) {
    const ForwardId id = due_.front();
    due_.pop_front();
    const auto found = suspects_.find(id);
    if (found == suspects_.end() || !std::exchange(found->second.is_due, false)) continue;
    Suspect& suspect = found->second;
    suspect.asked_at = now;
    SynProbe probe;
    if (const int error = hooks_.ask(id, suspect.guest, probe); error != 0) {
      const ForwardCause before = cause_of(suspect, now);
      conclude(suspect, error, now);
      if (cause_of(suspect, now) != before) hooks_.on_change(id);
      continue;
    }
    suspect.probe = std::move(probe);
    suspect.is_asked = true;
    asked_.push_back(id);
  }
}

void ForwardHealth::take_answers(Clock::time_point now) {
  std::vector<ForwardId> changed;
  std::erase_if(asked_, [&](const ForwardId& id) {
    const auto found = suspects_.find(id);
    if (found == suspects_.end() || !found->second.is_asked) return true;  // it was forgotten
    Suspect& suspect = found->second;
    int answer = suspect.probe.answer();
    if (answer == -EAGAIN && now - suspect.asked_at < kAnswerMax) return false;
    if (answer == -EAGAIN) answer = -ETIMEDOUT;
    suspect.probe = SynProbe();
    suspect.is_asked = false;
    const ForwardCause before = cause_of(suspect, now);
    conclude(suspect, answer, now);
    if (cause_of(suspect, now) != before) changed.push_back(id);
    return true;
  });
  for (const ForwardId& id : changed) hooks_.on_change(id);
}

/// A guest that cannot be asked is believed to be as its last client has found it. So is one that has refused
/// a client and does not answer the probe: it may have no route back to the probe's source.
void ForwardHealth::conclude(Suspect& suspect, int answer, Clock::time_point now) {
  const auto told = cause_of_answer(answer);
  const ForwardCause before = suspect.verdict;
  const ForwardCause suspected = std::exchange(suspect.suspected, ForwardCause::kNone);
  const bool refuses =
      (suspected != ForwardCause::kNone ? suspected : before) == ForwardCause::kGuestRefusing;
  if (told == ForwardCause::kGuestUnreachable && refuses) {
    suspect.verdict = ForwardCause::kGuestRefusing;
  } else if (told) {
    suspect.verdict = *told;
  } else if (suspected != ForwardCause::kNone) {
    suspect.verdict = suspected;
  } else if (now - suspect.failed_at >= kBelieved) {
    suspect.verdict = ForwardCause::kNone;
  }
  if (before == ForwardCause::kNone) suspect.away_since = now;
}

}  // namespace portway
