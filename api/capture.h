// A bounded capture of one forward's upstream leg, as a pcap file that Wireshark reads
// (draft-ietf-opsawg-pcap), for debugging: the packets between the node and the guest's port, on the tap.
//
// The kernel filters (SO_ATTACH_FILTER) and drops what does not fit into the socket's buffer; the number is
// reported. The capture does not know sessions: control/streams.h ends it with its instance's. Belongs to the
// control thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "api/http/message.h"
#include "base/endpoint.h"
#include "base/error.h"
#include "network/namespace.h"

namespace portway {

struct CaptureOptions {
  std::string tap;        // for messages
  std::int32_t link = 0;  // the tap's interface index; a later device of that name is not captured
  NetworkNamespace::Ptr netns = nullptr;  // where the tap is; null: in the node's own namespace
  // Its addresses, at most one of each family, with the port. They may change while the capture runs, which
  // BodyStream::on_change() reports.
  std::function<std::vector<Endpoint>()> guests;
  std::chrono::seconds duration{10};  // 1-60
  std::size_t max_bytes = 1'000'000;  // of the file, 1,000-16,777,216; packets are cut at 65,535 bytes
};

/// Starts at once. `on_end` is called with a text for the log: how many packets were captured and how many
/// the kernel dropped. kForbidden without CAP_NET_RAW, kInstanceNotRunning if there is no such device,
/// kResourceExhausted otherwise.
Result<std::shared_ptr<BodyStream>> start_capture(boost::asio::io_context& context,
                                                  const CaptureOptions& options,
                                                  std::function<void(const std::string& summary)> on_end);

}  // namespace portway
