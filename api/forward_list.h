// The query of GET /port-forwards, of a node and of a fleet: what the list is of, and in which order.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "api/query.h"
#include "api/selector.h"
#include "base/forward.h"
#include "control/forward_state.h"

namespace portway {

enum class ForwardOrder : std::uint8_t { kCreatedAt, kHostPort };
enum class ListOrder : std::uint8_t { kAscending, kDescending };

// Absent, or 0: whatever it is.
extern const Parameter<std::optional<std::string>> kForwardsOfInstance;
extern const Parameter<std::optional<std::string>> kForwardsOfOwner;
extern const Parameter<std::uint16_t> kForwardsOfHostPort;
extern const Parameter<std::uint16_t> kForwardsOfGuestPort;
extern const Parameter<std::optional<ForwardState>> kForwardsOfState;
extern const Parameter<ForwardOrder> kForwardsSortBy;
extern const Parameter<ListOrder> kForwardsOrder;
/// "cursor": the place after which the page begins.
extern const Parameter<std::optional<ForwardPosition>> kForwardPosition;

/// All of these, with kLabel, kMetadata and kPageLimit.
QueryParameters forward_list_parameters();

/// For kForwardPosition: "31000.0190b2c0-..."
std::string cursor_of(const ForwardPosition& position);

}  // namespace portway
