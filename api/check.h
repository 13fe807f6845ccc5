// Explains a forward step by step, from the listener to the guest's answer to a SYN: what a tenant whose
// service cannot be reached would otherwise ask the operator.
//
// Belongs to the control thread. The last step waits for the guest, so the answer is a stream.
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/json.h"
#include "api/message.h"
#include "config/forward.h"
#include "lifecycle/session_watch.h"

namespace portway {

struct CheckStep {
  std::string step;    // "listener", "source", "tap", "route", "guest"
  bool ok = false;     //
  std::string detail;  // what is so, and where it is not ok, what to do about it
};

/// What the guest's SYN was answered with, for the last step. `error` is connect(2)'s errno, 0 for success,
/// ETIMEDOUT when nothing came.
CheckStep guest_step(const Endpoint& guest, int error, std::chrono::milliseconds after);

struct CheckSubject {
  ForwardStatus forward;
  Instance instance;
  TapState tap_state = TapState::kMissing;
  std::optional<IpAddress> client;  // would this one be let in?
};

/// The JSON object {"check": {"ok", "steps": [...]}}, once the guest has answered or `timeout` has passed.
/// Steps after the first that is not ok are left out where they could say nothing.
std::shared_ptr<BodyStream> check_forward(boost::asio::io_context& context, const CheckSubject& subject,
                                          std::chrono::milliseconds timeout = std::chrono::seconds(2));

}  // namespace portway
