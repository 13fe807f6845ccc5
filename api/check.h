// Diagnoses a forward step by step, from the listener to the guest's answer to a SYN, so that a tenant whose
// service cannot be reached does not have to ask the operator. The service never sees a connection
// (network/syn_probe.h). If guests see their clients' addresses, it is also probed from one of them.
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
#include "network/namespace.h"
#include "network/socket_target.h"

namespace portway {

struct CheckStep {
  std::string step;  // "listener", "source", "tap", "device", "route", "socket", "guest"
  bool ok = false;
  std::string detail;  // the finding and, if it is not ok, the remedy
};

/// The answers to the SYNs sent to a guest's port, as an errno of connect(2): 0 if a service answered,
/// ETIMEDOUT if nothing did.
struct GuestAnswers {
  int node = 0;                              // to the node's address
  std::optional<int> client = std::nullopt;  // to a client's; none: clients come from the node's address
  IpAddress client_address = {};             // which one
  bool any_client = true;                    // it stands for any client; false: it is the one in question
  std::string behind = "the tap";            // what leads to the guest, for a reader
  std::chrono::milliseconds after{};
};

/// The last step: `ok` is what clients would get.
CheckStep guest_step(const Endpoint& guest, const GuestAnswers& answers);

struct CheckSubject {
  ForwardStatus forward;
  Instance instance;
  TapState tap_state = TapState::kMissing;
  std::string tap_fault = {};             // SessionWatch::tap_fault(): of the device, if it has one
  bool refusing = false;                  // Dataplane::refuses()
  NetworkNamespace::Ptr netns = nullptr;  // where the guest is reached; null: in the node's own namespace
  std::optional<IpAddress> client;        // check whether this one would be admitted and answered
  // Where the forward leads instead of to the guest's addresses, or why it may not any more.
  std::optional<Result<SocketTarget>> socket = std::nullopt;
};

/// The JSON object {"check": {"ok", "steps": [...]}}, once the guest has answered or `timeout` has passed.
/// Steps after a failed one are omitted if they would say nothing. A guest with two addresses is probed on
/// both, or on the one that the client is forwarded to, with a "route" and a "guest" step for each. An
/// instance with a device has a step for it. A forward to a Unix socket has a "socket" step instead of "tap",
/// "device" and "route"; see api/socket_check.h.
std::shared_ptr<BodyStream> check_forward(boost::asio::io_context& context, const CheckSubject& subject,
                                          std::chrono::milliseconds timeout = std::chrono::seconds(2));

}  // namespace portway
