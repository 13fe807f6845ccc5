// Explains a forward step by step, from the listener to the guest's answer to a SYN: what a tenant whose
// service cannot be reached would otherwise ask the operator. The service never gets a connection
// (network/syn_probe.h). Where guests see their clients' addresses, it is asked from one of them too.
//
// Belongs to the control thread. The last step waits for the guest, so the answer is a stream.
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/http/message.h"
#include "api/json.h"
#include "base/forward.h"
#include "lifecycle/session_watch.h"

namespace portway {

struct CheckStep {
  std::string step;    // "listener", "source", "tap", "route", "guest"
  bool ok = false;     //
  std::string detail;  // what is so, and where it is not ok, what to do about it
};

/// What the SYNs to a guest's port were answered with: an errno as connect(2) has it, 0 when a service
/// answered, ETIMEDOUT when nothing came.
struct GuestAnswers {
  int node = 0;                              // to the node's address
  std::optional<int> client = std::nullopt;  // to a client's; none: clients come from the node's address
  IpAddress client_address = {};             // which one
  bool any_client = true;                    // it stands for any of them; false: it was asked for
  std::chrono::milliseconds after{};
};

/// The last step: `ok` is what clients would see.
CheckStep guest_step(const Endpoint& guest, const GuestAnswers& answers);

struct CheckSubject {
  ForwardStatus forward;
  Instance instance;
  TapState tap_state = TapState::kMissing;
  std::string tap_fault = {};       // SessionWatch::tap_fault()
  bool refusing = false;            // Dataplane::refuses()
  std::optional<IpAddress> client;  // would this one be let in, and answered?
};

/// The JSON object {"check": {"ok", "steps": [...]}}, once the guest has answered or `timeout` has passed.
/// Steps after the first that is not ok are left out where they could say nothing. A guest with two addresses
/// is asked at both, or at the one that the client is led to: "route" and "guest" are told of each.
std::shared_ptr<BodyStream> check_forward(boost::asio::io_context& context, const CheckSubject& subject,
                                          std::chrono::milliseconds timeout = std::chrono::seconds(2));

}  // namespace portway
