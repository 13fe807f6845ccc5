// The body of a node's answer while it comes. Not for use by others; see node_client.h.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "api/http/message.h"
#include "gateway/node_pool.h"

namespace portway {

/// `lease`: its connection has an answer of which `first` was read already.
std::shared_ptr<BodyStream> stream_from_node(std::unique_ptr<NodeLease> lease, std::string first,
                                             std::chrono::milliseconds silence_max);

}  // namespace portway
